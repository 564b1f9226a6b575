"""The settings that every task has. Wrong values are refused when a config is made, before anything
is allocated."""

from collections.abc import Callable
import dataclasses
from typing import Annotated, Any

from beit_jax.errors import check, one_of
from beit_jax.settings.intervals import INT32, Count, Interval, Seed, Share, ShareBelow1

COMPUTE_DTYPES = ('float32', 'bfloat16')
SCHEDULES = ('cosine', 'linear', 'poly')
TRACKERS = ('', 'wandb', 'trackio')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a way down to `final_lr`; defaults are BEiT's pre-training
    (paper, Table 9)."""

    lr: float = 1.5e-3  # the highest learning rate, whatever the batch size
    final_lr: float = 1e-5  # where it ends
    # the way down: cosine | linear, both from the end of the warm-up; poly: mmcv's of power 1, a
    # line from step 0 on that the warm-up is a share of
    schedule: str = 'cosine'
    warmup_steps: int = 0  # used where warmup_epochs is 0
    warmup_epochs: float = 0.0  # 0: warmup_steps says it
    beta1: ShareBelow1 = 0.9  # of the mean of gradients
    beta2: ShareBelow1 = 0.999  # of the mean of their squares
    eps: Share = 1e-8  # added to the root of that mean
    # times the learning rate; not of biases, norms, CLS and absolute positions
    weight_decay: float = 0.05
    clip_norm: float = 3.0  # global norm; 0 leaves gradients as they are
    layer_decay: Share = 1.0  # lr scale per layer counted from the head

    def __post_init__(self):
        one_of('config.optimizer.schedule', self.schedule, SCHEDULES)


# devices along an axis
Axis = Annotated[int, Interval(-1, INT32)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1: all devices that are left."""

    slice: Axis = 1  # TPU slices that the data-centre network joins
    data: Axis = -1  # the batch is split
    fsdp: Axis = 1  # the batch is split, and so are parameters and optimizer
    tensor: Axis = 1  # heads and hidden widths are split


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A profiler trace of `steps` steps from step `start`, written below the work directory; 0
    steps: none."""

    start: Count = 10  # the first step that is traced
    steps: int = 0  # how many are; 0: none


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every task has. Exactly one of `total_steps` and `epochs` is set, the other is 0."""

    task: str  # pretrain | tokenizer | vqkd | classify | probe | segment
    seed: Seed = 0  # of weights, order, crops and masks
    # images a step, over all devices and accumulated parts
    batch_size: Annotated[int, Interval(1, 2**20)] = 2048
    total_steps: int = 0  # how long; 0: epochs says it
    epochs: float = 0.0  # times that each training image is seen; 0: total_steps says it
    accumulate_steps: Count = 1  # parts of a batch that are computed one after the other
    log_every: Count = 50  # steps
    evaluate_every: int = 0  # steps; 0: at the end only
    save_every: Count = 1000  # steps
    keep_checkpoints: Count = 3  # the newest ones; older ones are removed
    init: str = ''  # a checkpoint to start from; '' starts from random weights
    compute_dtype: str = 'bfloat16'  # of products: float32 | bfloat16; parameters are float32
    # in a row, for their loss, gradient or parameters are not finite, before the run stops
    max_skipped_steps: Count = 10
    # seconds after which a step that has not ended ends the run, for something hangs; 0: never
    step_timeout: float = 1800.0
    # on a GPU: only what gives the same bits each time, slower; CPUs and TPUs do so anyway
    deterministic: bool = False
    # go on in a work directory of another config or other data, with a warning of what changed
    accept_changes: bool = False
    # '' | wandb | trackio: where metrics and pictures go besides the work directory
    tracker: str = ''
    # of a moving average of the parameters, which is then evaluated and exported; 0: none
    ema_decay: ShareBelow1 = 0.0
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self):
        check(
            bool(self.total_steps) != bool(self.epochs),
            f'config.total_steps is {self.total_steps} and config.epochs is {self.epochs}: set '
            'exactly one of them and leave the other 0.',
        )
        check(
            self.batch_size % self.accumulate_steps == 0,
            f'config.batch_size {self.batch_size} is not a multiple of config.accumulate_steps '
            f'{self.accumulate_steps}.',
        )
        check(
            self.step_timeout == 0 or self.step_timeout >= 1,
            f'config.step_timeout is {self.step_timeout}: use a second or more, or 0 for never.',
        )
        one_of('config.compute_dtype', self.compute_dtype, COMPUTE_DTYPES)
        one_of('config.tracker', self.tracker, TRACKERS)

    def resolve(
        self,
        num_examples: int,
        class_names: tuple[str, ...],
        label: Callable[[int], Any] | None = None,
    ):
        """The settings with what the data decide: `total_steps` in place of `epochs`.

        label: (index) -> that of a training image; None where there are no images.

        Raises:
          RequestError: training images that the settings do not fit.
        """
        if not self.epochs:
            return self
        check(
            self.epochs * num_examples >= 1,
            f'config.epochs is {self.epochs}: of {num_examples} images that is not one.',
        )
        steps = max(1, int(self.epochs * num_examples / self.batch_size))
        check(
            steps <= INT32,
            f'config.epochs is {self.epochs}: {steps} steps are more than {INT32}. Lower it.',
        )
        return dataclasses.replace(self, total_steps=steps, epochs=0.0)
