"""Pre-training on photograph files of many kinds, and on files that are broken."""

import json
import os
from pathlib import Path
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train.processes.distributed import Stop
from beit_jax.train.run import Run
from tests import tiny
from tests.data.pictures.test_read import promising
from tests.photos import write_photos
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.usefixtures('one_device')


def folder_settings(tokenizer_dir, directory, **data):
    return task_config(
        tiny.settings(
            tokenizer_dir, evaluate_every=0, data={'name': 'folder', 'path': str(directory), **data}
        )
    )


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_photographs(tokenizer_dir, tmp_path):
    """Different sizes, greyscale, CMYK and RGBA among them; one of them held out."""
    count = len(write_photos(tmp_path / 'photos'))
    assert (
        loop.train(
            folder_settings(tokenizer_dir, tmp_path / 'photos', holdout=1 / count), tmp_path / 'run'
        )
        == 0
    )
    *steps, evaluation = rows(tmp_path / 'run')
    assert [row['step'] for row in steps] == [1, 2, 3, 4, 5] and steps[-1]['bad_records'] == 0
    assert evaluation['eval/loss'] > 0


def test_held_out_images_that_are_trained_on(tokenizer_dir, tmp_path):
    write_photos(tmp_path / 'photos')
    (tmp_path / 'link').symlink_to(tmp_path / 'photos')
    for name, said in (('photos', True), ('link', True), ('other', False)):
        if name == 'other':
            shutil.copytree(tmp_path / 'photos', tmp_path / name)
            next((tmp_path / name).iterdir()).unlink()
        held = str(tmp_path / name)
        config = folder_settings(tokenizer_dir, tmp_path / 'photos', evaluate_path=held)
        notes = Run(config, tmp_path / 'run').notes
        assert any('held-out images are the training images' in note for note in notes) == said


@pytest.mark.parametrize('above', ['', 'set'])
def test_parts_of_a_set(above, tokenizer_dir, tmp_path):
    """Train and test side by side, or in the one folder that there is: a line at the start of
    pre-training, and no classes; the settings that it names do."""
    for part in ('train', 'test'):
        for name in ('a', 'b'):
            write_photos(tmp_path / 'photos' / above / part / name)
    next((tmp_path / 'photos' / above / 'test' / 'a').iterdir()).unlink()
    said = f'{Path(tmp_path, "photos", above)} holds test, train, which are parts of a set: give '
    config = folder_settings(tokenizer_dir, tmp_path / 'photos', holdout=0.5)
    (note,) = Run(config, tmp_path / 'run').notes
    assert note.startswith(f'WARNING: {said}')
    given = dict(re.findall(r'--config.data.(\w+)=([^ ;]+)', note))
    classes = tiny.classify_settings(data={'name': 'folder', 'path': str(tmp_path / 'photos')})
    with pytest.raises(RequestError, match=f'^{re.escape(said)}.*They are no classes.$'):
        Run(task_config(classes), tmp_path / 'classes')
    run = Run(folder_settings(tokenizer_dir, given.pop('path'), **given), tmp_path / 'run')
    assert not run.notes and (len(run.source), len(run.held_out)) == (16, 15)
    classes['data'] |= {'path': f'{tmp_path}/photos/{above}/train', 'holdout': 0.5}
    assert Run(task_config(classes), tmp_path / 'classes').source.class_names == ('a', 'b')


def test_held_out_images_in_the_folder_of_the_training_images(tokenizer_dir, tmp_path):
    for name in ('mine', 'mine/later', 'mine_too'):
        write_photos(tmp_path / name)
    for name, said in (('mine/later', True), ('mine_too', False)):
        held = str(tmp_path / name)
        notes = Run(folder_settings(tokenizer_dir, tmp_path / 'mine', evaluate_path=held), tmp_path)
        assert any('lies in config.data.path' in note for note in notes.notes) == said


