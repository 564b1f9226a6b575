"""What becomes of examples that cannot be used: a substitute, a message before the run, its end."""

import itertools
import shutil

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import DataConfig
from beit_jax.data.pipeline import check_source, evaluate_batches, train_batches
from beit_jax.data.sampler import Sampler
from beit_jax.data.sources.folder import FolderSource
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError
from tests.data.batches import CONFIG, ROWS, VIEWS, train


class Repaired:
    """A source whose bad examples read as its first."""

    class_names = ('class',) * 2000

    def __init__(self, source, bad):
        self.source, self.bad, self.name = source, bad, source.name

    def __len__(self):
        return len(self.source)

    def read(self, index):
        return self.source.read(0 if index in self.bad else index)


def test_they_are_substituted_and_shift_nothing(spoiled, bad):
    batches, sampler = train(spoiled, 20), Sampler(len(spoiled), 7, 5)
    assert len(bad) == 4
    for step, batch in enumerate(batches):
        wanted = sampler.examples(sampler.positions(step, ROWS))
        np.testing.assert_array_equal(batch['index'], wanted)
        np.testing.assert_array_equal(batch['substituted'], [index in bad for index in wanted])
        assert all(image.std() > 1 for image in batch['image'])  # photographs, not blanks
    substitutes = np.concatenate([batch['image'][batch['substituted']] for batch in batches])
    assert len({image.tobytes() for image in substitutes}) == len(substitutes) > 30

    for before, after in zip(batches, train(Repaired(spoiled, bad), 20), strict=True):
        kept = ~before['substituted']
        np.testing.assert_array_equal(before['image'][kept], after['image'][kept])
        np.testing.assert_array_equal(before['label'][kept], after['label'][kept])


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_text('not a picture')
    with pytest.raises(RequestError, match=r'\d.jpg: no image of a kind that is read'):
        train(FolderSource(str(tmp_path)), 1)


def test_a_file_that_goes_away(good, tmp_path):
    shutil.copytree(good.path, tmp_path / 'copy')
    source = FolderSource(str(tmp_path / 'copy'))
    (tmp_path / 'copy' / source.name(2)).unlink()
    for batch in train(source, 4):
        np.testing.assert_array_equal(batch['substituted'], batch['index'] == 2)


def test_a_bug_in_a_source_shows_as_itself(good):
    class Broken(Repaired):
        def read(self, index):
            raise KeyError('a bug')

    with pytest.raises(KeyError, match='a bug'):
        train(Broken(good, ()), 1)


def test_check_source(good, spoiled, tmp_path):
    check_source(good, CONFIG)
    with pytest.raises(RequestError, match='4 of 12') as error:
        check_source(spoiled, CONFIG)
    message = str(error.value)
    for words in (
        'x_truncated.jpg (truncated)',
        'x_text.jpg (no image of a kind that is read)',
        'config.data.max_bad_share',
    ):
        assert words in message
    assert len(message.splitlines()) == 2
    check_source(spoiled, DataConfig(max_bad_share=0.4))
    folder = tmp_path / 'small'
    folder.mkdir()
    Image.new('RGB', (1, 1)).save(folder / 'pixel.png')
    with pytest.raises(RequestError, match='smaller than 8 pixels'):
        check_source(FolderSource(str(folder)), CONFIG)
    for i in range(9):
        shutil.copy(good.name(0), folder / f'{i}.jpg')
    check_source(FolderSource(str(folder)), CONFIG)  # one alone


def test_labels_that_no_class_has():
    class Mislabelled(Repaired):
        class_names = ('a', 'b', 'c')

        def read(self, index):
            return self.source.read(index)._replace(label=3 if index == 11 else index % 3)

    source = Mislabelled(ShapesSource(13, 40, 'easy', 'train'), ())
    words = 'shapes/train/11 has the label 3, but there are 3 classes, 0 to 2'
    for batches in (
        train_batches(source, Sampler(13, 7, 0), VIEWS, CONFIG, ROWS),
        evaluate_batches(source, 7, VIEWS, CONFIG, ROWS),
    ):
        with pytest.raises(RequestError, match=words):
            list(itertools.islice(batches, 3))
