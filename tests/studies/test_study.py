"""A study: which runs it has, in which order, with which settings; that they are done once; and
what the report says of them."""

import fcntl
import json
from pathlib import Path

import pytest

from beit_jax.errors import RequestError
from beit_jax.studies import running, study
from beit_jax.tools import study as tool
from tests.studies import small_study
from tests.studies.small_study import BEST, STUDY, run, write


def test_runs_and_their_settings(path, ran, tmp_path):
    workdir = tmp_path / 'w'
    run(path, workdir)
    names = [str(folder.relative_to(workdir)) for folder in ran]
    place = {name: i for i, name in enumerate(names)}
    # the tokenizer of two arms is trained once a seed; rates are chosen once; each of 3 arms x 2
    # tasks x 2 seeds
    assert sum(name.startswith('tokenizer/') for name in names) == 2
    assert sum(name.startswith('pretrain/') for name in names) == 4
    assert sum('choose_lr' in name for name in names) == 3 * 2 * 3 and len(names) == 2 + 4 + 18 + 12
    for name, config in zip(names, ran.values()):
        stage, *_, seed = name.split('/')
        chooses = seed.startswith('choose')
        assert config.seed == (study.CHOOSING_SEED if chooses else int(seed.removeprefix('seed')))
        if stage == 'tokenizer':
            assert config.model.vocabulary == 64
        elif stage == 'pretrain':
            tokenizer = f'tokenizer/model.vocabulary=64/{seed}'
            assert config.tokenizer.path == str(workdir / tokenizer / 'tokenizer')
            assert config.total_steps == 131
            assert config.mask.kind == ('random' if 'mask.kind=random' in name else 'blockwise')
            assert place[tokenizer] < place[name]
        else:
            _, arm, task, _ = name.split('/')
            assert config.data.labels_per_class == {'few': 3, 'many': 11}[task]
            assert config.data.subset_seed == config.seed
            assert config.data.evaluate_split == ('validation' if chooses else '')
            masks = 'mask.kind=random' if arm == 'random_masks' else 'plain'
            encoder = f'pretrain/model.vocabulary=64+{masks}/seed{config.seed % 1000}'
            assert config.init == ('' if arm == 'from_scratch' else str(workdir / encoder))
            if chooses:
                assert seed == f'choose_lr{config.optimizer.lr:g}_seed0'
            else:
                assert config.optimizer.lr == BEST[task]
                for rate in (0.25, 0.5, 1.0):
                    assert place[f'finetune/{arm}/{task}/choose_lr{rate:g}_seed0'] < place[name]


def test_rates_chosen_with_encoders_of_several_seeds(path, ran, tmp_path, monkeypatch):
    """By their mean: with the first seed's encoder alone another rate would be chosen."""
    write(path, choosing_seeds=2)
    scores = {0.25: (0.7, 0.1), 0.5: (0.3, 0.6), 1.0: (0.4, 0.4)}  # by the seed

    def by_seed(config, task):
        return scores[config.optimizer.lr][config.seed - 1000] if config.seed >= 1000 else 0.9

    monkeypatch.setattr(small_study, 'score', by_seed)
    workdir = tmp_path / 'w'
    run(path, workdir, '--arms', 'tokens', '--tasks', 'few')
    folder = workdir / 'finetune' / 'tokens' / 'few'
    assert len(ran) == 2 + 2 + 6 + 2
    for seed in range(2):
        assert ran[folder / f'seed{seed}'].optimizer.lr == 0.5
        chosen = ran[folder / f'choose_lr1_seed{seed}']
        assert chosen.seed == chosen.data.subset_seed == 1000 + seed
        assert chosen.init.endswith(f'/seed{seed}')


def test_what_is_done_is_not_done_again(path, ran, tmp_path, monkeypatch):
    """Also after a run that a signal stopped, with which the study ends."""
    workdir, whole = tmp_path / 'w', running.loop.train
    monkeypatch.setattr(
        running.loop, 'train', lambda config, folder: 75 if len(ran) == 9 else whole(config, folder)
    )
    with pytest.raises(SystemExit) as stopped:
        run(path, workdir)
    assert stopped.value.code == 75 and len(ran) == 9
    run(path, workdir, '--processes', 0)
    assert '27 of 36 runs are missing' in (workdir / 'report.md').read_text() and len(ran) == 9
    monkeypatch.setattr(running.loop, 'train', whole)
    run(path, workdir)  # the fixture fails where a folder is trained twice
    assert len(ran) == 36
    run(path, workdir, '--arms', 'tokens', 'from scratch', '--tasks', 'many', '--seeds', 1)
    report = (workdir / 'report.md').read_text()
    assert len(ran) == 36 and 'few' not in report
    assert f"--workdir={workdir} --arms tokens 'from scratch' --tasks many --seeds=1`" in report


