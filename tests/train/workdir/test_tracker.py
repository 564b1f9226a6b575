"""What Weights & Biases or trackio are told, by modules that only note it."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.train.workdir.metrics import MetricsWriter
from beit_jax.train.workdir.tracker import Tracker, check_tracker

LAUNCH = {'host': 'here', 'time': 1.5, 'step': 0}


@pytest.fixture(params=['wandb', 'trackio'])
def package(request, monkeypatch):
    """A module under that name, with what was called in `told`."""
    module, told = types.ModuleType(request.param), []
    module.__spec__ = importlib.machinery.ModuleSpec(request.param, None)
    module.init = lambda **given: told.append(given)
    module.log = lambda metrics, step: told.append((step, metrics))
    module.finish = lambda: told.append('finish')
    module.Image = lambda pixels: ('Image', pixels.shape)
    module.told = told
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv(f'{request.param.upper()}_PROJECT', raising=False)
    return module


def opened(package, workdir):
    return Tracker(package.__name__, workdir, LAUNCH, {'seed': 0})


def test_what_it_is_told(package, tmp_path):
    """Numbers, also what is not finite, and pictures by their step; the same run when it goes
    on."""
    check_tracker(package.__name__)
    for start in (0, 3):
        log = MetricsWriter(tmp_path, start, 5, active=True)
        log.also(lambda: opened(package, tmp_path), refuse=True)
        pictures = {'eval/pictures': np.zeros((7, 11, 3), np.uint8)}
        log.write(start + 1, {'loss': np.float32('inf'), 'lr': 0.5} | pictures)
        log.close()
    (first, one, _), (again, two, end) = package.told[:3], package.told[3:]
    assert first == again and first['project'] == 'beit_jax' and first['resume'] == 'allow'
    assert first['config'] == {'seed': 0} and tmp_path.name in first['name']
    assert ('id' in first) == (package.__name__ == 'wandb')
    assert one == (1, {'loss': np.inf, 'lr': 0.5, 'eval/pictures': ('Image', (7, 11, 3))})
    assert (two[0], end) == (4, 'finish')
    assert (tmp_path / 'images' / 'held_out_pictures.png').is_file()


def test_one_that_fails(package, tmp_path, capsys):
    """A run that has begun goes on without it."""

    def fail(*_, **given):
        raise ValueError('no\naccount')

    log = MetricsWriter(tmp_path, 0, 5, active=True)
    log.also(lambda: opened(package, tmp_path), refuse=True)
    package.log = fail
    log.write(1, {'loss': 1.0})
    log.write(2, {'loss': 1.0})
    assert capsys.readouterr().out.count('WARNING: config.tracker fails') == 1
    package.init = fail
    log.also(lambda: opened(package, tmp_path), refuse=False)
    assert 'cannot begin (no account)' in capsys.readouterr().out
    with pytest.raises(RequestError, match=r'begin \(no account\).*tracker= for none'):
        log.also(lambda: opened(package, tmp_path), refuse=True)
    log.close()
    assert 'finish' not in package.told


def test_one_that_is_not_installed(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    check_tracker('')
    with pytest.raises(RequestError, match=r'config.tracker=wandb: it is not installed: pip'):
        check_tracker('wandb')
