"""Hosts that differ, or of which one is not ready: all of them end, before the first step, with
words that name what and where."""

import json

from PIL import Image
import pytest

from beit_jax.errors import RequestError, StorageError
from beit_jax.settings.mapping import task_config
from beit_jax.settings.overrides import flat
from beit_jax.train import opening
from beit_jax.train.processes import agreement
from beit_jax.train.workdir.changes import FREE_SETTINGS, is_among, settings_of
from tests import tiny


def end(pair) -> list[tuple[int, str]]:
    """(status, the last line on stderr) of each process."""
    found = []
    for process in pair:
        _, err = process.communicate(timeout=120)
        assert 'Traceback' not in err, err
        found.append((process.returncode, err.splitlines()[-1]))
    return found


def test_another_command(tokenizer_dir, tmp_path):
    changed = ('optimizer.lr=0.02', 'seed=1', 'batch_size=7', 'total_steps=6', 'target=pixels')
    second = [f'--config.{setting}' for setting in changed]
    command = tiny.arguments(tmp_path / 'run', tokenizer_dir)
    for status, line in end(tiny.start_pair(command, second=second)):
        assert status == 2
        for name, first, other in (
            ('optimizer.lr', '0.01', '0.02'),
            ('seed', '0', '1'),
            ('batch_size', '8', '7'),
            ('total_steps', '5', '6'),
            ('target', '"tokens"', '"pixels"'),
        ):
            assert f'config.{name} is {first} on host 0, {other} on host 1' in line
        assert line.count('on host 0') == 5
    assert not (tmp_path / 'run').exists()


def test_other_data(tokenizer_dir, tmp_path):
    for name, count in (('a', 23), ('b', 29)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new('RGB', (23, 29), (i, 0, 0)).save(tmp_path / name / f'{i}.png')
    data = {'name': 'folder', 'path': str(tmp_path / 'a'), 'holdout': 0.2}
    command = tiny.arguments(tmp_path / 'run', tokenizer_dir, data=data)
    second = (f'--config.data.path={tmp_path / "b"}', '--config.data.workers=2')
    for status, line in end(tiny.start_pair(command, second=second)):
        assert status == 2 and 'data: examples is 18 on host 0, 23 on host 1; data: man' in line
        assert 'config' not in line
    assert not (tmp_path / 'run').exists()


@pytest.mark.once
def test_another_work_directory(tokenizer_dir, tmp_path):
    command = tiny.arguments(tmp_path / 'run', tokenizer_dir)
    second = [f'--workdir={tmp_path / "other"}']
    for status, line in end(tiny.start_pair(command, second=second)):
        assert status == 2 and f'workdir={tmp_path / "other"} is another folder here' in line
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'other').exists()


def test_one_that_is_not_ready(tokenizer_dir, tmp_path):
    """Its settings are refused, and then its data."""
    command = tiny.arguments(tmp_path / 'run', tokenizer_dir)
    first, second = end(tiny.start_pair(command, second=['--config.batch_size=0']))
    assert first == (2, second[1].replace('error: ', 'error: host 1: ')) and second[0] == 2
    assert 'batch_size is 0' in second[1]
    data = {'name': 'folder', 'path': str(tmp_path), 'holdout': 0.2}
    Image.new('RGB', (23, 29)).save(tmp_path / 'a.png')
    command = tiny.arguments(tmp_path / 'run', tokenizer_dir, data=data)
    nowhere = f'--config.data.path={tmp_path / "nowhere"}'
    first, second = end(tiny.start_pair(command, second=[nowhere]))
    assert first == (2, second[1].replace('error: ', 'error: host 1: ')) and second[0] == 2
    assert 'nowhere' in second[1]


@pytest.fixture
def others(monkeypatch):
    """What the other processes give, after the text of this one."""
    texts = []
    monkeypatch.setattr(agreement, 'gathered', lambda text: [text, *texts])
    return texts


def other_value(value):
    if isinstance(value, (list, tuple)):
        return [*value, 1]
    return 'other' if isinstance(value, str) else not value


@pytest.mark.parametrize('task', ['pretrain', 'classify', 'segment'])
def test_every_setting_that_differs_is_named(task, tokenizer_dir, others, monkeypatch, tmp_path):
    """But those that a host may have of its own."""
    config = task_config(
        {
            'pretrain': lambda: tiny.settings(tokenizer_dir),
            'classify': tiny.classify_settings,
            'segment': tiny.segment_settings,
        }[task]()
    )
    facts = {}
    monkeypatch.setattr(opening, 'check_same', facts.update)
    opening.open_run(config, tmp_path, 'train')
    settings = flat(settings_of(config))
    for name, value in settings.items():
        others[:] = [json.dumps(facts | {f'config.{name}': other_value(value)})]
        if is_among(name, opening.HOST_SETTINGS):
            assert f'config.{name}' not in facts and is_among(name, FREE_SETTINGS)
            continue
        with pytest.raises(RequestError, match=rf'\(config\.{name} is .* on host 0, .* on host 1'):
            agreement.check_same(facts)
    assert sum(name.startswith('config.') for name in facts) > 0.8 * len(settings)
    assert {'--mode', 'the code of beit_jax', 'the version of jax', 'data: manifest'} <= set(facts)
    others[:] = [json.dumps(facts | {'data: manifest': 'ab'})]
    with pytest.raises(RequestError, match=r'\(data: manifest is .* on host 0, "ab" on host 1\)'):
        agreement.check_same(facts)
    others[:] = [json.dumps(facts)]
    agreement.check_same(facts)


def test_many_hosts(others):
    others += [json.dumps({'a': 2 if i == 5 else 1}) for i in range(9)]
    with pytest.raises(RequestError, match=r'a is 1 on hosts 0, 1, 2, 3, ..., 2 on host 6\)'):
        agreement.check_same({'a': 1})


def test_together(others):
    """To try again helps only where it helps all."""
    others += ['null', json.dumps(['StorageError', 'full'])]
    with pytest.raises(StorageError, match=r'^host 2: full$'), agreement.together():
        pass
    with pytest.raises(RequestError, match=r'^wrong$'), agreement.together():
        raise RequestError('wrong')
    others[0] = json.dumps(['RequestError', 'bad'])
    with pytest.raises(RequestError, match=r'^host 1: bad$'), agreement.together():
        pass
    with pytest.raises(RequestError, match=r'^mine$'), agreement.together():
        raise StorageError('mine')
    others[:] = ['null']
    with agreement.together():
        pass


def test_the_code_is_what_its_sources_are(tmp_path, monkeypatch):
    before = opening._code()
    (tmp_path / '__init__.py').write_text('')
    monkeypatch.setattr(opening.beit_jax, '__file__', str(tmp_path / '__init__.py'))
    other = opening._code()
    differing = [name for name in before if before[name] != other[name]]
    assert differing == ['the code of beit_jax']
