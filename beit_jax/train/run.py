"""A run that is opened: its settings, data, task, mesh and optimizer fit one another.

What does not fit is refused here; what a work directory or a checkpoint holds against it, in
`workdir.changes` and `start`.
"""

import functools
from pathlib import Path

import jax

import beit_jax
from beit_jax.data import layout
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.source import Source
from beit_jax.errors import check
from beit_jax.models.ways import hindrances, ways
from beit_jax.runtime import DETERMINISTIC, is_deterministic, refuse_x64
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import EncoderRunConfig, LabelledRunConfig, make_task
from beit_jax.tasks.reconstruction import drawing_of
from beit_jax.train import optimizer as optimizers
from beit_jax.train import state as states
from beit_jax.train.batches import Batches
from beit_jax.train.sharding import check_batch, make_mesh, on_mesh
from beit_jax.train.workdir.changes import known_data, settings_of
from beit_jax.train.workdir.tracker import check_tracker

HELD_OUT = 'set config.data.evaluate_path (folder), evaluate_split (tfds) or holdout'


class Run:
    """What a run has before its first step.

    Attributes:
      config: the settings, with what the data decide.
      task, mesh, batches: what is learned, on which devices, from what.
      source, held_out: the examples; `held_out` is None where there are none.
      drawing: what is drawn of held-out pictures, None where nothing is.
      computed: how attention and the MLP of the encoder are, {} where there is none.
      notes: lines for the user, said when the run begins.

    Raises:
      RequestError: settings, data and devices that do not fit one another.
      StorageError: data that cannot be read now.
    """

    def __init__(self, config: RunConfig, workdir: Path):
        self.workdir, self.notes = workdir, []
        check_tracker(config.tracker)
        refuse_x64()
        self.mesh = make_mesh(config.mesh)
        check_batch(self.mesh, config.batch_size, config.accumulate_steps)
        self.computed, hindered = on_mesh(self.mesh, _computed)(config)
        self.notes += hindered
        self.notes += _determinism(config, self.mesh.devices.flat[0].platform)
        with known_data(config, workdir):
            self.source = open_source(config.data, 'train')
            self.held_out = open_source(config.data, 'evaluate')
        parts = layout.parts_of_a_set(self.source, config.data.path)
        _check_classes(config, parts)
        source = self.source
        self.config = config.resolve(len(source), source.class_names, source.label)
        self.task = make_task(self.config)
        self.notes += self.task.notes
        self.drawing = drawing_of(self.task)
        self.batches = Batches(self.config, self.task, self.mesh, self.source, self.held_out)
        with known_data(config, workdir):
            self.notes += self.batches.check_source()
        check(
            self.held_out is not None or not self.task.needs_held_out,
            f'config.task={config.task} needs held-out images: {HELD_OUT}.',
        )
        if self.drawing and self.held_out is None:
            self.notes.append(f'no pictures are drawn without held-out images: {HELD_OUT}')
        self.notes += _tested_on(config, parts, self.source, self.held_out)

    @functools.cached_property
    def schedule(self):
        """The learning rate, a function of the number of steps done."""
        config = self.config
        steps_per_epoch = len(self.source) / config.batch_size
        return optimizers.learning_rate(config.optimizer, config.total_steps, steps_per_epoch)

    @functools.cached_property
    def optimizer(self):
        params = states.learned(self.task, states.abstract_params(self.task))
        return optimizers.make_optimizer(self.config.optimizer, self.schedule, params)

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after `step`."""
        every, last = self.config.evaluate_every, step == self.config.total_steps
        return self.held_out is not None and (last or (every > 0 and step % every == 0))

    def summary(self) -> str:
        """A line for the person who started it."""
        count = sum(leaf.size for leaf in jax.tree.leaves(states.abstract_params(self.task)))
        mesh = ' x '.join(f'{axis} {size}' for axis, size in self.mesh.shape.items())
        return (
            f'{self.config.task}: {count:,} parameters; {len(self.source):,} images; '
            f'batch {self.config.batch_size}; {self.config.total_steps:,} steps; '
            f'mesh {mesh} of {jax.devices()[0].device_kind}'
            + ''.join(f'; {part} {way}' for part, way in self.computed.items())
        )

    @functools.cached_property  # once a run: a tokenizer may have hundreds of megabytes
    def fingerprint(self) -> dict:
        """What decides, besides the config, what a step sees: the examples, and the arrays that are
        not learned (a tokenizer)."""
        return {
            'examples': len(self.source),
            'manifest': self.source.fingerprint,
            'seed': self.config.seed,
            'batch_size': self.config.batch_size,
            'tokenizer': self.task.fingerprint(),
        }

    def description(self) -> dict:
        """What a checkpoint says of itself. JSON."""
        return {
            'task': self.config.task,
            'architecture': self.task.describe(),
            'classes': self.source.class_names,
            'data': self.fingerprint,
            'config': settings_of(self.config),
            'versions': {'beit_jax': beit_jax.__version__, 'jax': jax.__version__},
            'computed': {
                'device': self.mesh.devices.flat[0].device_kind,
                **self.computed,
                'deterministic': is_deterministic(),
            },
        }


def _computed(config: RunConfig) -> tuple[dict[str, str], list[str]]:
    """(how the parts of the encoder are computed on the mesh in use, what there is to say of it);
    nothing for a task without one.

    Raises:
      RequestError: a way that is asked for cannot be had there.
    """
    if not isinstance(config, EncoderRunConfig):
        return {}, []
    asked = config.model, config.grid, config.compute_dtype
    return ways(*asked), hindrances(*asked)


def _check_classes(config: RunConfig, parts: layout.Parts | None) -> None:
    """Raises RequestError where the classes would be parts of a set."""
    labelled = isinstance(config, LabelledRunConfig) and not config.data.label_maps
    given = parts.in_words('--config.data.') if parts and labelled else ''
    check(not given, f'{given}. They are no classes.')


def _tested_on(
    config: RunConfig, parts: layout.Parts | None, source: Source, held_out: Source | None
) -> list[str]:
    """What there is to say where images of a test are trained on."""
    data, no_test = config.data, 'what eval/ says is no test'
    if parts and len(parts.names) > 1:
        return [f'WARNING: {parts.in_words("--config.data.")}; now all of them are trained on']
    if held_out is not None and held_out.fingerprint == source.fingerprint:
        return [
            'WARNING: the held-out images are the training images (config.data.evaluate_path, '
            f'or evaluate_split of tfds, names them): {no_test}'
        ]
    whole = data.name == 'folder' and not data.label_maps  # all below the path are trained on
    if whole and layout.lies_in(data.evaluate_path, data.path):
        return [
            'WARNING: config.data.evaluate_path lies in config.data.path, so the held-out images '
            f'are training images too: {no_test}'
        ]
    return []


def _determinism(config: RunConfig, platform: str) -> list[str]:
    """What there is to say of config.deterministic."""
    if not config.deterministic:
        return []
    if platform != 'gpu':
        return [f'config.deterministic changes nothing on a {platform}']
    check(
        is_deterministic(),
        'config.deterministic is read before JAX starts, by main.py alone: elsewhere set '
        f'XLA_FLAGS={DETERMINISTIC}.',
    )
    return [f'deterministic: XLA_FLAGS has {DETERMINISTIC}']
