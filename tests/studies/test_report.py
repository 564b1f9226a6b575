"""What a study finds, as tables, plots and lines of a file."""

import csv
import re

import numpy as np

from tests.studies.small_study import STUDY, run, write


def test_rates_of_an_arm(path, ran, tmp_path):
    """It chooses from its own; the best is marked where it is the last of them."""
    arms = STUDY['arms'] | {'from scratch': {'finetune': 'scratch', 'rates': (0.1, 0.5)}}
    write(path, arms=arms)
    run(path, tmp_path / 'w', '--arms', 'tokens', 'from scratch', '--tasks', 'few')
    for arm, rates in (('tokens', (0.25, 0.5, 1)), ('from_scratch', (0.1, 0.5))):
        folder = tmp_path / 'w' / 'finetune' / arm / 'few'
        tried = {ran[each].optimizer.lr for each in ran if each.parent == folder}
        assert tried == set(rates) and ran[folder / 'seed0'].optimizer.lr == 0.5
    report = (tmp_path / 'w' / 'report.md').read_text()
    assert re.search(r'\| from scratch \| .*; lr 0.5 \(edge\)', report)
    assert re.search(r'\| tokens \| .*; lr 0.5 \|', report)


def test_report(path, ran, tmp_path, capsys):
    workdir = tmp_path / 'w'
    run(path, workdir)
    report = (workdir / 'report.md').read_text()
    assert report.startswith('# Arms compared.\n')
    assert 'are missing' not in report and '36 runs' in report
    values = np.array([70.0, 73.0])
    spread = f'{values.mean():.1f} +- {values.std(ddof=1):.1f}'
    cell = f'{spread} (2); +20.0 +- 0.0; lr 0.5'
    assert f'| tokens | {cell} | {cell.replace("0.5", "1 (edge)")} |' in report
    assert f'| from scratch | {spread.replace("71.5", "51.5")} (2); lr 0.5 | ' in report
    assert 'ahead of "from scratch" with' in report
    assert (
        '| random masks | 0.00 +- 0.00 | 4,192 | 0.500 +- 0.354 | - | - | 3.000 +- 0.000 |'
        in report
    )
    assert cell in capsys.readouterr().out and (workdir / 'report.png').stat().st_size > 5000
    rows = list(csv.DictReader((workdir / 'results.csv').open()))
    assert len(rows) == 36
    row = next(row for row in rows if row['folder'] == 'finetune/tokens/many/seed1')
    expected = {
        'stage': 'finetune',
        'arm': 'tokens',
        'task': 'many',
        'seed': '1',
        'chooses': '0',
        'lr': '1.0',
        'steps': '37',
        'eval/accuracy': '0.73',
    }
    assert expected.items() <= row.items()


def test_arms_with_baselines_of_their_own(path, ran, tmp_path):
    """Another than the study's; one that is left out is not compared with."""
    arms = STUDY['arms'] | {'random masks': STUDY['arms']['random masks'] | {'baseline': 'tokens'}}
    write(path, arms=arms)
    run(path, tmp_path / 'w', '--tasks', 'few')
    report = (tmp_path / 'w' / 'report.md').read_text()
    assert '| random masks | 71.5 +- 2.1 (2); +0.0 +- 0.0; lr 0.5 |' in report
    assert 'ahead of its baseline with the same seed' in report
    run(path, tmp_path / 'w', '--tasks', 'few', '--arms', 'random masks')
    report = (tmp_path / 'w' / 'report.md').read_text()
    assert '| random masks | 71.5 +- 2.1 (2); lr 0.5 |' in report


def test_lines_over_an_axis(path, ran, tmp_path):
    arms = {
        f'{level} {steps}': {
            'pretrain': f'total_steps={steps},tokenizer.path=t',
            'finetune': f'data.level={level}',
            'line': level,
            'x': steps,
        }
        for level in ('easy', 'hard')
        for steps in (131, 251)
    }
    write(path, arms=arms, axis='steps', baseline='', rates=())
    run(path, tmp_path / 'w', '--seeds', 1)
    # levels differ in the fine-tuning alone
    assert len(ran) == 2 + 4 * 2 and (tmp_path / 'w' / 'report.png').stat().st_size > 5000


def test_reports_of_a_shared_work_directory_lie_apart(path, ran, tmp_path, capsys):
    workdir, output = tmp_path / 'w', tmp_path / 'few' / 'report'
    run(path, workdir, '--output', output, '--tasks', 'few')
    assert f'--workdir={workdir} --output={output} ' in (output / 'report.md').read_text()
    assert f'-> {output}/report.md\n' in capsys.readouterr().out
    rows = list(csv.DictReader((output / 'results.csv').open()))
    assert len(rows) == len(ran) and all((workdir / row['folder']).is_dir() for row in rows)
    assert not list(workdir.glob('*.*'))
