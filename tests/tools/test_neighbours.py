"""Pictures that an encoder finds alike, against scikit-learn."""

import numpy as np
from PIL import Image
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

import beit_jax
from beit_jax.data.config import DataConfig
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.shapes import ShapesSource
from beit_jax.errors import RequestError
from beit_jax.inference.alike import alike
from beit_jax.settings.mapping import task_config
from beit_jax.tools import neighbours, reconstruct
from beit_jax.train import loop
from tests import tiny
from tests.photos import write_photos
from tests.tools.call import call
from tests.tools.test_tools import grid_size

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, tokenizer_dir):
    """A run on a folder of eight photographs, two of which are held out."""
    directory = tmp_path_factory.mktemp('run')
    write_photos(directory / 'photos')
    data = {'name': 'folder', 'path': str(directory / 'photos'), 'holdout': 0.25}
    settings = tiny.settings(tokenizer_dir, data=data)
    assert loop.train(task_config(settings), directory / 'run') == 0
    return directory / 'run'


def test_nearest(workdir):
    """Of shapes among other shapes, by layer 1; the third picture is among them itself."""
    model, data = (
        beit_jax.load(str(workdir)),
        DataConfig(name='shapes', num_examples=67, image_size=20, evaluate_crop=1.0),
    )
    bank = open_source(data, 'train')
    pictures = np.stack([bank.read(i).image for i in range(67)])
    held_out = ShapesSource(5, 20, 'easy', 'evaluate')
    asked = np.stack([*(held_out.read(i).image for i in range(2)), pictures[41]])
    names = ['a', 'b', bank.name(41)]
    found = alike(model, 1, asked, names, bank, data, 3, pytest.fail)
    features = lambda images: np.asarray(model.features(images, [1])['mean'][0])
    scaler = StandardScaler().fit(features(pictures))
    search = NearestNeighbors(metric='cosine').fit(scaler.transform(features(pictures)))
    expected = search.kneighbors(scaler.transform(features(asked)), 4, return_distance=False)
    assert expected[2, 0] == 41
    expected = [*expected[:2, :3], expected[2, 1:]]
    for row, indices in enumerate(expected):
        assert np.array_equal(found[:, row], pictures[indices])


def test_held_out_pictures_of_a_run(workdir, tmp_path, capsys):
    """Two of eight, beside the other six; `reconstruct` shows the same two."""
    call(neighbours, checkpoint=workdir, output=tmp_path / 'n.png')
    assert Image.open(tmp_path / 'n.png').size == grid_size(6, 2)
    assert '2 pictures among 6, layer 2 -> ' in capsys.readouterr().out
    call(reconstruct, workdir=workdir, images='held_out', output=tmp_path / 'r.png')
    assert Image.open(tmp_path / 'r.png').size == grid_size(4, 2)
    first = [np.asarray(Image.open(tmp_path / name))[22:, :150] for name in ('n.png', 'r.png')]
    assert np.array_equal(*first)


def test_other_pictures(workdir, tmp_path, capsys):
    """Of a folder among those of the run, or among itself; one that cannot be read is named."""
    photos = workdir.parent / 'photos'
    call(neighbours, checkpoint=workdir, images=photos, output=tmp_path / 'n.png', pictures=3)
    assert '3 pictures among 6' in capsys.readouterr().out
    write_photos(tmp_path / 'mine')
    (tmp_path / 'mine' / 'text.jpg').write_text('not a picture')
    more = {'images': tmp_path / 'mine', 'among': tmp_path / 'mine', 'neighbours': 99}
    call(neighbours, checkpoint=workdir, output=tmp_path / 'm.png', **more)
    said = capsys.readouterr()
    assert '8 pictures among 9 (1 that cannot be read left out' in said.out
    assert 'text.jpg' in said.err
    assert Image.open(tmp_path / 'm.png').size == grid_size(8, 8)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'limit': 0}, '--limit is 0'),
        ({'layer': 3}, 'there is no layer 3: this encoder has layers 1 to 2'),
        ({'among': 'photos'}, '--among is given alone: give both, --images DIR --among DIR'),
        ({'checkpoint': 'checkpoints/5'}, 'is no work directory of a run'),
        ({'limit': 1}, '1 pictures are too few to look for neighbours among'),
    ],
    ids=str,
)
def test_bad_requests(given, message, workdir, tmp_path):
    if 'checkpoint' in given:
        given = {'checkpoint': workdir / given['checkpoint']}
    with pytest.raises(RequestError, match=message):
        call(neighbours, **{'checkpoint': workdir, 'output': tmp_path / 'n.png'} | given)


def test_nothing_is_held_out(tokenizer_dir, workdir, tmp_path):
    data = {'num_evaluate_examples': 0}
    assert loop.train(task_config(tiny.settings(tokenizer_dir, data=data)), tmp_path) == 0
    for tool, name in ((neighbours, 'checkpoint'), (reconstruct, 'workdir')):
        with pytest.raises(RequestError, match='held_out: this run holds no pictures out'):
            call(tool, **{name: tmp_path}, images='held_out', output=tmp_path / 'n.png')
