"""Every setting of every recipe at its extremes: taken, or refused in a line; soon, and in little
memory.

    python -m tests.settings.test_extremes TOKENIZER RECIPES...    # what the tests start
"""

import collections
from collections.abc import Iterator
import copy
import faulthandler
import math
from pathlib import Path
import resource
import runpy
import signal
import sys
import traceback

import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.settings.overrides import flat
from tests import tiny

VALUES = (-1, 0, 1e30, 1e-30, math.nan, math.inf, '', 'x', True, 10**60)
CONFIGS = tiny.REPOSITORY / 'configs'
RECIPES = sorted(CONFIGS.glob('*.py')) + sorted(CONFIGS.glob('quickstart/*.py'))
SECONDS, BYTES = 60, 4 * 2**30  # of the processor, of memory: that a case may take


@pytest.mark.once
@pytest.mark.parametrize('opened', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_setting(opened, tokenizer_dir):
    recipes = RECIPES if opened else [path for path in RECIPES if path.parent != CONFIGS]
    command = ['-m', 'tests.settings.test_extremes', str(tokenizer_dir if opened else '')]
    done = tiny.run([*command, *map(str, recipes)], timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)
    assert int(done.stdout.split()[0]) > (20_000 if opened else 3_000)


WIDE = {'width': 2**14, 'depth': 3, 'heads': 1, 'hidden': 2**16}


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'total_steps': 60, 'epochs': -1}, r'config.epochs is -1: it takes a number in \[0, '),
        ({'total_steps': 60, 'epochs': 1.5}, 'set exactly one of them'),
        ({'total_steps': 0, 'epochs': 1e-3}, 'of 37 images that is not one'),
        (
            {'total_steps': 0, 'epochs': 1e6, 'data': {'num_examples': 10**8}},
            'more than 2147483647',
        ),
        ({'step_timeout': 1e-30}, 'use a second or more, or 0'),
        ({'optimizer': {'lr': math.nan}}, 'config.optimizer.lr is nan: it takes a number in'),
        ({'optimizer': {'eps': 10**400}}, r'eps is 10*\.\.\.0*: it takes a number in \[0, 1\]'),
        ({'data': {'std': (0.5, math.inf, 0.5)}}, r'config.data.std\[1\] is inf'),
        ({'data': {'image_size': 400}}, 'has 10000 patches of 4, more than 8192'),
        ({'model': WIDE}, 'parameters and optimizer take .* GB on each device, which has'),
        (
            {'batch_size': 2**20, 'data': {'image_size': 256}},
            'config.data.prefetch=2 take .* GB for batches, this machine has',
        ),
    ],
)
def test_refused_before_anything_is_made(changed, message, tmp_path):
    from beit_jax.train.loop import train

    with pytest.raises(RequestError, match=message):
        train(task_config(tiny.classify_settings(**changed)), tmp_path / 'run')
    assert not (tmp_path / 'run' / 'config.json').exists()


def cases(recipe: Path, tokenizer: str) -> Iterator[tuple[str, dict, bool]]:
    """(what is changed, all settings, whether of no variant) of each setting."""
    module = runpy.run_path(str(recipe))
    for variant in ('', *module['VARIANTS']):
        whole = module['get_config'](variant).to_dict()
        # the quickstart's read what earlier runs left
        whole |= {name: '' for name in ('init', 'encoder') if name in whole}
        if 'tokenizer' in whole:
            whole['tokenizer'] |= {'path': tokenizer, 'image_size': 12}
        for key, usual in flat(whole).items():
            *groups, name = key.split('.')
            for value in VALUES:
                settings = group = copy.deepcopy(whole)
                for each in groups:
                    group = group[each]
                group[name] = (value,) * len(usual) if isinstance(usual, tuple) else value
                yield f'{recipe.stem}:{variant} {key}={value!r}', settings, not variant


def open_run(config) -> None:
    """All that a run does before it allocates."""
    from beit_jax.train import state as states
    from beit_jax.train.run import Run
    from beit_jax.train.sharding import state_shardings

    run = Run(config, Path())
    state_shardings(run.mesh, states.abstract_state(run.task, run.optimizer))
    run.summary()
    run.batches._sampler.examples(run.batches._sampler.positions(0, run.batches._rows))


def outcome(settings: dict, opened: bool) -> str:
    """'taken', 'refused', or else why a case fails."""
    try:
        config = task_config(settings)
        if opened and config.data.name == 'shapes':
            open_run(config)
        return 'taken'
    except RequestError as error:
        clear = 'config' in str(error) and len(str(error)) < 600
        return 'refused' if clear else f'unclear: {error}'
    except Exception:  # is what is looked for
        return traceback.format_exc(limit=-3)


def try_all(tokenizer: str, recipes: list[str]) -> bool:
    """Whether all cases are taken or refused; prints the others, and how many were what.

    With a tokenizer runs on drawn pictures are opened, of others the settings alone are read.
    """

    def too_long(*_):
        raise TimeoutError(f'more than {SECONDS} s')

    signal.signal(signal.SIGPROF, too_long)
    counts, limit = collections.Counter(), None
    for recipe in map(Path, recipes):
        for what, settings, plain in cases(recipe, tokenizer):
            faulthandler.dump_traceback_later(20 * SECONDS, exit=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            found = outcome(settings, bool(tokenizer) and plain)
            signal.setitimer(signal.ITIMER_PROF, 0)
            counts[found if found in ('taken', 'refused') else 'failed'] += 1
            if found not in counts:
                print(f'{what}: {found}', flush=True)
            if counts['taken'] and limit is None:  # by now all is loaded
                used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
                limit = used + BYTES
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(f'after {recipe.stem}: {dict(counts)}', file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    print(f'{counts.total()} cases: {dict(counts)}')
    return not counts['failed']


if __name__ == '__main__':
    sys.exit(not try_all(sys.argv[1], sys.argv[2:]))
