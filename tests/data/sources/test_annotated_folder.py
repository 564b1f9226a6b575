"""A folder of images and one of annotations: its layouts and classes, and what is no such pair."""

from pathlib import Path

import pytest

from beit_jax.data.config import SegmentDataConfig
from beit_jax.data.pipeline import check_source
from beit_jax.data.sources.annotated_folder import AnnotatedFolder
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import from_mapping
from tests.data.pairs import write_pairs


def test_layouts(tmp_path):
    """The official one, a flat one of which a share is held out, one with another folder to
    evaluate on."""
    official = write_pairs(tmp_path / 'official', 7, 'training')
    write_pairs(tmp_path / 'official', 3, 'validation')
    (tmp_path / 'official' / 'annotations' / 'training' / 'more.png').write_bytes(b'')  # nobody's
    flat, other = write_pairs(tmp_path / 'flat', 6), write_pairs(tmp_path / 'other', 2)
    (tmp_path / 'other' / 'classes.txt').write_text('no\n')
    for settings, counts in (
        ({'path': official}, (7, 3)),
        ({'path': official, 'evaluate_path': other}, (7, 2)),
        ({'path': flat, 'holdout': 0.3}, (4, 2)),
        ({'path': flat, 'evaluate_path': official}, (6, 3)),
    ):
        config = from_mapping(SegmentDataConfig, settings)
        train, evaluate = open_source(config, 'train'), open_source(config, 'evaluate')
        assert (len(train), len(evaluate)) == counts
        assert train.class_names == evaluate.class_names == tuple(map(str, range(1, 151)))
        check_source(train, config)
    assert open_source(SegmentDataConfig(path=flat), 'evaluate') is None
    image, label = train.read(2)
    assert Path(train.name(2)).read_bytes() == image
    annotation = train.name(2).replace('images', 'annotations')[:-3] + 'png'
    assert Path(annotation).read_bytes() == label


def test_fingerprint_follows_annotations_too(tmp_path):
    path = write_pairs(tmp_path, 6)
    before = AnnotatedFolder(path, 'training').fingerprint
    (tmp_path / 'annotations' / '1.png').write_bytes(b'other')
    assert AnnotatedFolder(path, 'training').fingerprint != before


def test_class_names(tmp_path):
    path = write_pairs(tmp_path, 6)
    table = [
        ('Idx', 'Ratio', 'Train', 'Val', 'Stuff', 'Name'),
        ('1', '0.1', '7', '7', '1', 'wall'),
        ('2', '0.1', '5', '3', '0', 'tree, oak'),
    ]
    (tmp_path / 'objectInfo150.txt').write_text('\n'.join(map('\t'.join, table)))
    assert AnnotatedFolder(path, 'training').class_names == ('wall', 'tree, oak')
    (tmp_path / 'classes.txt').write_text('a b\nc\n\n')
    assert AnnotatedFolder(path, 'training').class_names == ('a b', 'c')
    (tmp_path / 'classes.txt').write_text('c\n' * 256)
    with pytest.raises(RequestError, match=r'classes.txt has 256 classes'):
        AnnotatedFolder(path, 'training')


def test_folders_that_are_no_pairs(tmp_path):
    path = write_pairs(tmp_path / 'set', 5)
    (tmp_path / 'set' / 'annotations' / '3.png').unlink()
    missing = (
        r'1 of 5 images have no annotation; the first is .*set/images/3.jpg, '
        r'.*set/annotations/3.png'
    )
    write_pairs(tmp_path / 'jpegs', 2, suffix='.jpg')
    half = write_pairs(tmp_path / 'half', 2, 'validation')
    for wrong, words in (
        (path, missing),
        ('', 'config.data.path is empty'),
        (str(tmp_path), "holds no folder 'images'"),
        (str(tmp_path / 'jpegs'), '2 of 2 images have no annotation'),
        (half, 'images/validation, but no images/training'),
    ):
        with pytest.raises(RequestError, match=words):
            open_source(SegmentDataConfig(path=wrong), 'train')
    good = write_pairs(tmp_path / 'good', 2)
    with pytest.raises(RequestError, match=r'config.data.evaluate_path=.* holds no folder'):
        open_source(SegmentDataConfig(path=good, evaluate_path=str(tmp_path)), 'evaluate')
