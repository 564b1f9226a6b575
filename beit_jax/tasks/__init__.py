"""WHAT is learned: one file tells one method's whole story. `Task` is all that the training loop
knows of it.

Everything that a task reports is a sum over examples, so that parts of a batch, batches of an
evaluation and devices simply add up.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import importlib
from pathlib import Path
import re
from typing import Annotated, Any, ClassVar

from flax import nnx
import jax

from beit_jax.data.config import DataConfig, View
from beit_jax.errors import check
from beit_jax.models.architecture import check_encodes
from beit_jax.models.encoder import EncoderConfig
from beit_jax.settings.intervals import Interval
from beit_jax.settings.run import RunConfig

# (split, number of images at most) -> batches of NumPy arrays, prepared, cropped as an evaluation
# does it
ReadSample = Callable[[str, int], Iterator[dict]]


def of_channels(model, data: DataConfig):
    """The architecture `model` for pictures of as many channels as `data` reads.

    Raises:
      RequestError: it says another number, which is not the usual one.
    """
    count, usual = data.pixels.num_channels, EncoderConfig.channels
    check(
        model.channels in (count, usual),
        f'config.model.channels is {model.channels}, config.data reads {count}: leave it {usual}, '
        'and it follows config.data.',
    )
    return dataclasses.replace(model, channels=count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderRunConfig(RunConfig):
    """What tasks with an encoder have besides."""

    data: DataConfig = DataConfig()
    model: EncoderConfig = EncoderConfig()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, 'data', self.data.normalized())
        object.__setattr__(self, 'model', of_channels(self.model, self.data))
        self.model.grid(*self.data.shape)  # refuses pictures that do not divide into patches

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.model.grid(*self.data.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledRunConfig(EncoderRunConfig):
    """What tasks with an encoder and labels have besides."""

    # 0: as many as the training images have
    num_classes: Annotated[int, Interval(0, 100_000)] = 0

    def resolve(self, num_examples, class_names, label=None):
        num_classes, one_each = self.num_classes or len(class_names), self.data.labels == 'class'
        check(
            len(class_names) > one_each,
            f'the training images have {len(class_names)} classes: sort them into one folder a '
            'class, or use labelled data.',
        )
        check(
            len(class_names) <= num_classes,
            f'the training images have {len(class_names)} classes, so labels up to '
            f'{len(class_names) - 1}, but config.num_classes is {num_classes}: leave it 0, or '
            'raise it.',
        )
        check(
            one_each or len(class_names) == num_classes,
            f'config.num_classes is {num_classes}, but labels are of {len(class_names)} '
            f'(config.data.labels={self.data.labels}): leave it 0.',
        )
        return dataclasses.replace(
            super().resolve(num_examples, class_names, label), num_classes=num_classes
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuneRunConfig(LabelledRunConfig):
    """What tasks that fine-tune an encoder have besides."""

    # the last so many blocks are trained, with the head, the others frozen; 0: the head alone; -1:
    # all, with the embeddings
    trained_blocks: Annotated[int, Interval(-1, 200)] = -1

    def __post_init__(self):
        super().__post_init__()
        check(
            self.trained_blocks <= self.model.depth,
            f'config.trained_blocks is {self.trained_blocks}, the encoder has {self.model.depth}: '
            'lower it, or set it to -1 for all.',
        )

    @property
    def frozen_blocks(self) -> int:
        """How many of the first blocks are not trained; the embeddings are not either where
        `trained_blocks` is no -1."""
        return self.model.depth - self.trained_blocks if self.trained_blocks >= 0 else 0


class Task:
    """A method. Built once a run, after its config was checked; `params` is always the nested dict
    of arrays of `build`."""

    config: RunConfig
    views: tuple[View, ...] = ()  # the pictures of an example that `loss` reads
    # the pictures that `prepare` alone reads; () where there is nothing to prepare
    prepare_views: tuple[View, ...] = ()
    frozen: Any = ()  # arrays that `prepare` needs and nobody learns
    notes: tuple[str, ...] = ()  # what had to be assumed or changed of the files that it reads
    needs_held_out: ClassVar[bool] = False
    # the settings of a cache for what `prepare` makes (`TokenizerConfig`); None: there is none
    token_cache: Any = None
    # (params, images [B, H, W, channels]) -> logits of pixels, float32 [B, h, w, C]: a task that
    # has it is evaluated on whole pictures of their own size, with the settings `config.inference`,
    # and not by `loss`
    label_windows: Callable | None = None
    # ('rows' of all held-out images, see `loss`, NumPy arrays [N, ...] without what is not valid;
    # the names of the classes) -> metrics that are no sums over images
    measure: Callable[[dict, Sequence[str]], dict] | None = None

    def learns(self, path: str) -> bool:
        """Whether the parameter of that path is learned; the others stay as they are, to the bit,
        and have neither gradient nor optimizer."""
        return True

    def frozen_part(self, params, batch: dict):
        """What `loss` computes of a training batch, as `augment` makes it, from parameters alone
        that are not learned: no gradient goes back through it."""
        return ()

    def fingerprint(self) -> str:
        """Says which `frozen` these are, so that a run goes on with no others; '' where there are
        none."""
        return ''

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module that is learned, freshly initialised."""
        raise NotImplementedError

    @functools.cached_property
    def abstract(self) -> nnx.State:
        """The parameters as the module declares them: shapes, dtypes and initialisers."""
        return nnx.state(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))), nnx.Param)

    def adapt(
        self, params, description: dict, classes: tuple[str, ...], source: str
    ) -> tuple[dict, tuple[str, ...], list[str]]:
        """What this run makes of a checkpoint: (its parameters for this model, path prefixes that
        start fresh, lines that say what was done).

        description: the JSON of the checkpoint; classes: names of the run's classes; source: what
        messages call the checkpoint.

        Raises:
          RequestError: a checkpoint that is of no use here.
        """
        return params, (), []

    def begin(self, params, batch: dict, key: jax.Array) -> dict:
        """The fresh parameters that follow from the first training batch, a sub-tree that takes
        their place; {} where none do. `batch` is as `loss` takes it, of all devices."""
        return {}

    def calibrate(self, frozen, batches: ReadSample):
        """`frozen`, which is on the devices by now, with what follows from the training images."""
        return frozen

    def remarks(self, first: Callable[[], dict]) -> list[str]:
        """Lines for the user on what these pictures are to the task; asked by every process before
        the first step. first: what this process reads for that, as NumPy arrays."""
        return []

    def prepare(self, frozen, batch: dict, *, train: bool) -> dict:
        """Entries of the batch that are computed from `prepare_views` and not learned: what an
        image's view number decides, no more."""
        return {}

    def augment(self, batch: dict, key: jax.Array, keys_B: jax.Array) -> dict:
        """A training batch as `loss` takes it. key: for what is drawn once a batch; keys_B: a key
        an image."""
        return batch

    def loss(
        self, params, batch: dict, keys_B: jax.Array, *, progress, train: bool
    ) -> tuple[jax.Array, dict]:
        """(sum of the losses, sums): `sums['weight']` is what the sum of the losses is divided by,
        here and in the gradient.

        batch: the views, what `prepare` gave, `label` int32 [B], `view` uint32 [B] (the number of
        each view) and `valid` float32 [B]. progress: step / total_steps in [0, 1]; train: draw
        augmentation and dropout, else be deterministic given the keys. In an evaluation the sums
        may have 'rows', a dict of arrays [B, ...] on each image, which are not added up.
        """
        raise NotImplementedError

    def follow(self, params, sums: dict) -> dict:
        """The parameters that follow from the sums of a training step and from no gradient, a
        sub-tree that the step puts in their place: running statistics, a codebook."""
        return {}

    def summarize(self, sums: dict) -> dict:
        """The metrics that the added-up sums stand for; scalars."""
        raise NotImplementedError

    def describe(self) -> dict:
        """The architecture and the preprocessing, for a reader of the checkpoint without this
        package. JSON."""
        raise NotImplementedError

    def finish(self, params, workdir: Path, batches: ReadSample, metrics: dict) -> None:
        """Called once when training is done, by every process, with whole arrays: process 0 writes
        what else the task owes.

        metrics: those of the last evaluation, eval/...; {} where nothing is held out.
        """


