"""A study's probes: of which encoders, and what the report says of them."""

import csv

import numpy as np

from tests.studies.small_study import STUDY, run, write


def test_probes(path, ran, tmp_path, capsys):
    """One of each encoder and seed, and of random weights; k-NN beside the heads, by layer."""
    workdir = tmp_path / 'w'
    recipes = STUDY['recipes'] | {'probe': 'configs/quickstart/probe.py:total_steps=13'}
    arms = {
        'tokens': STUDY['arms']['tokens'] | {'probe': ''},
        'the same': STUDY['arms']['tokens'] | {'probe': ''},
        'no fine-tuning': {'pretrain': 'tokenizer.path=t', 'probe': 'model.remat=true'},
        'from scratch': {'probe': ''},
    }
    write(path, recipes=recipes, arms=arms, tasks={'few': 'data.labels_per_class=3'}, rates=())
    run(path, workdir)
    probes = {
        str(folder.relative_to(workdir / 'probe')): config
        for folder, config in ran.items()
        if config.task == 'probe'
    }
    encoders = {
        'plain': '',
        'model.vocabulary=64+plain+plain': 'pretrain/model.vocabulary=64+plain',
        'tokenizer.path=t+model.remat=true': 'pretrain/tokenizer.path=t',
    }
    assert probes.keys() == {f'{name}/seed{seed}' for name in encoders for seed in range(2)}
    for name, config in probes.items():
        history, _, seed = name.partition('/')
        encoder = encoders[history]
        assert config.encoder == (encoder and str(workdir / encoder / seed))
        assert config.seed == int(seed[-1]) and config.total_steps == 13
        assert config.model.remat == ('remat' in history)
    assert sum(config.task == 'classify' for config in ran.values()) == 4
    report, shown = (workdir / 'report.md').read_text(), capsys.readouterr().out
    knn = np.array([37.0, 37.0])  # the best layer and features of each seed
    for arm, accuracies in {'tokens': (50, 52), 'from scratch': (30, 32)}.items():
        heads = f'{np.mean(accuracies):.1f} +- {np.std(accuracies, ddof=1):.1f} (2)'
        cls, mean = ('41.0 +- 0.0 (2)', '29.0 +- 0.0 (2)')  # of the layer where they are best
        row = (
            f'| {arm} | {heads} | {cls} | {mean} | {knn.mean():.1f} +- {knn.std(ddof=1):.1f} (2) |'
        )
        assert row in report and row in shown
    assert '| the same |' not in report.partition('frozen encoder')[2]
    assert (workdir / 'probes.png').stat().st_size > 5000
    rows = {row['folder']: row for row in csv.DictReader((workdir / 'results.csv').open())}
    layers = rows['probe/plain/seed1']
    assert layers['eval/layer_02/neighbours_mean'] == '0.27'
    assert layers['eval/layer_01/neighbours_cls'] == '0.11'


def test_probes_alone(path, ran, tmp_path):
    recipes = {'probe': 'configs/quickstart/probe.py'}
    write(path, recipes=recipes, arms={'a': {'probe': ''}}, tasks={}, baseline='', rates=())
    run(path, tmp_path / 'w')
    assert len(ran) == 2
    report = (tmp_path / 'w' / 'report.md').read_text()
    assert '| a | 31.0 +- 1.4 (2) |' in report and 'report.png' not in report
