"""The parts of `gpu_benchmark`, each a process of its own: python -m beit_jax.performance.gpu_parts
PART FILE [--rehearse]. What is measured is added to FILE at once, a line of JSON each time."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.models.tokenizers import PRECISIONS, make_tokenizer, precision_here
from beit_jax.performance.programs import IMAGES
from beit_jax.performance.step_benchmark import GIVEN, WHOLE, Ours, Product, seconds_a_step
from beit_jax.settings.mapping import task_config
from beit_jax.tasks.pretrain import Config, make_on_given_tokens
from beit_jax.train import state as states

# configs/pretrain_imagenet1k.py, without ml_collections; tests/performance compares them
RECIPES = {
    'base': {
        'model': {'size': 'base', 'layer_scale': 0.1, 'unroll': 24},
        'optimizer': {'clip_norm': 3.0},
    },
    'large': {
        'model': {'size': 'large', 'layer_scale': 1e-5, 'unroll': 24},
        'optimizer': {'clip_norm': 1.0},
    },
}
_TINY = {  # what a rehearsal changes
    'batch_size': 2,
    'compute_dtype': 'float32',
    'data': {'image_size': 48},
    'mask': {'patches': 4, 'min_block': 2},
    'model': {'size': 'tiny', 'width': 64, 'depth': 2, 'heads': 2, 'hidden': 128, 'unroll': 2},
}
_TURNS = 5
_TOKENS_IN = 'float16'  # as DALL-E's own code computes on a GPU
_OF_A_GPU = {  # what a part leaves out where there is none
    'profile': 'the operations, which a GPU alone tells of',
    'target': "XLA's description of the device",
    'tokenizer': 'float16 and TF32',
}
PEERS = ('compiled-fused', 'compiled', 'eager-fused', 'eager')  # the likeliest best first

Tell = Callable[[dict], None]


def settings(name: str) -> dict:
    """Those of a recipe of ImageNet-1k's, as its config.json has them."""
    recipe = RECIPES[name]
    common = {'positions': 'shared_bias', 'patch_size': 16, 'drop_path': 0.1}
    return {
        'task': 'pretrain',
        'epochs': 800.0,
        'batch_size': 2048,
        'compute_dtype': 'bfloat16',
        'model': common | recipe['model'],
        'optimizer': {'lr': 1.5e-3, 'warmup_epochs': 10.0} | recipe['optimizer'],
    }


def numerics(config: Callable[..., Config], tell: Tell) -> None:
    """Loss and gradients of one step on given tokens, of each attention in bfloat16, against plain
    float32: the norm of the difference over the norm, of all gradients and of each kind."""
    exact = _gradients(config('base', 32, compute_dtype='float32', attention='plain'))
    all_errors = {}
    for attention in _attentions():
        loss, found = _gradients(config('base', 32, attention=attention))
        errors = {'loss': abs(loss - exact[0]) / abs(exact[0])}
        parts = {'all': lambda name: True, 'position bias': lambda name: 'position_bias' in name}
        for part, belongs in parts.items():
            names = [name for name in exact[1] if belongs(name)]
            difference = np.sqrt(sum(np.sum((found[n] - exact[1][n]) ** 2) for n in names))
            errors[part] = difference / np.sqrt(sum(np.sum(exact[1][n] ** 2) for n in names))
        norms = {name: np.linalg.norm(array) for name, array in exact[1].items()}
        worst = {n: np.linalg.norm(found[n] - exact[1][n]) / norms[n] for n in norms if norms[n]}
        name = max(worst, key=worst.get)
        errors |= {f'worst ({name})': worst[name]}
        all_errors[attention] = {part: float(error) for part, error in errors.items()}
        tell({'errors': all_errors})


def base(config: Callable[..., Config], tell: Tell) -> None:
    """Seconds of the whole step and of that on given tokens, 256 images, ours and PyTorch's."""
    _race(config('base', 256), _attentions(), PEERS, tell)


def large(config: Callable[..., Config], tell: Tell) -> None:
    """The same of the large model with 128 images, of the best attention and variant."""
    _race(config('large', 128), _attentions()[-1:], PEERS[:1], tell)


