"""Training VQ-KD, the tokenizer of BEiT v2 (arXiv 2208.06366, section 3.1): pictures through a grid
of codes to what a fixed teacher sees in each patch.

The codes are the nearest rows of a codebook, through whose choice the gradient goes straight. The
codebook itself has none: it starts by k-means on the first batch, and each step moves every row
towards the mean of the vectors that chose it, over all devices. Shape legend: B images, P patches,
V vocabulary, C width of a code, F width of the teacher's features.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.data.config import DataConfig, one_size, sides
from beit_jax.errors import check
from beit_jax.images.color import to_float
from beit_jax.models.layers import unit
from beit_jax.models.tokenizers import vqkd
from beit_jax.models.tokenizers.vqkd import VQKD, first_codebook, next_codebook
from beit_jax.settings.intervals import Count, Interval, Positive, ShareBelow1, Side
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import Task, of_channels, read_once, size_text
from beit_jax.tasks.tokenizer import token_statistics
from beit_jax.weights.teachers import Loaded, load_teacher
from beit_jax.weights.tokenizer import save_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    # a checkpoint or work directory, or PyTorch weights of a BEiT, a ViT (timm, DeiT, DINO) or CLIP
    path: str = ''
    # side in pixels (or height and width) of the pictures it is shown; 0: what it was made for
    image_size: Annotated[int, Interval(0, 2**14)] | tuple[Side, Side] = 0
    # of its pixels in [0, 1], a number a channel; (): its own
    mean: tuple[float, ...] = ()
    std: tuple[Positive, ...] = ()  # likewise; (): its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Defaults as the released tokenizers were trained."""

    task: str = 'vqkd'
    data: DataConfig = DataConfig()
    model: vqkd.Config = vqkd.Config()  # its features are the teacher's
    teacher: TeacherConfig = TeacherConfig()
    commitment: float = 1.0  # weight of the distance between a vector and its row
    codebook_decay: ShareBelow1 = 0.99  # of the moving average that a row is
    # blocks per step of the scans of all ViTs; the depth or more: no scan, slower to compile
    unroll: Count = 1

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, 'model', of_channels(self.model, self.data))
        self.model.vit().grid(*self.data.shape)  # refuses pictures that do not divide

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.model.vit().grid(*self.data.shape)


@dataclasses.dataclass(frozen=True)
class VectorQuantization(Task):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    teacher: Loaded | None  # None: batches bring its features
    graphdef: nnx.GraphDef

    @property
    def views(self):
        return (self.config.data.view('image'),)

    @property
    def prepare_views(self):
        view = self.config.data.view('teacher_image', self.teacher.image_size)
        return (read_once(view, self.views),)

    @property
    def frozen(self):
        return self.teacher.params if self.teacher else None

    @property
    def notes(self):
        return tuple(f'teacher: {note}' for note in self.teacher.notes)

    def fingerprint(self):
        return self.teacher.fingerprint()

    def build(self, rngs):
        return _build(self.config, rngs)

    def prepare(self, frozen, batch, *, train):
        """{'features': float32 [B, P, F], of length 1} that the teacher gives the patches."""
        images_BHWC = to_float(batch[self.prepare_views[0].name])
        return {'features': unit(self.teacher.look(frozen, images_BHWC))}

    def begin(self, params, batch, key):
        """The codebook by k-means, where no checkpoint has one."""
        if self.config.init:
            return {}
        vectors_BPC = nnx.merge(self.graphdef, params).encode(to_float(batch['image']))
        # whole on every device: the same codebook on any mesh
        whole = jax.sharding.PartitionSpec()
        vectors_NC = vectors_BPC.reshape(-1, vectors_BPC.shape[-1])
        vectors_NC = jax.lax.with_sharding_constraint(vectors_NC, whole)
        return {
            'encoder': {'codebook': first_codebook(key, vectors_NC, self.config.model.vocabulary)}
        }

    def loss(self, params, batch, keys_B, *, progress, train):
        config, valid_B = self.config, batch['valid']
        model = nnx.merge(self.graphdef, params)
        vectors_BPC = model.encode(to_float(batch['image']))
        fixed_BPC = jax.lax.stop_gradient(vectors_BPC)
        codebook_VC = jax.lax.stop_gradient(params['encoder']['codebook'])
        ids_BP = model.choose(fixed_BPC)
        codes_BPC = codebook_VC[ids_BP]
        decoded_BPF = model.decode(vectors_BPC + (codes_BPC - fixed_BPC))
        cosines_BP = jnp.sum(unit(decoded_BPF) * batch['features'], axis=-1)
        distance_B = jnp.mean(1 - cosines_BP, axis=1)
        commitment_B = jnp.mean(jnp.square(vectors_BPC - codes_BPC), axis=(1, 2))
        loss = jnp.sum((distance_B + config.commitment * commitment_B) * valid_B)
        weights_BP = jnp.broadcast_to(valid_B[:, None], ids_BP.shape)
        sums = {
            'loss': loss,
            'weight': jnp.sum(valid_B),
            'distance': jnp.sum(distance_B * valid_B),
            'commitment': jnp.sum(commitment_B * valid_B),
            'token_counts': jnp.zeros(config.model.vocabulary).at[ids_BP].add(weights_BP),
        }
        if train:
            weighted_BPC = fixed_BPC * weights_BP[..., None]
            sums['vectors'] = jnp.zeros_like(codebook_VC).at[ids_BP].add(weighted_BPC)
        return loss, sums

    def follow(self, params, sums):
        codebook_VC, decay = params['encoder']['codebook'], self.config.codebook_decay
        moved_VC = next_codebook(codebook_VC, sums['vectors'], sums['token_counts'], decay)
        return {'encoder': {'codebook': moved_VC}}

    def summarize(self, sums):
        """`distance` is the mean of 1 - cosine to the teacher, `commitment` the mean squared
        distance between vectors and rows. Of the patches that are counted, `codebook_usage` is the
        share of the vocabulary that occurred, `dead_codes` how many did not, `token_perplexity`
        their effective number."""
        names = 'loss', 'distance', 'commitment'
        metrics = {name: sums[name] / sums['weight'] for name in names}
        metrics |= token_statistics(sums['token_counts'])
        return metrics | {'dead_codes': jnp.sum(sums['token_counts'] == 0)}

    def describe(self):
        return {
            'architecture': 'vqkd',
            **dataclasses.asdict(self.config.model),
            'image_size': self.config.data.image_size,
            'pixels': '2 x - 1 for x in [0, 1]',
            'teacher': self.teacher.kind,
        }

    def finish(self, params, workdir: Path, batches, metrics):
        if jax.process_index() == 0:
            path, size = workdir / 'tokenizer', self.config.data.image_size
            save_tokenizer(path, 'vqkd', self.config.model, size, params)