def test_bad_records_are_replaced_and_counted(tokenizer_dir, tmp_path, capsys):
    photos = write_photos(tmp_path / 'photos')
    for copy in range(4):
        for path in photos:
            shutil.copy(path, path.with_stem(f'{path.stem}_{copy}'))
    whole = photos[0].read_bytes()
    (tmp_path / 'photos' / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'photos' / 'text.jpg').write_text('not an image')
    Image.new('RGB', (1, 1)).save(tmp_path / 'photos' / 'dot.png')
    counts = []
    for name in ('once', 'again'):
        config = task_config(
            tiny.settings(
                tokenizer_dir,
                evaluate_every=0,
                total_steps=12,
                data={'name': 'folder', 'path': str(tmp_path / 'photos'), 'max_bad_share': 0.5},
            )
        )
        assert loop.train(config, tmp_path / name) == 0
        counts.append([row['bad_records'] for row in rows(tmp_path / name)])
    # 96 draws from 43 files: each is seen at least twice, and named once in each run
    assert counts[0] == counts[1] and counts[0][-1] >= 6
    out = capsys.readouterr().out
    for name in ('cut.jpg', 'text.jpg', 'dot.png'):
        named = re.findall(rf'{name} cannot be read; .*/photos/.* takes its place', out)
        assert len(named) == 2


def test_files_that_attack(tokenizer_dir, tmp_path, capsys):
    """A name that is not UTF-8, a pipe, a header that promises 13 GB, a link to itself: named with
    the reason and counted; the run goes on."""
    folder = tmp_path / 'photos'
    photo = write_photos(folder)[0].read_bytes()
    Image.new('RGB', (16, 16)).save(folder / 'bomb.png')
    bomb = promising((folder / 'bomb.png').read_bytes(), 65_000, 65_500)
    (folder / 'bomb.png').write_bytes(bomb)
    (folder / os.fsdecode(b'\xe9.jpg')).write_bytes(photo[:999])
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'loop').symlink_to('.')
    config = folder_settings(tokenizer_dir, folder, max_bad_share=0.5)
    assert loop.train(config, tmp_path / 'run') == 0
    assert rows(tmp_path / 'run')[-1]['bad_records'] >= 3  # 40 draws from 11 files
    said = capsys.readouterr()
    for name, why in (
        (r'\xe9.jpg', 'truncated'),
        ('pipe.jpg', 'a pipe or device, no regular file'),
        ('bomb.png', '65000 x 65500 pixels, more than config.data.max_pixels (178,956,970)'),
    ):
        line = rf'{re.escape(name)} cannot be read; .* takes its place \({re.escape(why)}\)'
        assert re.search(line, said.out), name
    assert f'{folder}/loop leads to a folder that it lies in: left out' in said.err


@pytest.fixture(scope='module')
def ten_thousand(tmp_path_factory):
    """10,000 JPEG files of which 100 are cut off, empty, text, or of one pixel; and the names of
    those."""
    folder, rng = tmp_path_factory.mktemp('ten_thousand'), np.random.default_rng(0)
    wholes = []
    for _ in range(16):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(
            folder / 'made.jpg', quality=50
        )
        wholes.append((folder / 'made.jpg').read_bytes())
    Image.new('RGB', (1, 1)).save(folder / 'made.jpg')
    spoiled = [wholes[0][:-100], b'', b'not an image', (folder / 'made.jpg').read_bytes()]
    (folder / 'made.jpg').unlink()
    bad = set(rng.choice(10_000, 100, replace=False).tolist())
    for i in range(10_000):
        (folder / f'{i:04}.jpg').write_bytes(spoiled[i % 4] if i in bad else wholes[i % 16])
    return folder, {f'{i:04}.jpg' for i in bad}