def test_runs_share_what_is_compiled(path, ran, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(tool, 'keep_programs', lambda folder: kept.append((folder, len(ran))))
    run(path, tmp_path / 'w', '--seeds', 1)
    assert kept == [(tmp_path / 'w', 0)] and ran  # before the first run
    run(path, tmp_path / 'w', '--seeds', 1, '--processes', 0)
    assert len(kept) == 1  # a report compiles nothing


def test_results_of_other_settings_are_refused(path, ran, tmp_path):
    run(path, tmp_path / 'w', '--arms', 'from scratch')
    path.write_text(path.read_text().replace('total_steps=37', 'total_steps=38'))
    other = r'was run with other settings \(total_steps was 37, is 38\): remove it'
    with pytest.raises(RequestError, match=f'many/choose_lr0.25_seed0 {other}'):
        run(path, tmp_path / 'w')


def test_a_setting_that_came_later(path, ran, tmp_path):
    """Results of before there was one are results of its default."""
    run(path, tmp_path / 'w', '--arms', 'from scratch')
    found, _ = study.load_study(path)
    done = [each for each in study.plan(found, tmp_path / 'w') if each.done]
    for each in done:
        result = each.result
        del result['config']['tracker'], result['config']['mesh']['slice']
        each.file.write_text(json.dumps(result))
    run(path, tmp_path / 'w', '--arms', 'from scratch')
    assert len(done) == len(ran)


def test_a_run_of_another_process_is_left_to_it(path, ran, tmp_path):
    found, _ = study.load_study(path)
    first, *_ = runs = study.plan(found, tmp_path / 'w')
    first.folder.mkdir(parents=True)
    with (first.folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not running._do(first, found.metric, '1 of 36') and not ran
    assert running._do(first, found.metric, '1 of 36') and len(ran) == 1
    assert running._do(first, found.metric, '1 of 36') and len(ran) == 1  # done meanwhile
    running.work(runs, found.metric)
    assert len(ran) == 36


def test_a_tokenizer_without_training(path, ran, tmp_path):
    """Random projection, fitted by its tool and given to pre-training."""
    arm = {'fit_tokenizer': '--kind random_projection', 'pretrain': '', 'finetune': ''}
    recipes = STUDY['recipes'] | {'fit_tokenizer': '--vocabulary 17 --patch_size 6 --image_size 36'}
    write(path, arms={'projection': arm}, recipes=recipes, baseline='', rates=(), seeds=1)
    run(path, tmp_path / 'w')
    folder = tmp_path / 'w' / 'fit_tokenizer' / '--kind_random_projection' / 'seed0' / 'tokenizer'
    assert (folder / 'tokenizer.safetensors').is_file()
    assert next(iter(ran.values())).tokenizer.path == str(folder)


def test_arms_that_are_taught_by_others(path, ran, tmp_path):
    """VQ-KD's teacher is the encoder of another arm, of pre-training or after labels, with the same
    seed; arms with the same teacher share its tokenizer; hours are counted with all before them."""
    vqkd = {'vqkd': '', 'pretrain': '', 'probe': ''}
    beit = {'tokenizer': '', 'pretrain': '', 'probe': ''}
    arms = {
        'BEiT': beit,
        'labels': beit | {'classify': 'data.labels_per_class=3'},
        'v2': vqkd | {'teacher': 'BEiT'},
        'v2, cls': vqkd | {'teacher': 'BEiT', 'pretrain': 'mask.exact=true'},
        'v2 by labels': vqkd | {'teacher': 'labels'},
        'v3': vqkd | {'teacher': 'v2'},
    }
    recipes = {
        name: f'configs/quickstart/{file}.py'
        for name, file in {
            'tokenizer': 'tokenizer',
            'vqkd': 'tokenizer_vqkd',
            'pretrain': 'pretrain',
            'classify': 'finetune',
            'probe': 'probe',
        }.items()
    }
    write(path, arms=arms, recipes=recipes, tasks={}, baseline='', rates=())
    workdir = tmp_path / 'w'
    run(path, workdir)
    names = [str(folder.relative_to(workdir)) for folder in ran]
    count = lambda stage: sum(name.startswith(f'{stage}/') for name in names)
    assert [count(stage) for stage in recipes] == [2, 6, 10, 2, 12]
    given = {
        'BEiT': 'pretrain/plain+plain',
        'labels': 'classify/plain+plain+data.labels_per_class=3',
        'v2': 'pretrain/by_BEiT+plain+plain',
    }
    for teacher, folder in given.items():
        taught = f'vqkd/by_{teacher}+plain/seed1'
        assert ran[workdir / taught].teacher.path == str(workdir / folder / 'seed1')
        assert names.index(f'{folder}/seed1') < names.index(taught)
        after = ran[workdir / f'pretrain/by_{teacher}+plain+plain/seed1']
        assert after.tokenizer.path == str(workdir / taught / 'tokenizer')
    labelled = ran[workdir / 'classify/plain+plain+data.labels_per_class=3/seed1']
    assert labelled.init == str(workdir / 'pretrain/plain+plain/seed1')
    assert labelled.seed == labelled.data.subset_seed == 1
    probe = ran[workdir / 'probe/plain+plain+data.labels_per_class=3+plain/seed1']
    assert probe.encoder == str(workdir / given['labels'] / 'seed1')
    for file in workdir.rglob('result.json'):  # an hour each
        file.write_text(json.dumps(json.loads(file.read_text()) | {'seconds': 3600}))
    run(path, workdir, '--processes', 0)
    report = (workdir / 'report.md').read_text()
    for arm, hours in {'BEiT': 2, 'v2': 4, 'v2, cls': 4, 'v2 by labels': 5, 'v3': 6}.items():
        assert f'| {arm} | {hours}.00 +- 0.00 | 51,200 |' in report
    alone = tmp_path / 'alone'
    run(path, alone, '--arms', 'v2', '--seeds', 1)  # its teacher comes with it
    assert (alone / 'vqkd/by_BEiT+plain/seed0/result.json').is_file()


def test_wrong_settings_are_refused_before_anything_is_run(path, ran, tmp_path):
    path.write_text(path.read_text().replace('total_steps=37', 'total_stesp=37'))
    message = r'config.total_stesp is not a setting. Did you mean total_steps\?'
    with pytest.raises(RequestError, match=message):
        run(path, tmp_path / 'w')
    assert not ran


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (
            {'arms': {'a': {'finetune': '', 'baseline': 'b'}}, 'baseline': ''},
            "the baseline 'b' is not an arm. Arms: a",
        ),
        (
            {'arms': {'a': {'pretrian': '', 'finetune': ''}}},
            "stage of the arm 'a'='pretrian' is unknown. Did you mean pretrain?",
        ),
        (
            {'arms': {'a': {'fit_tokenizer': '', 'finetune': ''}}},
            "the arm 'a' has the stage fit_tokenizer, but recipes has none",
        ),
        ({'arms': {'a': {'pretrain': ''}}}, "the arm 'a' has no 'finetune' and no 'probe'"),
        ({'tasks': {}}, "a study whose arms have 'finetune' needs tasks"),
        (
            {'baseline': 'scratch'},
            "the baseline 'scratch' is not an arm. Arms: tokens, random masks, from scratch.",
        ),
        ({'axis': 'pictures'}, "the arm 'tokens' has no line and x"),
        (
            {'arms': {'a': {'probe': '', 'teacher': 'a'}}, 'recipes': {'probe': ''}},
            "the arm 'a' has the teacher 'a': the stage vqkd, and no other, takes an arm above it",
        ),
        (
            {'arms': {'a': {'probe': '', 'vqkd': ''}}, 'recipes': {'probe': '', 'vqkd': ''}},
            "the arm 'a' has the teacher None: the stage vqkd",
        ),
        ({'tasks': {'a b': '', 'a_b': ''}}, 'make the same name of a folder: a b, a_b'),
        ({'sseds': 3}, 'Did you mean seeds?'),
    ],
)
def test_bad_studies(changed, message, path):
    write(path, **changed)
    with pytest.raises(RequestError) as error:
        study.load_study(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--study', 'nothing.py'],
            '--study=nothing.py is no file, and no name of one in configs/.',
        ),
        (['--arms', 'token'], 'Did you mean tokens?'),
        (['--tasks', 'fewer'], "--tasks='fewer' is unknown. Did you mean few?"),
        (['--processes', '-1'], 'use 1 or more, or 0'),
        (['--workdir', 'a,b'], 'use a path without commas'),
        (['--processes', '0'], 'there is no such folder to report on'),
    ],
)
def test_bad_requests(arguments, message, path, tmp_path):
    with pytest.raises(RequestError) as error:
        run(path, tmp_path / 'w', *arguments)
    assert message in str(error.value)
    assert not Path('a,b').exists()