def _build(config: Config, rngs: nnx.Rngs) -> VQKD:
    options = {'dtype': config.compute_dtype, 'unroll': config.unroll}
    return VQKD(config.model, config.grid, **options, rngs=rngs)


def _taught_by(config: Config, teacher: Loaded) -> Config:
    """The settings with the width of the teacher's features.

    Raises:
      RequestError: a teacher that does not fit them.
    """
    path, (rows, columns) = config.teacher.path, config.grid
    there, patch = teacher.grid, config.model.patch_size
    its_patch = sides(teacher.image_size)[0] // there[0]
    shown = size_text(one_size(rows * its_patch, columns * its_patch))
    pictures = size_text(one_size(there[0] * patch, there[1] * patch))
    check(
        there == (rows, columns),
        f'the teacher {path} gives {there[0]} x {there[1]} patches, the tokenizer has {rows} x '
        f'{columns}: set config.teacher.image_size={shown} (its positions are interpolated), or '
        f'config.data.image_size={pictures}.',
    )
    check(
        teacher.channels == config.model.channels,
        f'the teacher {path} is for pictures of {teacher.channels} channels, config.data reads '
        f'{config.model.channels}: give one for these.',
    )
    usual = vqkd.Config.features
    check(
        config.model.features in (usual, teacher.features),
        f'config.model.features is {config.model.features}, the teacher {path} has '
        f'{teacher.features}: leave it {usual}, and it follows the teacher.',
    )
    model = dataclasses.replace(config.model, features=teacher.features)
    return dataclasses.replace(config, model=model)


def make_on_given_features(config: Config, teacher: Loaded | None = None) -> VectorQuantization:
    """The task for a teacher, or without one: its steps take batches that have `features`
    already."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: _build(config, nnx.Rngs(0))))
    return VectorQuantization(config, teacher, graphdef)


def make(config: Config) -> VectorQuantization:
    check(
        bool(config.teacher.path),
        'config.teacher.path is empty: give a checkpoint, a work directory or weights of the model '
        'whose features are learned.',
    )
    given, options = config.teacher, {'dtype': config.compute_dtype, 'unroll': config.unroll}
    teacher = load_teacher(given.path, given.image_size, given.mean, given.std, **options)
    return make_on_given_features(_taught_by(config, teacher), teacher)