def tokenizer(config: Callable[..., Config], tell: Tell) -> None:
    """Seconds of DALL-E's tokenizer alone in each precision, 256 images, ours and PyTorch's in
    turns, and the share of ids that are those of ours in float32."""
    of, rng, tokenizers, exact = config('base', 256), np.random.default_rng(0), {}, None
    sides = tuple(8 * side for side in of.grid)
    images = jnp.asarray(rng.random((of.batch_size, *sides, 3), np.float32))

    def weights(leaf):
        deviation = math.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.0
        return deviation * rng.standard_normal(leaf.shape, np.float32)

    shapes = make_tokenizer('dvae', {}, sides).abstract()['encoder']
    params = jax.device_put({'encoder': jax.tree.map(weights, shapes)})
    for precision in dict.fromkeys(map(precision_here, ('float32', _TOKENS_IN, *PRECISIONS))):
        ours = _OurTokenizer(precision, params, images)
        exact = ours.ids if exact is None else exact
        chosen = dataclasses.replace(of.tokenizer, precision=precision)
        there = {'ours': ours, 'PyTorch': _peer(dataclasses.replace(of, tokenizer=chosen))}
        seconds = {name: [] for name in there}
        for _ in range(_TURNS):
            for name, one in there.items():
                seconds[name].append(seconds_a_step(one.encode, one.wait, least=0.2))
        tokenizers[precision] = {'seconds': seconds, 'as in float32': np.mean(ours.ids == exact)}
        tell({'batch_size': of.batch_size, 'tokenizers': tokenizers})


def whole(config: Callable[..., Config], tell: Tell) -> None:
    """Ours alone, with 256 images."""
    _race(config('base', 256), _attentions()[-1:], (), tell)


def same_bits(config: Callable[..., Config], tell: Tell) -> None:
    """Digests of all parameters after five steps, taken twice from the same state."""
    ours = Ours(config('base', 64))
    for name in ('first', 'second'):
        ours.restart()
        for _ in range(5):
            ours.step()
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(ours.state['params']):
            digest.update(np.asarray(leaf).tobytes())
        tell({name: digest.hexdigest()})