class FineTune(Task):
    """A task whose model has an `encoder`, of which `FineTuneRunConfig` says what is learned."""

    config: FineTuneRunConfig
    graphdef: nnx.GraphDef

    @property
    def notes(self):
        config = self.config
        if config.init or config.trained_blocks < 0:
            return ()
        return ('WARNING: what config.trained_blocks freezes has random weights: give config.init',)

    def learns(self, path):
        if self.config.trained_blocks < 0 or not path.startswith('encoder/'):
            return True
        block = re.match(r'encoder/blocks/(\d+)/', path)
        return bool(block) and int(block[1]) >= self.config.frozen_blocks

    def frozen_part(self, params, batch):
        if self.config.trained_blocks < 0:
            return ()
        return nnx.merge(self.graphdef, params).encoder.frozen_part(batch['image'])


def check_encoder(architecture: dict, model: EncoderConfig, source: str) -> None:
    """Raises RequestError where a checkpoint has no encoder, or differs from `model` in what no
    shape of an array shows."""
    check_encodes(architecture, source)
    for name in ('heads', 'patch_size', 'norm_eps', 'qkv_bias'):
        theirs, ours = architecture[name], getattr(model, name)
        check(
            theirs == ours,
            f'{source} has {name} {theirs}, config.model.{name} is {ours}: set it so.',
        )


def read_once(view: View, views: tuple[View, ...]) -> View:
    """`view`, or the one of `views` that has the same pixels, which are read anyway."""
    return next((one for one in views if dataclasses.replace(view, name=one.name) == one), view)


def size_text(size: int | tuple[int, int]) -> str:
    """A size of pictures as the command line takes it."""
    return str(size) if isinstance(size, int) else f'{size[0]},{size[1]}'


def without_cls_head(params: dict, source: str) -> tuple[dict, tuple[str, ...], list[str]]:
    """What `Task.adapt` gives of a checkpoint whose blocks that pre-train CLS are of no use."""
    if 'cls_head' not in params:
        return params, (), []
    count = len(params['cls_head']['layers'])
    kept = {name: value for name, value in params.items() if name != 'cls_head'}
    return kept, (), [f'the {count} blocks of {source} that pre-train CLS are left out']


def make_task(config: RunConfig) -> Task:
    """The task of a checked config. Reads the files that it names (a tokenizer)."""
    return importlib.import_module(f'beit_jax.tasks.{config.task}').make(config)
