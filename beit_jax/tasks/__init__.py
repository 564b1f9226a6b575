"""WHAT is learned: one file tells one method's whole story. `Task` is all that the training loop knows of it.

Everything that a task reports is a sum over examples, so that parts of a batch, batches of an evaluation and devices simply add up.
"""
import importlib
from pathlib import Path
from typing import Any, Protocol

from flax import nnx
import jax

from beit_jax.config import RunConfig, from_mapping, one_of
from beit_jax.data.config import View

TASKS = ('pretrain', 'tokenizer')


class Task(Protocol):
    """A method. Built once a run, after its config was checked; `params` is always the nested dict of arrays of `build`."""
    config: RunConfig
    views: tuple[View, ...]  # the pictures of an example that `loss` reads
    prepare_views: tuple[View, ...]  # the pictures that `prepare` alone reads; () where there is nothing to prepare
    frozen: Any  # arrays that `prepare` needs and nobody learns

    def fingerprint(self) -> str:
        """Says which `frozen` these are, so that a run goes on with no others; '' where there are none."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module that is learned, freshly initialised."""

    def prepare(self, frozen, batch: dict, *, train: bool) -> dict:
        """Entries of the batch that are computed from `prepare_views` and not learned: what an image's view number decides, no more.

        Called, and needed, only where there are `prepare_views`.
        """

    def loss(self, params, batch: dict, keys_B: jax.Array, *, progress, train: bool) -> tuple[jax.Array, dict]:
        """(sum of the losses, sums): `sums['weight']` is what the sum of the losses is divided by, here and in the gradient.

        batch: the views, what `prepare` gave, `view` uint32 [B] (the number of each view) and `valid` float32 [B].
        progress: step / total_steps in [0, 1]; train: draw augmentation and dropout, else be deterministic given the keys.
        """

    def summarize(self, sums: dict) -> dict:
        """The metrics that the added-up sums stand for; scalars."""

    def describe(self) -> dict:
        """The architecture and the preprocessing, for a reader of the checkpoint without this package. JSON."""

    def finish(self, params, workdir: Path) -> None:
        """Called once when training is done: writes what else the task owes."""


def task_config(settings) -> RunConfig:
    """The checked dataclass for a recipe's mapping; its `task` says which."""
    name = settings.get('task', '')
    one_of('config.task', name, TASKS)
    return from_mapping(importlib.import_module(f'beit_jax.tasks.{name}').Config, settings)


def make_task(config: RunConfig) -> Task:
    """The task of a checked config. Reads the files that it names (a tokenizer)."""
    return importlib.import_module(f'beit_jax.tasks.{config.task}').make(config)
