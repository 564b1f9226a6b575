"""A teacher of VQ-KD out of whatever holds one: a BEiT, our own or released, a ViT or a CLIP."""

import dataclasses
import json

from flax import nnx, traverse_util
import jax

from beit_jax.data.config import sides
from beit_jax.errors import check
from beit_jax.images.color import normalize
from beit_jax.models.architecture import ARCHITECTURES, encoder_config, segments
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.teacher import Teacher
from beit_jax.weights.checkpoint import is_checkpoint
from beit_jax.weights.hub import local
from beit_jax.weights.load import load_weights
from beit_jax.weights.positions import fit_positions
from beit_jax.weights.pytorch.files import read_source
from beit_jax.weights.pytorch.vits import read_vit
from beit_jax.weights.trees import check_finite, check_same, digest, shapes


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A teacher with its parameters, and how it is shown pictures."""

    graphdef: nnx.GraphDef
    params: dict
    kind: str  # BEiT, ViT or CLIP
    grid: tuple[int, int]  # of patches, whose features it gives
    image_size: int | tuple[int, int]
    features: int  # their width F
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1], a channel
    std: tuple[float, ...]
    notes: tuple[str, ...]

    def look(self, params, images_BHWC):
        """Pixels in [0, 1], float [B, height, width, channels] -> float32 [B, P, F]."""
        pixels_BHWC = normalize(images_BHWC, self.mean, self.std)
        return nnx.merge(self.graphdef, params)(pixels_BHWC)

    def fingerprint(self) -> str:
        """sha256 of what decides its features."""
        said = [self.kind, self.grid, self.image_size, self.mean, self.std]
        return digest(self.params, json.dumps(said))


def load_teacher(
    path: str,
    image_size: int | tuple[int, int] = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    dtype='float32',
    unroll: int = 1,
) -> Loaded:
    """The teacher in a checkpoint, a work directory, or a file or folder of PyTorch weights.

    Args:
      path: see `weights.load.load_weights`, or a ViT of timm, DeiT or DINO, or a CLIP.
      image_size: side of the pictures it is shown, or height and width; 0: what it was made for.
        For others its positions are interpolated.
      mean, std: of its pixels in [0, 1], instead of its own.
      dtype: of its products.
      unroll: its blocks per step of a scan.

    Raises:
      RequestError: none of these, damaged, or sizes that do not fit.
    """
    found = local(path, 'config.teacher.path')
    vit = None if is_checkpoint(found) else read_vit(read_source(path, found))
    if vit:
        kind, config, grid, clip_features = vit.kind, vit.config, vit.grid, vit.clip_features
        params, own, notes = traverse_util.unflatten_dict(vit.flat, sep='/'), vars(vit), []
        size = tuple(side * config.patch_size for side in grid)
    else:
        params, description = load_weights(path)
        own, notes = description['architecture'], list(description.get('notes', ()))
        check(
            own['architecture'] in ARCHITECTURES and not segments(own),
            f'{path} is a {own["architecture"]}: a teacher is of pre-training or classifies.',
        )
        kind, config, grid, clip_features = 'BEiT', encoder_config(own), tuple(own['grid']), 0
        encoder = {name: value for name, value in params['encoder'].items() if name != 'mask_token'}
        params, size = {'encoder': encoder, 'norm': params['head']['norm']}, own['image_size']
        config = dataclasses.replace(config, drop_path=0.0, remat=False)
    if image_size and sides(image_size) != sides(size):
        size, new_grid = image_size, config.grid(*sides(image_size))
        encoder, said = fit_positions(params['encoder'], grid, config.positions, new_grid)
        params, notes, grid = params | {'encoder': encoder}, [*notes, *said], new_grid
    config = dataclasses.replace(config, unroll=unroll)
    graphdef = _fitting(config, grid, clip_features, dtype, params, path)
    check_finite(params, path)
    means, deviations = mean or tuple(own['mean']), std or tuple(own['std'])
    for name, numbers in (('mean', means), ('std', deviations)):
        check(
            len(numbers) == config.channels,
            f'config.teacher.{name} has {len(numbers)} numbers, the teacher {config.channels} '
            'channels: give one each.',
        )
    return Loaded(
        graphdef,
        jax.device_get(params),
        kind,
        grid,
        size if isinstance(size, int) or size[0] != size[1] else size[0],
        clip_features or config.width,
        config.channels,
        means,
        deviations,
        tuple(notes),
    )


def _fitting(config: EncoderConfig, grid, clip_features: int, dtype, params, path: str):
    """The graph of the module that the parameters are of."""
    options = {'clip_features': clip_features, 'dtype': dtype}
    module = nnx.eval_shape(lambda: Teacher(config, grid, **options, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    check_same(shapes(nnx.to_pure_dict(state)), shapes(params), path)
    return graphdef
