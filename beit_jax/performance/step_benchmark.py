"""How fast a recipe's pre-training step is on the device at hand, beside a matrix product and
beside PyTorch, in turns and in one run."""

from collections.abc import Callable
import importlib.util
import math
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.errors import check
from beit_jax.models.tokenizers import precision_here
from beit_jax.performance.programs import peak_in_turns, step_programs
from beit_jax.runtime import refuse_x64
from beit_jax.settings.run import RunConfig
from beit_jax.train.sharding import batch_sharding, make_mesh, replicated, state_shardings

WHOLE, GIVEN = 'whole step', 'step on given tokens'


def benchmark_step(config: RunConfig, repeats: int, variants: tuple[str, ...]) -> dict:
    """Seconds of the whole step (tokenizer included) and of the step on given tokens, of ours and
    of PyTorch's variants.

    An empty config.tokenizer.path means DALL-E's tokenizer with random weights. Pictures are random
    and lie on the device.

    Raises:
      RequestError: another task, or one that the peer does not do.
    """
    # or JAX leaves PyTorch a quarter of the memory
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    refuse_x64()
    _check(config, variants)
    ours, peers = Ours(config), {}
    if variants:
        from beit_jax.performance.torch_benchmark import Peer

        peers = {name: Peer(config, name) for name in variants}
    seconds, product, rates = {}, Product(config.compute_dtype), []
    for _ in range(repeats):
        rates.append(product.rate())
        for name, one in {'ours': ours, **peers}.items():
            for what, step in ((WHOLE, one.step), (GIVEN, one.step_on_given_tokens)):
                seconds.setdefault((name, what), []).append(seconds_a_step(step, one.wait))
    rate = statistics.median(rates)
    rows = []
    for (name, what), times in seconds.items():
        median = statistics.median(times)
        rows.append(
            {
                'name': name,
                'what': what,
                'seconds': {'median': median, 'min': min(times), 'max': max(times)},
                'images_per_second': config.batch_size / median,
                'utilisation': ours.flops[what] / median / rate,
            }
        )
    first = rows[0]  # our whole step
    peer_memory = max((peer.peak_memory() for peer in peers.values()), default=0)
    return {
        'device': jax.devices()[0].device_kind,
        'devices': jax.device_count(),
        'jax': jax.__version__,
        'batch_size': config.batch_size,
        'compute_dtype': config.compute_dtype,
        'tokenizer_precision': precision_here(config.tokenizer.precision),
        'repeats': repeats,
        'flops': ours.flops,
        'product_flops_per_second': rate,
        'rows': rows,
        'images_per_second': first['images_per_second'],
        'utilisation': first['utilisation'],
        'ratio': {what: _ratio(seconds, what, peers) for what in (WHOLE, GIVEN) if peers},
        'compile_seconds': {'ours': ours.compile_seconds}
        | {name: peer.compile_seconds for name, peer in peers.items()},
        'peak_memory': {'ours': ours.memory, 'PyTorch, all variants': peer_memory},
    }


def _check(config: RunConfig, variants: tuple[str, ...]) -> None:
    check(
        config.task == 'pretrain',
        f'config.task={config.task}: benchmark step measures pre-training.',
    )
    check(
        config.target == 'tokens',
        f'config.target={config.target}: benchmark step measures pre-training on tokens.',
    )
    if not variants:
        return
    check(
        config.predict == 'masked',
        f'config.predict={config.predict}: --peer predicts hidden patches alone.',
    )
    check(
        not config.tokenizer.path,
        "--peer has DALL-E's tokenizer: leave config.tokenizer.path empty.",
    )
    check(
        config.model.channels == 3 and isinstance(config.data.image_size, int),
        '--peer is shown squares of three channels: leave --peer out for other pictures.',
    )
    there = importlib.util.find_spec('torch') is not None
    check(there, '--peer takes PyTorch: pip install torch.')
    count = jax.device_count()
    check(count == 1, f'--peer runs on one device, here are {count}.')


def _ratio(seconds: dict, what: str, peers) -> float:
    """How many times as long the best of the peers takes as ours, turn by turn."""
    best = min((seconds[name, what] for name in peers), key=statistics.median)
    return statistics.median(theirs / ours for ours, theirs in zip(seconds['ours', what], best))


class Ours:
    """The programs of a run, on random pictures.

    Attributes:
      flops: of the method, of the whole step and of that on given tokens.
      compile_seconds: of all programs.
      memory: bytes a device by the compiler's account.
    """

    def __init__(self, config: RunConfig):
        mesh, rng = make_mesh(config.mesh), np.random.default_rng(0)
        programs = step_programs(config, mesh, dall_e=True)
        self.flops = {
            WHOLE: sum(program.flops for program in programs.values()) // jax.device_count(),
            GIVEN: programs['step'].flops // jax.device_count(),
        }
        began = time.perf_counter()
        compiled = {
            name: program.function.lower(*program.inputs).compile()
            for name, program in programs.items()
        }
        self.compile_seconds = time.perf_counter() - began
        memories = [program.memory_analysis() for program in compiled.values()]
        self.memory = peak_in_turns(list(filter(None, memories)))
        self._step, self._tokenize = compiled['step'], compiled['tokenizer']

        def random(leaf):
            if leaf.dtype == jnp.bool_:
                return np.zeros(leaf.shape, bool)  # no record is replaced
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                return rng.integers(0, 256, leaf.shape).astype(leaf.dtype)
            return np.ones(leaf.shape, leaf.dtype)

        def weights(leaf):
            return (rng.standard_normal(leaf.shape, np.float32) * 0.02).astype(leaf.dtype)

        def zeros(leaf):
            return np.zeros(leaf.shape, leaf.dtype)

        (state, batch), (frozen, small) = programs['step'].inputs, programs['tokenizer'].inputs
        state = {
            name: jax.tree.map(weights if name == 'params' else zeros, tree)
            for name, tree in state.items()
        }
        batches = jax.tree.map(random, batch), jax.tree.map(random, small)
        self._first_state, self._shardings = state, state_shardings(mesh, state)
        self._batch, self._small = jax.device_put(batches, batch_sharding(mesh))
        self._frozen = jax.device_put(jax.tree.map(weights, frozen), replicated(mesh))
        self.restart()
        self.step()

    def restart(self):
        """Back to the state before the first step."""
        self.state = jax.device_put(self._first_state, self._shardings)

    def step(self):
        self._learn(self._tokenize(self._frozen, self._small)['tokens'])

    def step_on_given_tokens(self):
        self._learn(self._batch['tokens'])

    def _learn(self, tokens):
        self.state, self._metrics = self._step(self.state, self._batch | {'tokens': tokens})

    def wait(self):
        jax.block_until_ready(self._metrics)


class Product:
    """What the device makes of a large matrix product of the compute dtype."""

    def __init__(self, dtype: str):
        self._size = 2048 if jax.default_backend() == 'cpu' else 8192
        self._matrix = jnp.ones((self._size,) * 2, dtype)
        self._multiply = jax.jit(lambda a: a @ a)
        self._multiply(self._matrix).block_until_ready()

    def rate(self) -> float:
        """Floating-point operations a second."""

        def multiply():
            self._result = self._multiply(self._matrix)

        return (
            2
            * self._size**3
            / seconds_a_step(multiply, lambda: jax.block_until_ready(self._result))
        )


def seconds_a_step(step: Callable, wait: Callable, least: float = 1.0) -> float:
    """Over as many as take `least` seconds, 30 at most; the first does not count."""
    began = time.perf_counter()
    step(), wait()
    count = min(30, max(1, math.ceil(least / (time.perf_counter() - began))))
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - began) / count
