"""WHAT is learned: one file tells one method's whole story. `Task` is all that the training loop knows of it.

Everything that a task reports is a sum over examples, so that parts of a batch, batches of an evaluation and devices simply add up.
"""
from collections.abc import Callable, Iterator
import importlib
from pathlib import Path
from typing import Any

from flax import nnx
import jax

from beit_jax.config import RunConfig, from_mapping, one_of
from beit_jax.data.config import View

# (split, number of images at most) -> batches of NumPy arrays, prepared, cropped as an evaluation does it
Batches = Callable[[str, int], Iterator[dict]]
TASKS = ('pretrain', 'tokenizer', 'classify', 'probe')


class Task:
    """A method. Built once a run, after its config was checked; `params` is always the nested dict of arrays of `build`."""
    config: RunConfig
    views: tuple[View, ...] = ()  # the pictures of an example that `loss` reads
    prepare_views: tuple[View, ...] = ()  # the pictures that `prepare` alone reads; () where there is nothing to prepare
    frozen: Any = ()  # arrays that `prepare` needs and nobody learns

    def fingerprint(self) -> str:
        """Says which `frozen` these are, so that a run goes on with no others; '' where there are none."""
        return ''

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module that is learned, freshly initialised."""
        raise NotImplementedError

    def adapt(self, params, description: dict, classes: tuple[str, ...], source: str) -> tuple[dict, tuple[str, ...], list[str]]:
        """What this run makes of a checkpoint: (its parameters for this model, path prefixes that start fresh, lines that say what was done).

        description: the JSON of the checkpoint; classes: names of the run's classes; source: what messages call the checkpoint.

        Raises:
          RequestError: a checkpoint that is of no use here.
        """
        return params, (), []

    def calibrate(self, batches: Batches):
        """`frozen`, with what follows from the training images."""
        return self.frozen

    def prepare(self, frozen, batch: dict, *, train: bool) -> dict:
        """Entries of the batch that are computed from `prepare_views` and not learned: what an image's view number decides, no more."""
        return {}

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """The batch of a training step with what is drawn for it as a whole, before it is cut into accumulated parts."""
        return batch

    def loss(self, params, batch: dict, keys_B: jax.Array, *, progress, train: bool) -> tuple[jax.Array, dict]:
        """(sum of the losses, sums): `sums['weight']` is what the sum of the losses is divided by, here and in the gradient.

        batch: the views, what `prepare` gave, `label` int32 [B], `view` uint32 [B] (the number of each view) and `valid` float32 [B].
        progress: step / total_steps in [0, 1]; train: draw augmentation and dropout, else be deterministic given the keys. In an
        evaluation the sums may have 'rows', a dict of arrays [B, ...] on each image, which are not added up.
        """
        raise NotImplementedError

    def summarize(self, sums: dict) -> dict:
        """The metrics that the added-up sums stand for; scalars."""
        raise NotImplementedError

    def describe(self) -> dict:
        """The architecture and the preprocessing, for a reader of the checkpoint without this package. JSON."""
        raise NotImplementedError

    def finish(self, params, workdir: Path, batches: Batches) -> None:
        """Called once when training is done, by every process, with whole arrays: process 0 writes what else the task owes."""


def task_config(settings) -> RunConfig:
    """The checked dataclass for a recipe's mapping; its `task` says which."""
    name = settings.get('task', '')
    one_of('config.task', name, TASKS)
    return from_mapping(importlib.import_module(f'beit_jax.tasks.{name}').Config, settings)


def make_task(config: RunConfig) -> Task:
    """The task of a checked config. Reads the files that it names (a tokenizer)."""
    return importlib.import_module(f'beit_jax.tasks.{config.task}').make(config)
