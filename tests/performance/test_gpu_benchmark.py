"""`benchmark gpu`: what it measures is the recipes', and what has been measured is not lost."""

import json

import pytest

from beit_jax.performance import gpu_benchmark, gpu_parts
from beit_jax.performance.gpu_benchmark import Part, benchmark_gpu
from beit_jax.performance.gpu_report import report
from beit_jax.performance.step_benchmark import GIVEN, WHOLE
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from beit_jax.tools import benchmark
from tests import tiny
from tests.tools.call import call

RECIPE = str(tiny.REPOSITORY / 'configs' / 'pretrain_imagenet1k.py')


@pytest.mark.parametrize('name', gpu_parts.RECIPES)
def test_the_recipes(name):
    ours, theirs = task_config(gpu_parts.settings(name)), task_config(load_recipe(RECIPE, name))
    for setting in ('model', 'mask', 'optimizer', 'tokenizer', 'batch_size', 'compute_dtype'):
        assert getattr(ours, setting) == getattr(theirs, setting)
    assert (ours.grid, ours.target, ours.predict) == (theirs.grid, theirs.target, theirs.predict)


def test_a_part_is_measured_once(tmp_path, monkeypatch, capsys):
    """In a process of its own, on a CPU with tiny sizes; a second call finds it."""
    monkeypatch.setattr(gpu_benchmark, 'PARTS', (Part('numerics', gpu_parts.numerics, 60),))
    said = []
    for _ in range(2):
        call(benchmark, 'gpu', '--rehearse', output=tmp_path / 'out')
        said.append(capsys.readouterr().out)
    assert 'numerics: done' in said[0] and 'numerics: at most' not in said[1]
    found = json.loads((tmp_path / 'out' / 'gpu.json').read_text())['parts']['numerics']
    assert found['whole'] and found['found']['errors']['plain']['position bias'] == 0
    table = (tmp_path / 'out' / 'gpu.md').read_text()
    assert 'plain: loss 0.00e+00' in table
    assert "numerics: without a GPU, so without cuDNN's attention" in table


def write(lines, *found, whole=True):
    """A part that has measured this, and then ends, or is killed while it writes."""
    text = ''.join(json.dumps(each) + '\n' for each in found)
    lines.write_text(text if whole else text + '{"half a li')
    return gpu_benchmark.subprocess.CompletedProcess([], 0)


def test_what_is_interrupted(tmp_path, monkeypatch):
    """A part that its time ends keeps what it has measured, and is measured again."""
    seconds = {f'ours, plain: {what}': [0.5, 0.25, 0.125] for what in (WHOLE, GIVEN)}
    seconds |= {f'PyTorch, eager: {what}': [0.75, 0.375] for what in (WHOLE, GIVEN)}
    facts = {'compile_seconds': 3.0, 'planned': 2e9, 'peak of the process': 3e9}
    facts['flops'] = {WHOLE: 6.25e12, GIVEN: 3.125e12}
    found = {'batch_size': 64, 'device': 'a GPU', 'seconds': seconds, 'product': 50e12}
    found |= {'tokenizer_precision': 'float16', 'facts': {'ours, plain': facts}}
    ended = {'base': False, 'large': True}

    def run(command, *, timeout, **_):
        name = command[3]
        done = write(tmp_path / f'{name}.jsonl', found, whole=ended[name])
        if not ended[name]:
            raise gpu_benchmark.subprocess.TimeoutExpired(command, timeout)
        return done

    monkeypatch.setattr(gpu_benchmark.subprocess, 'run', run)
    parts = [Part(name, getattr(gpu_parts, name), 50) for name in ended]
    monkeypatch.setattr(gpu_benchmark, 'PARTS', parts)
    table = benchmark_gpu(tmp_path, 100, False)
    result = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert [result[name]['whole'] for name in ended] == [False, True]
    assert result['base']['found'] == result['large']['found'] == found
    assert table == (tmp_path / 'gpu.md').read_text()
    assert '| ours, plain: whole step | 250.0 | 125.0 | 500.0 | 256 | 50.0% |' in table
    assert "whole step: PyTorch's best takes 3.00 of our time" in table  # turn by turn
    assert 'base: was ended by its time' in table and 'large: was' not in table
    ended['base'] = True
    assert 'was ended' not in benchmark_gpu(tmp_path, 100, False)
    assert json.loads((tmp_path / 'gpu.json').read_text())['parts']['base']['whole']


def test_the_same_bits():
    """Twice in a process and in two, as the parts are called."""
    found = {'first': 'a', 'second': 'a'}, {'first': 'b', 'second': 'b'}
    names = [part.name for part in gpu_benchmark.PARTS if part.function is gpu_parts.same_bits]
    took = {'whole': True, 'status': 0, 'seconds': 1.0}
    parts = {name: took | {'found': found[i % 2]} for i, name in enumerate(names)}
    table = report({'machine': 'M', 'rehearsal': False, 'parts': parts})
    for name in names[::2]:
        assert f'- {name}, twice in a process: yes\n- {name}, in two processes: no\n' in table


def test_tokenizers_in_each_precision():
    found = {
        'batch_size': 64,
        'tokenizers': {
            'float16': {
                'seconds': {'ours': [0.25, 0.125, 0.5], 'PyTorch': [0.5, 0.375, 1.0]},
                'as in float32': 0.99875,
            }
        },
    }
    took = {'whole': True, 'status': 0, 'seconds': 1.0}
    result = {
        'machine': 'here',
        'rehearsal': False,
        'parts': {'tokenizer': took | {'found': found}},
    }
    assert '| float16 | 250.0 | 500.0 | 99.875% |' in report(result)
