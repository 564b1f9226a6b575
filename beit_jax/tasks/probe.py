"""What an encoder knows that nobody adapted it to: linear heads on every layer of the frozen encoder, and its nearest neighbours.

Each image goes through the encoder once a step; after every block a head reads CLS, another the mean of the patches, a third both, and
all of them learn at the same time without touching one another (run_linear_eval.py trains one a layer, on both). Features are
standardised by their mean and deviation over training images: the residual stream grows from layer to layer, and most of it is the same
in every image.
Shape legend: B images, S side in pixels, L layers, D width, C classes.
"""
import dataclasses
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax.config import RunConfig, check
from beit_jax.data.config import DataConfig, View
from beit_jax.images.color import jitter_views, normalize, to_float
from beit_jax.models.encoder import Encoder, EncoderConfig
from beit_jax.models.heads import KINDS, LayerProbes, pool
from beit_jax.tasks import Task
from beit_jax.tasks.classify import adapt_encoder
from beit_jax.weights.checkpoint import check_params, digest, load_params


CALIBRATION = 2048  # training images that the features are standardised by


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """k-NN by cosine similarity: each of the nearest training images votes with exp(similarity / temperature)."""
    count: int = 20
    temperature: float = 0.07
    images: int = 20_000  # training images that may be neighbours, spread over all; 0: no k-NN

    def __post_init__(self):
        check(self.count > 0 and self.temperature > 0, 'config.neighbours.count and config.neighbours.temperature must be positive.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    task: str = 'probe'
    encoder: str = ''  # the checkpoint or work directory whose encoder is probed; '' probes random weights
    data: DataConfig = DataConfig()
    model: EncoderConfig = EncoderConfig()
    num_classes: int = 0  # 0: as many as the training images have
    neighbours: NeighboursConfig = NeighboursConfig()

    def __post_init__(self):
        super().__post_init__()
        check(not self.init, 'config.init starts a run from its parameters, which are heads here: name the encoder by config.encoder.')
        self.grid  # the picture must divide into patches

    @property
    def grid(self) -> tuple[int, int]:
        return self.model.grid(self.data.image_size, self.data.image_size)

    def resolve(self, num_examples: int, class_names: tuple[str, ...]):
        check(len(class_names) > 1, 'a probe needs labelled images: sort them into one folder a class.')
        return dataclasses.replace(super().resolve(num_examples, class_names), num_classes=len(class_names))


@dataclasses.dataclass(frozen=True)
class Probe(Task):
    """The task: see `beit_jax.tasks.Task`."""
    config: Config
    encoder: nnx.GraphDef
    heads: nnx.GraphDef
    frozen: Any  # the encoder's parameters, and what its features are standardised by

    @property
    def prepare_views(self):
        return (View('image', self.config.data.image_size, 'bicubic'),)

    def fingerprint(self):
        return digest(self.frozen['encoder'])

    def build(self, rngs):
        return _heads(self.config, rngs)

    def calibrate(self, batches):
        """The encoder with the mean and the deviation of its features over some training images."""
        features = collect(batches('train', CALIBRATION))
        statistics = {name: {'mean': features[name].mean(0), 'deviation': features[name].std(0) + 1e-6} for name in ('cls', 'mean')}
        return {'encoder': self.frozen['encoder'], 'statistics': statistics}

    def prepare(self, frozen, batch, *, train):
        """{'cls', 'mean': float32 [B, L, D]} after each block of the encoder."""
        data, images_BSS3 = self.config.data, to_float(batch['image'])
        if train:
            images_BSS3 = jitter_views(self.config.seed, batch['view'], images_BSS3, data.color_jitter)
        x_LBND = nnx.merge(self.encoder, frozen['encoder'])(normalize(images_BSS3, data.mean, data.std), every_layer=True)
        features = {name: pool(x_LBND, name).swapaxes(0, 1) for name in ('cls', 'mean')}
        return {name: (features[name] - known['mean']) / known['deviation'] for name, known in frozen['statistics'].items()} or features

    def loss(self, params, batch, keys_B, *, progress, train):
        logits = nnx.merge(self.heads, params)(batch['cls'], batch['mean'])
        labels_B, valid_B = batch['label'], batch['valid']
        losses, correct = {}, {}
        for name, logits_BLC in logits.items():
            losses_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLC, labels_B[:, None])
            losses[name] = jnp.sum(losses_BL * valid_B[:, None], axis=0)
            correct[name] = jnp.sum((jnp.argmax(logits_BLC, axis=-1) == labels_B[:, None]) * valid_B[:, None], axis=0)
        loss = sum(jnp.sum(losses_L) for losses_L in losses.values())
        return loss, {'loss': loss, 'weight': jnp.sum(valid_B), 'correct': jnp.stack([correct[name] for name in KINDS])}

    def summarize(self, sums):
        """`accuracy` is that of the best head, `layer_NN/cls`, `/mean` and `/both` those of all; `loss` is the mean of all heads."""
        accuracies_KL = sums['correct'] / sums['weight']
        each = {f'layer_{layer + 1:02d}/{kind}': accuracies_KL[i, layer] for i, kind in enumerate(KINDS) for layer in range(accuracies_KL.shape[1])}
        return {'loss': sums['loss'] / sums['weight'] / accuracies_KL.size, 'accuracy': jnp.max(accuracies_KL)} | each

    def describe(self):
        return {'architecture': 'layer_probes', 'layers': self.config.model.depth, 'width': self.config.model.width,
                'num_classes': self.config.num_classes, 'encoder': self.config.encoder}

    def finish(self, params, workdir: Path, batches):
        """Writes and prints the table of all layers: accuracies of the heads and of k-NN, `probe.json`."""
        config, held_out = self.config, collect(batches('evaluate', 2 ** 62))
        heads = jax.jit(lambda cls, mean: nnx.merge(self.heads, params)(cls, mean))
        logits = heads(held_out['cls'], held_out['mean'])
        table = {f'linear {kind}': np.mean(np.argmax(logits[kind], -1) == held_out['label'][:, None], axis=0) for kind in KINDS}
        if config.neighbours.images:
            bank = collect(batches('train', config.neighbours.images))
            for kind in ('cls', 'mean'):
                table[f'k-NN {kind}'] = np.array([
                    np.mean(nearest_neighbours(bank[kind][:, layer], bank['label'], held_out[kind][:, layer], config.num_classes,
                                               config.neighbours) == held_out['label']) for layer in range(config.model.depth)])
        if jax.process_index() == 0:
            (workdir / 'probe.json').write_text(json.dumps({name: values.tolist() for name, values in table.items()}) + '\n')
            print(_as_text(table, len(held_out['label'])))


