"""The settings that every task has. Wrong values are refused when a config is made, before anything
is allocated."""

import dataclasses

from beit_jax.errors import check, one_of

COMPUTE_DTYPES = ('float32', 'bfloat16')
SCHEDULES = ('cosine', 'linear')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a way down to `final_lr`; defaults are BEiT's pre-training
    (paper, Table 9)."""

    lr: float = 1.5e-3
    final_lr: float = 1e-5
    # the way down: cosine | linear (mmsegmentation's polynomial of power 1)
    schedule: str = 'cosine'
    warmup_steps: int = 0  # used where warmup_epochs is 0
    warmup_epochs: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 3.0  # global norm; 0 leaves gradients as they are
    layer_decay: float = 1.0  # lr scale per layer counted from the head

    def __post_init__(self):
        one_of('config.optimizer.schedule', self.schedule, SCHEDULES)
        for name in (
            'lr',
            'final_lr',
            'warmup_steps',
            'warmup_epochs',
            'eps',
            'weight_decay',
            'clip_norm',
            'layer_decay',
        ):
            check(
                getattr(self, name) >= 0,
                f'config.optimizer.{name} is {getattr(self, name)}: use 0 or more.',
            )
        for name in ('beta1', 'beta2'):
            check(
                0 <= getattr(self, name) < 1,
                f'config.optimizer.{name} is {getattr(self, name)}: use 0 or more, below 1.',
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1: all devices that are left."""

    slice: int = 1  # TPU slices that the data-centre network joins
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A profiler trace of `steps` steps from step `start`, written below the work directory; 0
    steps: none."""

    start: int = 10
    steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every task has. Exactly one of `total_steps` and `epochs` is set, the other is 0."""

    task: str
    seed: int = 0
    batch_size: int = 2048  # images a step, over all devices and accumulated parts
    total_steps: int = 0
    epochs: float = 0.0
    accumulate_steps: int = 1
    log_every: int = 50
    evaluate_every: int = 0  # steps; 0: at the end only
    save_every: int = 1000
    keep_checkpoints: int = 3
    init: str = ''  # a checkpoint to start from; '' starts from random weights
    compute_dtype: str = 'bfloat16'
    # in a row, for their loss, gradient or update is not finite, before the run stops
    max_skipped_steps: int = 10
    # seconds after which a step that has not ended ends the run, for something hangs; 0: never
    step_timeout: float = 1800.0
    # go on in a work directory of another config or other data, with a warning of what changed
    accept_changes: bool = False
    # of a moving average of the parameters, which is then evaluated and exported; 0: none
    ema_decay: float = 0.0
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self):
        check(self.batch_size > 0, f'batch_size is {self.batch_size}: use at least 1.')
        check(
            (self.total_steps > 0) != (self.epochs > 0),
            f'total_steps is {self.total_steps} and epochs is {self.epochs}: set exactly one of '
            'them and leave the other 0.',
        )
        check(
            self.accumulate_steps > 0 and self.batch_size % self.accumulate_steps == 0,
            f'batch_size {self.batch_size} is not a multiple of accumulate_steps '
            f'{self.accumulate_steps}.',
        )
        check(
            0 <= self.ema_decay < 1,
            f'ema_decay is {self.ema_decay}: use a number from 0 up to but not including 1.',
        )
        check(
            self.step_timeout >= 0,
            f'step_timeout is {self.step_timeout}: use a number of seconds, or 0.',
        )
        one_of('compute_dtype', self.compute_dtype, COMPUTE_DTYPES)
        for name in ('log_every', 'save_every', 'keep_checkpoints', 'max_skipped_steps'):
            check(getattr(self, name) > 0, f'{name} is {getattr(self, name)}: use at least 1.')

    def resolve(self, num_examples: int, class_names: tuple[str, ...]):
        """The settings with what the data decide: `total_steps` in place of `epochs`.

        Raises:
          RequestError: training images that the settings do not fit.
        """
        if not self.epochs:
            return self
        return dataclasses.replace(
            self, total_steps=max(1, int(self.epochs * num_examples / self.batch_size)), epochs=0.0
        )