@pytest.mark.slow
def test_a_hundred_bad_files_of_ten_thousand(
    ten_thousand, tokenizer_dir, tmp_path, monkeypatch, capsys
):
    """An epoch ends well, names each once and counts them; and a run that stops and goes on uses
    the same substitutes."""
    folder, bad = ten_thousand
    config = task_config(
        tiny.settings(
            tokenizer_dir,
            batch_size=400,
            total_steps=25,
            log_every=5,
            evaluate_every=0,
            save_every=1000,
            data={'name': 'folder', 'path': str(folder), 'max_bad_share': 0.02},
        )
    )
    assert loop.train(config, tmp_path / 'once') == 0
    once = re.findall(
        r'warning: .*/(.*) cannot be read; .*/(.*) takes its place', capsys.readouterr().out
    )
    assert (
        {name for name, _ in once} == bad
        and len(once) == 100
        and rows(tmp_path / 'once')[-1]['bad_records'] == 100
    )
    assert bad.isdisjoint(substitute for _, substitute in once)
    monkeypatch.setattr(Stop, 'asked', lambda self, number: number == 12)
    assert loop.train(config, tmp_path / 'again') == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config, tmp_path / 'again') == 0
    out = capsys.readouterr().out
    again = re.findall(r'warning: .*/(.*) cannot be read; .*/(.*) takes its place', out)
    assert list(dict.fromkeys(again)) == once, 'what was read ahead of the stop is named again'
    assert_same_run(tmp_path / 'again', tmp_path / 'once')


@pytest.mark.once
def test_chunks(tokenizer_dir, tmp_path, monkeypatch):
    """A run in chunks goes on exactly, and is another run than one without."""
    write_photos(tmp_path / 'photos')
    in_chunks, one_by_one = (
        folder_settings(tokenizer_dir, tmp_path / 'photos', **data)
        for data in ({'chunk': 3, 'window': 2, 'lanes': 2}, {})
    )
    for name, config in (('chunks', in_chunks), ('singles', one_by_one)):
        assert loop.train(config, tmp_path / name) == 0
    assert rows(tmp_path / 'chunks')[-1]['loss'] != rows(tmp_path / 'singles')[-1]['loss']
    monkeypatch.setattr(Stop, 'asked', lambda self, number: number == 2)
    assert loop.train(in_chunks, tmp_path / 'again') == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(in_chunks, tmp_path / 'again') == 0
    assert_same_run(tmp_path / 'again', tmp_path / 'chunks')
    with pytest.raises(RequestError, match=r'config.data.chunk was 3, is 0'):
        loop.train(one_by_one, tmp_path / 'again')


def test_too_many_bad_records_end_the_run(tokenizer_dir, tmp_path, monkeypatch):
    """Files that break after the start-up check: the run stops above the share and says so."""
    photos = write_photos(tmp_path / 'photos')
    config = folder_settings(tokenizer_dir, tmp_path / 'photos')
    from beit_jax.data import pipeline

    check = pipeline.check_source

    def check_and_break(*arguments):
        check(*arguments)
        for path in photos[:3]:
            path.write_text('gone')

    monkeypatch.setattr(pipeline, 'check_source', check_and_break)
    with pytest.raises(
        RequestError, match=r'examples could not be read.*config.data.max_bad_share'
    ):
        loop.train(config, tmp_path / 'run')


def cut(file):
    file.write_bytes(file.read_bytes()[:-200])


def replace_by_a_pixel(file):
    Image.new('RGB', (1, 1)).save(file.with_suffix('.png'))
    file.unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (Path.unlink, r'config.data.path'),
        (lambda file: file.write_text('text'), r'cannot be used.*config.data.max_bad_share'),
        (cut, r'cannot be used'),
        (replace_by_a_pixel, r'cannot be used.*smaller than 8 pixels'),
    ],
    ids=['empty', 'text', 'truncated', 'one pixel'],
)
def test_unusable_folders_are_refused_before_the_first_step(
    spoil, message, tokenizer_dir, tmp_path
):
    write_photos(tmp_path / 'photos')
    for file in list((tmp_path / 'photos').iterdir()):
        spoil(file)
    with pytest.raises(RequestError, match=f'(?s){message}'):
        loop.train(folder_settings(tokenizer_dir, tmp_path / 'photos'), tmp_path / 'run')
    assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_missing_folder_is_refused(tokenizer_dir, tmp_path):
    with pytest.raises(RequestError, match=r'config.data.path'):
        loop.train(folder_settings(tokenizer_dir, tmp_path / 'nothing'), tmp_path / 'run')
    assert not (tmp_path / 'run' / 'metrics.jsonl').exists()