def nearest_neighbours(bank_ND, labels_N, queries_BD, num_classes: int, config: NeighboursConfig, chunk: int = 1000) -> np.ndarray:
    """The class that the nearest images of the bank vote for, int [B]; features float32, any length."""
    @jax.jit
    def vote(queries):
        similarity_BN = queries @ normalize_rows(bank_ND).T
        nearest_BK, index_BK = jax.lax.top_k(similarity_BN, min(config.count, len(bank_ND)))
        votes_BKC = jax.nn.one_hot(jnp.asarray(labels_N)[index_BK], num_classes) * jnp.exp(nearest_BK / config.temperature)[..., None]
        return jnp.argmax(jnp.sum(votes_BKC, axis=1), axis=-1)

    def normalize_rows(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return np.concatenate([vote(normalize_rows(queries_BD[i:i + chunk])) for i in range(0, len(queries_BD), chunk)])


def collect(batches) -> dict:
    """The valid rows of all batches: `cls`, `mean` and `label`."""
    parts = [{name: batch[name][batch['valid'] > 0] for name in ('cls', 'mean', 'label')} for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _as_text(table: dict, images: int) -> str:
    names = list(table)
    lines = ['layer  ' + '  '.join(f'{name:>11}' for name in names)]
    lines += [f'{layer + 1:5}  ' + '  '.join(f'{table[name][layer]:11.4f}' for name in names) for layer in range(len(table[names[0]]))]
    best = {kind: max(((values[layer], layer, name) for name, values in table.items() if name.startswith(kind) for layer in range(len(values))))
            for kind in ('linear', 'k-NN') if any(name.startswith(kind) for name in names)}
    return '\n'.join([f'accuracy on {images} held-out images:', *lines,
                      *(f'best {name}: {value:.4f} at layer {layer + 1}' for value, layer, name in best.values())])


def _heads(config: Config, rngs: nnx.Rngs) -> LayerProbes:
    return LayerProbes(config.model.depth, config.model.width, config.num_classes, rngs=rngs)


def make(config: Config) -> Probe:
    def build():
        return Encoder(config.model, config.grid, masked=False, dtype=config.compute_dtype, rngs=nnx.Rngs(config.seed))
    encoder, abstract = nnx.split(nnx.eval_shape(build))
    if config.encoder:
        params, description = load_params(config.encoder)
        frozen, _ = adapt_encoder(params, description['architecture'], config, config.encoder)
        check_params(nnx.to_pure_dict(abstract), frozen, config.encoder)
    else:
        frozen = nnx.to_pure_dict(nnx.state(build()))
    heads = nnx.graphdef(nnx.eval_shape(lambda: _heads(config, nnx.Rngs(0))))
    return Probe(config, encoder, heads, {'encoder': jax.device_get(frozen), 'statistics': {}})
