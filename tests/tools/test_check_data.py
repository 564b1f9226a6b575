"""What check_data says of a folder is what Pillow says of it, file by file."""

from collections import Counter
import json
import os
from pathlib import Path
import shlex
import sys

import numpy as np
from PIL import Image
import pytest

from beit_jax.data import inspection
from beit_jax.data.sources.source import Example
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from beit_jax.tools import arguments, check_data
from tests import tiny
from tests.data.pairs import write_pairs
from tests.data.pictures.test_read import promising
from tests.photos import write_photos


def check(monkeypatch, tmp_path, *flags) -> tuple[int, dict]:
    """Runs the tool as the command line does: (exit status, the JSON)."""
    output = tmp_path / 'figures.json'
    monkeypatch.setattr(sys, 'argv', ['check_data', '--json', str(output), *map(str, flags)])
    try:
        arguments.main(check_data.run, check_data._arguments())
    except SystemExit as ended:
        return ended.code, json.loads(output.read_text()) if output.exists() else {}
    return 0, json.loads(output.read_text())


def noise(path: Path, width: int, height: int, seed: int = 0, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def faulty_folder(root: Path) -> tuple[dict[Path, str], dict[Path, str], dict[Path, str]]:
    """Writes classes `ant` and `bee`; returns (corrupt, suspicious, duplicates): what there is to
    say of which name."""
    photos, bee = write_photos(root / 'ant'), root / 'bee'
    noise(bee / 'good.png', 239, 227)
    whole = photos[0].read_bytes()
    (bee / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    damaged = bytearray((bee / 'good.png').read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (bee / 'damaged.png').write_bytes(damaged)
    (bee / 'text.jpg').write_text('<html>not found</html>')
    (bee / 'empty.jpg').write_bytes(b'')
    (bee / 'gone.jpg').symlink_to(root / 'nowhere.jpg')
    noise(bee / 'drawn.png', 47, 43, format='JPEG2000')
    noise(bee / 'speck.png', 41, 7)
    corrupt = {
        bee / 'cut.jpg': 'truncated',
        bee / 'damaged.png': 'truncated or damaged',
        bee / 'text.jpg': 'no image of a kind that is read',
        bee / 'empty.jpg': 'no image of a kind that is read (empty)',
        bee / 'gone.jpg': os.strerror(2),
        bee / 'drawn.png': 'no image of a kind that is read but JPEG2000',
        bee / 'speck.png': 'smaller than 8 pixels',
    }
    noise(bee / 'small.png', 31, 37)
    noise(bee / 'wide.png', 373, 37)
    noise(bee / 'renamed.png', 61, 67, format='JPEG')
    frames = {'save_all': True, 'append_images': [Image.new('RGB', (71, 73))]}
    noise(bee / 'moving.png', 71, 73, **frames)
    noise(bee / 'burst.jpg', 71, 73, format='MPO', **frames)
    noise(bee / 'strange.jpg', 89, 97, dpi=(72, 72), exif=b'Exif\0\0no such thing')
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(bee / 'turned.jpg', 83, 79, exif=exif)
    suspicious = {
        bee / 'small.png': 'smaller than 32 pixels',
        bee / 'wide.png': 'aspect ratio above 10',
        bee / 'renamed.png': 'a JPEG named .png',
        bee / 'moving.png': 'several frames, of which training sees the first',
        bee / 'burst.jpg': 'several frames, of which training sees the first',
        bee / 'turned.jpg': 'EXIF orientation 6, which training ignores',
    }
    (bee / 'again.jpg').write_bytes(photos[2].read_bytes())
    (root / 'cat').mkdir()
    return corrupt, suspicious, {bee / 'again.jpg': str(photos[2])}


def named(entries, value):
    return {Path(entry['name']): entry[value] for entry in entries}


def test_agrees_with_pillow(tmp_path, monkeypatch, capsys):
    root = tmp_path / 'images'
    corrupt, suspicious, duplicates = faulty_folder(root)
    noise(tmp_path / 'held_out' / 'ant' / 'new.png', 53, 59, seed=1)
    (tmp_path / 'held_out' / 'bee').mkdir()
    photo = next((root / 'ant').glob('0*'))
    (tmp_path / 'held_out' / 'bee' / 'old.jpg').write_bytes(photo.read_bytes())
    flags = ['--data.path', root, '--data.evaluate_path', tmp_path / 'held_out']
    status, figures = check(monkeypatch, tmp_path, *flags, '--max_bad_share', 0.5)
    assert status == 0 and figures['usable'] and not figures['estimated']

    files = sorted(path for path in root.rglob('*') if path.suffix)
    good = [path for path in files if path not in corrupt]
    formats, modes, sizes = Counter(), Counter(), []
    for path in good:
        with Image.open(path) as image:
            image.load()
            formats['JPEG' if image.format == 'MPO' else image.format] += 1
            modes[image.mode] += 1
            sizes.append(image.size)
    assert figures['examples'] == figures['examined'] == len(files)
    assert figures['corrupt_share'] == pytest.approx(7 / len(files))
    assert figures['formats'] == formats and figures['modes'] == modes
    assert {'L', 'CMYK', 'RGBA', 'RGB'} == set(modes)
    for name, values in zip(('width', 'height'), zip(*sizes)):
        extent = {'min': min(values), 'median': np.median(values), 'max': max(values)}
        assert figures[name] == extent
    assert figures['share_below_224'] == pytest.approx(np.mean([min(size) < 224 for size in sizes]))
    assert figures['bytes']['total'] == sum(path.stat().st_size for path in files if path.exists())
    assert named(figures['corrupt'], 'reason') == corrupt
    assert named(figures['suspicious'], 'reason') == suspicious
    assert named(figures['duplicates'], 'same_as') == duplicates
    assert figures['overlap'] == [
        {'name': str(tmp_path / 'held_out/bee/old.jpg'), 'same_as': str(files[0])}
    ]
    counts = Counter(path.parent.name for path in good)
    assert figures['classes'] == 2 and figures['empty_classes'] == ['cat']
    small, large = sorted(counts, key=counts.get)
    assert figures['smallest_class'] == {'name': small, 'examples': counts[small]}
    assert figures['largest_class'] == {'name': large, 'examples': counts[large]}
    assert counts[small] < counts[large]
    said = capsys.readouterr().out
    assert all(f'  {path}: {reason}\n' in said for path, reason in corrupt.items())
    assert f'\n  EXIF orientation 6, which training ignores (1): {root}/bee/turned.jpg\n' in said
    assert '1 of 2 held-out images' in said and 'estimated' not in said

    assert check(monkeypatch, tmp_path, *flags)[0] == 2  # 7 of 24 is more than 1 %
    printed = capsys.readouterr()
    assert 'train with' in printed.out
    assert printed.err == (
        'error: 7 of 24 examples (29.17%) are corrupt, more than --max_bad_share (1.00%): '
        'remove or repair them, or raise it.\n'
    )


def test_what_lies_beside(tmp_path, monkeypatch, capsys):
    """Files that are not read, by ending; pictures beside folders of classes; parts of a set."""
    root = tmp_path / 'images'
    for name in ('train/a.jpg', 'train/b.jfif', 'val/c.JPE', 'val/d.png'):
        noise(root / name, 41, 43, format='PNG' if name.endswith('png') else 'JPEG')
    for name in ('train/x.svg', 'val/y.SVG', 'z.heic', 'LICENSE', '.hidden', '.git/config'):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text('')
    (root / 'val' / 'back').symlink_to(root)
    status, figures = check(monkeypatch, tmp_path, '--data.path', root)
    assert status == 0 and figures['examples'] == 4 and not figures['suspicious']
    assert figures['left_out'] == {'.svg': 2, 'hidden': 2, '.heic': 1, '': 1}
    said = capsys.readouterr().out
    assert 'not read    .svg 2, hidden 2, ' in said and 'no ending 1' in said
    assert f'{root} holds train, val, which are parts of a set: give --data.path={root}/tr' in said
    assert f'--data.evaluate_path={root}/val' in said

    noise(root / 'stray.png', 41, 43)
    figures = check(monkeypatch, tmp_path, '--data.path', root)[1]
    assert figures['strays'] == [f'{root}/stray.png'] and figures['doubts']
    assert 'strays      1 pictures beside the folders' in capsys.readouterr().out


def test_images_with_annotations(tmp_path, monkeypatch, capsys):
    """Counted as they are stored, whatever is a class; an image without one is the end."""
    path = Path(write_pairs(tmp_path / 'set', 3, offset=1))
    (path / 'classes.txt').write_text(''.join(f'{name}\n' for name in 'abcde'))
    status, figures = check(monkeypatch, tmp_path, '--data.path', path)
    pixels = [np.asarray(Image.open(file)) for file in (path / 'annotations').iterdir()]
    found = figures['annotations']
    assert status == 0 and figures['examples'] == found['examined'] == 3 and not figures['classes']
    assert found['values'] == np.unique(np.concatenate([each.ravel() for each in pixels])).tolist()
    assert found['share_of_0'] == found['share_of_255'] == 0
    assert (found['missing'], found['missing_reduced']) == (['a'], [])
    said = capsys.readouterr().out
    assert 'annotations 3, 5 values from 1 to 5' in said and 'configs/segment_ade20k.py' in said
    assert 'reduce_zero_label=false no pixel has 1 of 5 classes: a' in said
    (path / 'annotations' / '1.png').unlink()
    assert check(monkeypatch, tmp_path, '--data.path', path)[0] == 2
    assert '1 of 3 images have no annotation' in capsys.readouterr().err


def test_commands_are_accepted(tmp_path, monkeypatch):
    """The recipes take every setting of the commands that are printed."""
    path = tmp_path / 'my images'
    for i in range(10):
        noise(path / 'a' / f'{i}.png', 53, 59, seed=i)
    (path / 'a' / 'bad.png').write_bytes(b'')
    flags = '--data.path', path, '--data.flip', 'false'
    status, figures = check(monkeypatch, tmp_path, *flags)
    assert status == 2
    for line, task in (figures['command'], 'pretrain'), (figures['finetune_command'], 'classify'):
        python, main, chosen, _, *settings = shlex.split(line)
        recipe, _, variant = chosen.removeprefix('--config=').partition(':')
        variant = ','.join([variant, *(text.removeprefix('--config.') for text in settings)])
        loaded = load_recipe(str(tiny.REPOSITORY / recipe), variant)
        config = task_config(loaded.to_dict())
        assert (python, main, config.task) == ('python', 'main.py', task)
        assert config.data.path == str(path) and not config.data.flip
        assert config.data.max_bad_share == 0.11  # 1 of 11


def test_limit(tmp_path, monkeypatch, capsys):
    for i in range(29):
        noise(tmp_path / 'flat' / f'{i:02}.png', 37 + i, 41, seed=i)
    status, figures = check(monkeypatch, tmp_path, '--data.path', tmp_path / 'flat', '--limit', 5)
    assert status == 0 and figures['estimated'] is True
    assert (figures['examples'], figures['examined']) == (29, 5)
    assert figures['width'] == {'min': 37, 'median': 37 + 14, 'max': 37 + 28}
    looked_at = [(tmp_path / 'flat' / f'{i:02}.png').stat().st_size for i in (0, 7, 14, 21, 28)]
    assert figures['bytes'] == {'mean': np.mean(looked_at), 'total': round(np.mean(looked_at) * 29)}
    assert figures['classes'] == 0
    assert figures['finetune_command'] is None and figures['overlap'] is None
    assert 'only 5 evenly spread examples' in capsys.readouterr().out


class Stub:
    """A source of given examples; an OSError stands for one that cannot be read."""

    def __init__(self, examples, class_names=()):
        self.examples, self.class_names, self.fingerprint = examples, class_names, 'stub'

    def __len__(self):
        return len(self.examples)

    def name(self, index):
        return f'record {index}'

    def read(self, index):
        if isinstance(self.examples[index], OSError):
            raise self.examples[index]
        return self.examples[index]

    def label(self, index):
        return self.read(index).label


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ((0, 1, 0), None),
        ((0, 1, 2), '1 examples have a label that none of the 2 classes has'),
        ((None, None, None), 'not one of 3 examples can be used'),
        ((), 'error: --limit is -1'),
    ],
)
def test_usable(labels, message, tmp_path, monkeypatch, capsys):
    examples = []
    for grey, label in enumerate(labels):
        image = np.full([11, 13, 3], grey, np.uint8)
        examples.append(OSError('checksum') if label is None else Example(image, label))
    sources = {'train': Stub(examples, ('a', 'b')), 'evaluate': None}
    monkeypatch.setattr(check_data, 'open_source', lambda data, split: sources[split])
    flags = '--data.path', 'somewhere', '--limit', 0 if labels else -1
    status, figures = check(monkeypatch, tmp_path, *flags)
    error = capsys.readouterr().err
    assert status == (2 if message else 0) and (message or '') in error
    assert len(error.splitlines()) == bool(message)
    if labels and message:
        assert figures['problems'] == [error.removeprefix('error: ').strip()]
        assert not figures['usable']
    if None in labels:
        corrupt = [{'name': f'record {i}', 'reason': 'checksum'} for i in range(3)]
        assert figures['corrupt'] == corrupt and figures['width'] is None


def test_files_that_attack(tmp_path, monkeypatch, capsys):
    """No hang, no endless list, no 13 GB; each named with its reason."""
    root = tmp_path / 'ant'
    (root / 'bee').mkdir(parents=True)
    bomb = promising(noise(root / 'bee' / 'bomb.png', 16, 16).read_bytes(), 65_000, 65_500)
    (root / 'bee' / 'bomb.png').write_bytes(bomb)
    noise(root / 'bee' / os.fsdecode(b'\xe9.png'), 37, 41)
    noise(root / 'bee' / 'large.png', 67, 71)
    os.mkfifo(root / 'bee' / 'pipe.jpg')
    (root / 'bee' / 'loop').symlink_to('..')
    flags = '--data.path', root, '--max_bad_share', 0.9, '--data.max_pixels', 67 * 71 - 1
    status, figures = check(monkeypatch, tmp_path, *flags)
    assert status == 0 and figures['examples'] == 4
    pixels = 'pixels, more than config.data.max_pixels (4,756)'
    assert named(figures['corrupt'], 'reason') == {
        root / 'bee' / 'bomb.png': f'65000 x 65500 {pixels}',
        root / 'bee' / 'large.png': f'71 x 67 {pixels}',
        root / 'bee' / 'pipe.jpg': 'a pipe or device, no regular file',
    }
    assert named(figures['suspicious'], 'reason') == {}
    assert 'loop leads to a folder that it lies in' in capsys.readouterr().err
    noise(root / 'bee' / os.fsdecode(b'\xe8.png'), 37, 41)
    status, figures = check(monkeypatch, tmp_path, *flags)
    twice = {root / 'bee' / r'\xe9.png': str(root / 'bee' / r'\xe8.png')}
    assert named(figures['duplicates'], 'same_as') == twice
    assert r'\xe8.png' in capsys.readouterr().out


def test_memory_stays_bounded():
    """Threads are handed a block at a time: a first result comes before all have been asked for."""
    asked = []
    results = inspection.in_threads(asked.append, np.arange(10 * inspection.BLOCK), 3, '')
    next(results)
    assert len(asked) <= inspection.BLOCK
    assert sum(1 for _ in results) == 10 * inspection.BLOCK - 1
    assert sorted(asked) == list(range(10 * inspection.BLOCK))


def test_no_image(tmp_path, monkeypatch, capsys):
    (tmp_path / 'bare').mkdir()
    assert check(monkeypatch, tmp_path, '--data.path', tmp_path / 'bare') == (2, {})
    assert 'holds no image' in capsys.readouterr().err
