"""Every operation against timm's, on photographs; the draws against timm's distribution."""

import importlib.util
from pathlib import Path
import random

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.pictures.rand_augment import OPERATIONS, Policy, draw, parse_policy, rand_augment
from beit_jax.errors import RequestError
from tests.photos import ORIGINALS

FILL = (124, 116, 104)
TIMM_NAMES = {
    'Posterize': 'PosterizeIncreasing',
    'Solarize': 'SolarizeIncreasing',
    'Color': 'ColorIncreasing',
    'Contrast': 'ContrastIncreasing',
    'Brightness': 'BrightnessIncreasing',
    'Sharpness': 'SharpnessIncreasing',
    'TranslateX': 'TranslateXRel',
    'TranslateY': 'TranslateYRel',
}


@pytest.fixture(scope='module')
def timm():
    """timm's module alone: the package would want torchvision."""
    path = Path(importlib.util.find_spec('timm').origin).parent / 'data' / 'auto_augment.py'
    spec = importlib.util.spec_from_file_location('timm_auto_augment', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', OPERATIONS)
def test_pixels(name, timm, monkeypatch):
    """At several magnitudes and both signs, with timm's own map from magnitudes to arguments."""
    hparams = {'img_mean': FILL, 'interpolation': Image.Resampling.BICUBIC}
    changed = 0
    for i, original in enumerate(ORIGINALS):
        image = Image.open(original).convert('RGB').resize((97, 83))
        for magnitude in (9.0, 3.7, 10.0, 0.0):
            for sign in (1, -1):
                # above one half timm negates
                monkeypatch.setattr(random, 'random', lambda sign=sign: 0.2 if sign > 0 else 0.8)
                # at 10 timm would keep 0 bits and fail
                allowed = min(magnitude, 9.9) if name == 'Posterize' else magnitude
                operation = timm.AugmentOp(
                    TIMM_NAMES.get(name, name), prob=1.0, magnitude=allowed, hparams=hparams
                )
                theirs = operation(image)
                ours = OPERATIONS[name](image, magnitude, sign, FILL)
                np.testing.assert_array_equal(ours, theirs, err_msg=f'{i} {magnitude} {sign}')
                changed += np.any(np.asarray(ours) != np.asarray(image))
    assert changed


def test_operations_are_those_of_timm(timm):
    assert [TIMM_NAMES.get(name, name) for name in OPERATIONS] == timm._RAND_INCREASING_TRANSFORMS


def test_draws():
    """Two of fifteen, each used half of the time, at magnitude 9 give or take 0.5 and at most 10,
    with either sign."""
    policy = parse_policy('rand-m9-mstd0.5-inc1')
    assert policy == Policy(9.0, 0.5, 2, 0.5)
    drawn = [draw(policy, 0, view) for view in range(6000)]
    assert {len(operations) for operations in drawn} == {0, 1, 2}
    operations = [operation for picture in drawn for operation in picture]
    assert len(operations) / len(drawn) == pytest.approx(1.0, abs=0.03)
    names, counts = np.unique([name for name, _, _ in operations], return_counts=True)
    assert set(names) == set(OPERATIONS) and counts.max() / counts.min() < 1.4
    magnitudes = np.array([magnitude for _, magnitude, _ in operations])
    # the mean and deviation of min(N(9, 0.5), 10)
    assert magnitudes.max() == 10
    assert magnitudes.mean() == pytest.approx(8.996, abs=0.03)
    assert magnitudes.std() == pytest.approx(0.49, abs=0.03)
    assert np.mean([sign for _, _, sign in operations]) == pytest.approx(0, abs=0.05)
    assert draw(policy, 0, 17) == drawn[17] and draw(policy, 1, 17) != drawn[17]


def test_an_augmented_picture():
    picture = np.asarray(Image.open(ORIGINALS[0]).convert('RGB').resize((53, 41)))
    policy = Policy(9.0, 0.5, 2, 1.0)
    ours = rand_augment(picture, policy, 3, 11, FILL)
    image = Image.fromarray(picture)
    for name, magnitude, sign in draw(policy, 3, 11):
        image = OPERATIONS[name](image, magnitude, sign, FILL)
    np.testing.assert_array_equal(ours, np.asarray(image))
    untouched = rand_augment(picture, Policy(probability=0.0), 3, 11, FILL)
    np.testing.assert_array_equal(untouched, picture)


@pytest.mark.parametrize(
    'text',
    [
        'm9',
        'rand-m9',
        'rand-m9-inc0',
        'rand-m11-inc1',
        'rand-x3-inc1',
        'augmix-m9-inc1',
        'rand-m9-inc1-p2',
    ],
)
def test_unknown_policies(text):
    with pytest.raises(RequestError, match='rand_augment'):
        parse_policy(text)