def profile(config: Callable[..., Config], tell: Tell) -> None:
    """Milliseconds a step of the operations that take longest, of three steps of 256 images."""
    steps, ours = 3, Ours(config('base', 256))
    folder = Path(sys.argv[2]).with_name('profile')
    with jax.profiler.trace(str(folder)):
        for _ in range(steps):
            ours.step_on_given_tokens()
        ours.wait()
    newest = max(folder.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    total = {}
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines if 'GPU' in plane.name else ():
            for event in line.events if line.name.startswith('Stream') else ():
                total[event.name] = total.get(event.name, 0.0) + event.duration_ns / 1e6 / steps
    longest = sorted(total.items(), key=lambda entry: -entry[1])[:30]
    tell({'milliseconds': dict(longest), 'sum': sum(total.values())})


def target(config: Callable[..., Config], tell: Tell) -> None:
    """Has XLA write its description of the device, by which `plan` compiles elsewhere."""

    @jax.jit
    def beit_target(x):
        return x @ x

    beit_target(jnp.ones((256, 256), jnp.bfloat16)).block_until_ready()
    device = jax.devices()[0]
    tell({'device': device.device_kind, 'jax': jax.__version__, 'memory': device.memory_stats()})


def _attentions() -> tuple[str, ...]:
    """The ways that the device has, the fastest last."""
    return ('plain', 'cudnn') if jax.default_backend() == 'gpu' else ('plain',)


def _race(config: Config, attentions: tuple[str, ...], peers: tuple[str, ...], tell: Tell) -> None:
    """Times what is there in turns, and again after each that joins: whoever is ended early leaves
    those that had joined."""
    makers = {
        f'ours, {attention}': lambda attention=attention: Ours(_with_attention(config, attention))
        for attention in attentions
    }
    for variant in peers:
        makers[f'PyTorch, {variant}'] = lambda variant=variant: _peer(config, variant)
    product, rates = Product(config.compute_dtype), []
    there, seconds, facts = {}, {}, {}

    def turn():
        rates.append(product.rate())
        for name, one in there.items():
            for what, step in ((WHOLE, one.step), (GIVEN, one.step_on_given_tokens)):
                taken = seconds.setdefault(f'{name}: {what}', [])
                taken.append(seconds_a_step(step, one.wait, least=0.5))
        tell({'seconds': seconds, 'product': statistics.median(rates)})

    precision = precision_here(config.tokenizer.precision)
    tell({'batch_size': config.batch_size, 'tokenizer_precision': precision})
    tell({'device': jax.devices()[0].device_kind})
    for name, make in makers.items():
        there[name] = one = make()
        facts[name] = {'compile_seconds': one.compile_seconds}
        if isinstance(one, Ours):
            used = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
            facts[name] |= {'planned': one.memory, 'peak of the process': used, 'flops': one.flops}
        tell({'facts': facts})
        turn()
    for _ in range(_TURNS - 1):
        turn()


class _OurTokenizer:
    """DALL-E's, on pictures. `ids`: theirs, int32 [B, P]."""

    def __init__(self, precision: str, params, images):
        encode = jax.jit(make_tokenizer('dvae', {}, images.shape[1:3], precision).encode)
        self._encode = functools.partial(encode, params, images)
        self.encode()
        self.ids = np.asarray(self._last)

    def encode(self):
        self._last = self._encode()

    def wait(self):
        jax.block_until_ready(self._last)


def _peer(config, variant=None):
    """A variant of PyTorch's step, or its tokenizer."""
    from beit_jax.performance.torch_benchmark import Peer, PeerTokenizer

    return Peer(config, variant) if variant else PeerTokenizer(config, compiled=False)


def _with_attention(config: Config, attention: str) -> Config:
    model = dataclasses.replace(config.model, attention=attention)
    return dataclasses.replace(config, model=model)


def _gradients(config: Config) -> tuple[float, dict[str, np.ndarray]]:
    """(loss, {name: float32 gradient}) of the same random pictures, tokens and parameters."""
    config = config.resolve(IMAGES, ())
    task, rng = make_on_given_tokens(config), np.random.default_rng(0)

    def weights(leaf):
        return (rng.standard_normal(leaf.shape, np.float32) * 0.02).astype(leaf.dtype)

    params = jax.tree.map(weights, states.abstract_params(task))
    (rows, columns), count = config.grid, config.batch_size
    batch = {
        view.name: rng.integers(0, 256, (count, *view.shape), view.dtype) for view in task.views
    }
    batch |= {
        'tokens': rng.integers(0, 8192, (count, rows * columns), np.uint16),
        'label': np.zeros(count, np.int32),
        'view': np.arange(count, dtype=np.uint32),
        'grey': np.full(count, 0.5, np.float32),
        'valid': np.ones(count, np.float32),
    }

    @jax.jit
    def gradients(params):
        key = jax.random.key(0)
        keys_B = jax.random.split(key, count)
        inputs = task.augment(batch, key, keys_B)
        loss = lambda params: task.loss(params, inputs, keys_B, progress=0.0, train=True)
        return jax.value_and_grad(loss, has_aux=True)(params)

    exact = config.compute_dtype == 'float32'
    with jax.default_matmul_precision('highest' if exact else 'default'):
        (loss, _), found = gradients(params)
    named = jax.tree_util.tree_leaves_with_path(found)
    return float(loss), {
        jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf, np.float32)
        for path, leaf in named
    }


def main(part: str, file: str, *options: str) -> None:
    rehearse = '--rehearse' in options

    def config(name: str, batch_size: int, attention: str = 'auto', **changes) -> Config:
        chosen = settings(name) | {'batch_size': batch_size} | changes
        chosen |= {'tokenizer': {'precision': _TOKENS_IN}}
        if rehearse:
            chosen |= _TINY | {'model': chosen['model'] | _TINY['model']}
        return _with_attention(task_config(chosen), attention)

    with open(file, 'a') as lines:

        def tell(found: dict) -> None:
            lines.write(json.dumps(found) + '\n')
            lines.flush()

        if jax.default_backend() != 'gpu':
            tell({'without a GPU': _OF_A_GPU.get(part, "cuDNN's attention")})
        globals()[part](config, tell)


if __name__ == '__main__':
    main(*sys.argv[1:])
