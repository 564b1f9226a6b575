"""What an encoder knows that nobody adapted it to: linear heads on every layer of the frozen
encoder, and its nearest neighbours.

Each image goes through the encoder once a step; after every block a head reads CLS, another the
mean of the patches, a third both, and all of them learn at the same time without touching one
another (run_linear_eval.py trains one a layer, on both). Features are standardised by their mean
and deviation over training images: the residual stream grows from layer to layer, and most of it is
the same in every image. The best layer is chosen on the held-out images themselves, as the field
does. Shape legend: B images, S side in pixels, L layers, D width, C classes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax.errors import check
from beit_jax.images.color import jitter_views, normalize, to_float
from beit_jax.models.encoder import Encoder
from beit_jax.models.heads import KINDS, LayerProbes, pool_both
from beit_jax.models.memory import check_arrays
from beit_jax.tasks import LabelledRunConfig, Task
from beit_jax.tasks.classify import adapt_encoder, pixel_differences
from beit_jax.tasks.neighbours import NeighboursConfig, nearest_neighbours
from beit_jax.weights.hub import local
from beit_jax.weights.load import load_weights
from beit_jax.weights.trees import check_params, digest

CALIBRATION = 2048  # training images that the features are standardised by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LabelledRunConfig):
    task: str = 'probe'
    # the checkpoint or work directory whose encoder is probed; '' probes random weights
    encoder: str = ''
    neighbours: NeighboursConfig = NeighboursConfig()

    def __post_init__(self):
        super().__post_init__()
        check(
            not self.init,
            'config.init starts a run from its parameters, which are heads here: name the encoder '
            'by config.encoder.',
        )
        check(
            self.data.labels == 'class',
            f'config.data.labels is {self.data.labels}, a probe takes one class each: leave it '
            'class, or use task classify, with config.trained_blocks=0 for a frozen encoder.',
        )
        self.data.check_jitter()


@dataclasses.dataclass(frozen=True)
class Probe(Task):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    encoder: nnx.GraphDef
    heads: nnx.GraphDef
    frozen: Any  # the encoder's parameters, and what its features are standardised by
    notes: tuple[str, ...]
    needs_held_out: ClassVar[bool] = True

    @property
    def prepare_views(self):
        return (self.config.data.view('image'),)

    def fingerprint(self):
        return digest(self.frozen['encoder'])

    def build(self, rngs):
        return _heads(self.config, rngs)

    def calibrate(self, frozen, batches):
        """The encoder with the mean and the deviation, float32 [L, D], of `cls` and `mean` over
        some training images."""
        features = collect(batches('train', CALIBRATION), CALIBRATION, np.float32)
        statistics = {
            name: {'mean': features[name].mean(0), 'deviation': features[name].std(0) + 1e-6}
            for name in ('cls', 'mean')
        }
        return frozen | {'statistics': statistics}

    def prepare(self, frozen, batch, *, train):
        """{'cls', 'mean': float32 [B, L, D]} after each block of the encoder."""
        data, images_BSS3 = self.config.data, to_float(batch['image'])
        if train:
            images_BSS3 = jitter_views(self.config.seed, batch, images_BSS3, data.color_jitter)
        encoder = nnx.merge(self.encoder, frozen['encoder'])
        pixels_BSS3 = normalize(images_BSS3, data.mean, data.std)
        features = encoder(pixels_BSS3, every_layer=pool_both)
        features = {name: features_LBD.swapaxes(0, 1) for name, features_LBD in features.items()}
        if not frozen['statistics']:  # before calibration
            return features
        return {
            name: (features[name] - known['mean']) / known['deviation']
            for name, known in frozen['statistics'].items()
        }

    def loss(self, params, batch, keys_B, *, progress, train):
        logits = nnx.merge(self.heads, params)(batch['cls'], batch['mean'])
        labels_B, valid_B = batch['label'], batch['valid']
        losses, correct = {}, {}
        for name, logits_BLC in logits.items():
            losses_BL = optax.softmax_cross_entropy_with_integer_labels(
                logits_BLC, labels_B[:, None]
            )
            losses[name] = jnp.sum(losses_BL * valid_B[:, None], axis=0)
            right_BL = jnp.argmax(logits_BLC, axis=-1) == labels_B[:, None]
            correct[name] = jnp.sum(right_BL * valid_B[:, None], axis=0)
        loss = sum(jnp.sum(losses_L) for losses_L in losses.values())
        return loss, {
            'loss': loss,
            'weight': jnp.sum(valid_B),
            'correct': jnp.stack([correct[name] for name in KINDS]),
        }

    def summarize(self, sums):
        """`accuracy` is that of the best head, `layer_NN/cls`, `/mean` and `/both` those of all;
        `loss` is the mean of all heads."""
        accuracies_KL = sums['correct'] / sums['weight']
        each = {
            f'layer_{layer + 1:02d}/{kind}': accuracy
            for kind, accuracies_L in zip(KINDS, accuracies_KL)
            for layer, accuracy in enumerate(accuracies_L)
        }
        return {
            'loss': sums['loss'] / sums['weight'] / accuracies_KL.size,
            'accuracy': jnp.max(accuracies_KL),
        } | each

    def describe(self):
        return {
            'architecture': 'layer_probes',
            'layers': self.config.model.depth,
            'width': self.config.model.width,
            'num_classes': self.config.num_classes,
            'encoder': self.config.encoder,
        }

    def finish(self, params, workdir: Path, batches, metrics):
        """Writes and prints the table of all layers: accuracies of the heads and of k-NN,
        `probe.json`."""
        table = {}
        for kind in KINDS:
            names = (f'eval/layer_{layer + 1:02d}/{kind}' for layer in self._layers)
            table[f'linear {kind}'] = [float(metrics[name]) for name in names]
        settings = self.config.neighbours
        if settings.images:
            bank = collect(batches('train', settings.images), settings.images)
            queries = collect(batches('evaluate', settings.queries), settings.queries)
            for kind in ('cls', 'mean') if jax.process_index() == 0 else ():
                table[f'k-NN {kind}'] = self._neighbours(bank, queries, kind)
        if jax.process_index() == 0:
            (workdir / 'probe.json').write_text(json.dumps(table) + '\n')
            print(_as_text(table))

    @property
    def _layers(self):
        return range(self.config.model.depth)

    def _neighbours(self, bank: dict, queries: dict, kind: str) -> list[float]:
        """The accuracy of k-NN in each layer."""
        config, accuracies = self.config, []
        for layer in self._layers:
            known_ND, asked_BD = bank[kind][:, layer], queries[kind][:, layer]
            classes_B = nearest_neighbours(
                known_ND, bank['label'], asked_BD, config.num_classes, config.neighbours
            )
            accuracies.append(float(np.mean(classes_B == queries['label'])))
        return accuracies


def collect(batches, limit: int, dtype=np.float16) -> dict:
    """The valid rows of all batches, at most `limit`: `cls` and `mean` [N, L, D] of `dtype`,
    `label` int32 [N]. Half precision: a bank of ImageNet must fit the host."""
    dtypes = {'cls': dtype, 'mean': dtype, 'label': np.int32}
    parts = {name: [] for name in dtypes}
    for batch in batches:
        for name, kind in dtypes.items():
            parts[name].append(batch[name][batch['valid'] > 0].astype(kind))
    # each list is gone before the next array is made
    return {name: np.concatenate(parts.pop(name))[:limit] for name in dtypes}


def _as_text(table: dict) -> str:
    lines = ['accuracy on held-out images:']
    lines.append('layer  ' + '  '.join(f'{name:>11}' for name in table))
    for layer, row in enumerate(zip(*table.values())):
        lines.append(f'{layer + 1:5}  ' + '  '.join(f'{value:11.4f}' for value in row))
    for kind in ('linear', 'k-NN'):
        found = []
        for name, values in table.items():
            if name.startswith(kind):
                found += [(value, layer, name) for layer, value in enumerate(values, 1)]
        if found:
            value, layer, name = max(found)
            lines.append(f'best {name}: {value:.4f} at layer {layer}')
    return '\n'.join(lines)


def _heads(config: Config, rngs: nnx.Rngs) -> LayerProbes:
    return LayerProbes(config.model.depth, config.model.width, config.num_classes, rngs=rngs)


def make(config: Config) -> Probe:
    def build():
        return Encoder(
            config.model,
            config.grid,
            masked=False,
            dtype=config.compute_dtype,
            rngs=nnx.Rngs(config.seed),
        )

    (encoder, abstract), notes = nnx.split(nnx.eval_shape(build)), []
    if config.encoder:
        local(config.encoder, 'config.encoder')  # whose message names the setting
        params, description = load_weights(config.encoder)
        architecture = description['architecture']
        frozen, notes = adapt_encoder(params, architecture, config, config.encoder)
        differing = pixel_differences(architecture, config.data, config.encoder)
        check(
            not differing,
            f'{"; ".join(differing)}: a frozen encoder must see what it was trained on.',
        )
        check_params(nnx.to_pure_dict(abstract), frozen, config.encoder)
    else:
        check_arrays(nnx.to_pure_dict(abstract), 'random weights of the encoder')
        frozen = nnx.to_pure_dict(nnx.state(build()))
    heads = nnx.graphdef(nnx.eval_shape(lambda: _heads(config, nnx.Rngs(0))))
    frozen = {'encoder': jax.device_get(frozen), 'statistics': {}}
    return Probe(config, encoder, heads, frozen, tuple(notes))
