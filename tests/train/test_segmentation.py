"""Labels of whole pictures, with a small function in the model's place: against plain NumPy and
torch, window by window."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn.metrics import confusion_matrix
import torch

from beit_jax.data.pictures.label_pictures import label_png, overview, palette
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import from_mapping
from beit_jax.tasks.segment import InferenceConfig
from beit_jax.train.segmentation import PictureLabeller, _over_hosts, evaluate_pictures

SIDE, CLASSES, FILL = 12, 5, (0.2, 0.4, 0.6)


def label_windows(params, images):
    """Logits of cells of 4 x 4 pixels that are not linear in them, and differ by their place in the
    window."""
    cells = images.astype(jnp.float32).reshape(len(images), 3, 4, 3, 4, 3).mean((2, 4)) / 255
    return jnp.tanh(cells @ params['kernel']) + params['places']


@pytest.fixture(scope='module')
def params():
    random = np.random.default_rng(0)
    return {
        'kernel': 3 * random.normal(size=(3, CLASSES)).astype(np.float32),
        'places': random.normal(size=(3, 3, CLASSES)).astype(np.float32),
    }


def picture(height, width, seed=0):
    """Smooth colours with some noise."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(small) + random.integers(-20, 20, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def enlarge(x, *size):
    tensor = torch.tensor(np.moveaxis(x, -1, 0)[None], dtype=torch.float64)
    return (
        torch.nn.functional.interpolate(tensor, size=size, mode='bilinear', align_corners=False)[0]
        .permute(1, 2, 0)
        .numpy()
    )


def expected(params, image, size, stride, flip=False):
    """The average, pixel by pixel, of what every window says of the picture at `size`, resized to
    the picture's own size."""
    seen = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    seen = seen[:, ::-1] if flip else seen
    places = []
    for length in size:
        last = max(length - SIDE, 0)
        places.append(sorted({min(start, last) for start in range(0, last + stride, stride)}))
    total, count = np.zeros((*size, CLASSES)), np.zeros((*size, 1))
    for top in places[0]:
        for left in places[1]:
            part = seen[top : top + SIDE, left : left + SIDE]
            window = np.full((SIDE, SIDE, 3), np.rint(np.array(FILL) * 255), np.uint8)
            window[: part.shape[0], : part.shape[1]] = part
            logits = enlarge(np.asarray(label_windows(params, window[None]))[0], SIDE, SIDE)
            total[top : top + SIDE, left : left + SIDE] += logits[: part.shape[0], : part.shape[1]]
            count[top : top + SIDE, left : left + SIDE] += 1
    assert count.min() >= 1
    result = enlarge(total / count, *image.shape[:2])
    return result[:, ::-1].copy() if flip else result


def labeller(devices=1, **config):
    return PictureLabeller(
        label_windows,
        (SIDE, SIDE),
        InferenceConfig(**{'windows': 7, 'stride': 5} | config),
        jax.devices()[:devices],
        FILL,
    )


# the size that a picture is seen at: its shorter side is 12, its longer one at most 48
SIZES = {
    (12, 12): (12, 12),
    (37, 53): (12, 17),
    (71, 29): (29, 12),
    (12, 41): (12, 41),
    (7, 11): (12, 19),
    (3000, 200): (48, 3),
}


@pytest.mark.parametrize(
    ('devices', 'sizes'), [(1, list(SIZES)), (8, [(37, 53), (12, 41), (7, 11)])]
)
def test_sliding_windows(params, devices, sizes):
    """Windows at the border, a picture smaller than a window, one of 3000 x 200; several of them in
    one program, and one in several."""
    pictures = [((number, size), picture(*size, number)) for number, size in enumerate(sizes)]
    found = list(labeller(devices)(params, pictures))
    assert [key for key, _, _ in found] == [key for key, _ in pictures]
    for (_, size), image, scores in found:
        height, width = size
        np.testing.assert_allclose(
            np.asarray(scores)[:height, :width],
            expected(params, image, SIZES[size], 5),
            atol=2e-5,
            err_msg=str(size),
        )
        assert not np.any(np.asarray(scores)[height:]) and not np.any(np.asarray(scores)[:, width:])


def test_scales_and_flips(params):
    """Probabilities are averaged; at scale 0.5 as at 1 the shorter side is a window's, as the
    official SETR_Resize has it."""
    image, total = picture(31, 59), 0.0
    for size in ((12, 23), (12, 23), (21, 40)):
        for flip in (False, True):
            total += (
                torch.softmax(torch.tensor(expected(params, image, size, 5, flip)), dim=-1).numpy()
                / 6
            )
    (_, _, scores), (_, _, other) = labeller(scales=(0.5, 1.0, 1.75), flip=True)(
        params, [(0, image), (1, picture(13, 17))]
    )
    np.testing.assert_allclose(np.asarray(scores)[:31, :59], total, atol=1e-5)
    np.testing.assert_allclose(np.asarray(other)[:13, :17].sum(-1), 1, atol=1e-5)


def setr_size(height, width, scale, side):
    """By the arithmetic of SETR_Resize and mmcv.imrescale: a scale of two floats, of which the
    longer is for the longer side."""
    short = max(side, min(int(4 * side * scale), int(side * scale)))
    wanted = (short * height / width, short) if height > width else (short, short * width / height)
    factor = min(max(wanted) / max(height, width), min(wanted) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize('side', [512, 640])
@pytest.mark.parametrize('size', [(512, 683), (683, 512), (300, 1301), (97, 101), (2112, 2816)])
def test_sizes_of_six_scales(size, side):
    scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    config = InferenceConfig(scales=scales, flip=True)
    found = PictureLabeller(label_windows, (side, side), config, jax.devices()[:1])._sizes(*size)
    assert list(found.elements()) == [setr_size(*size, scale, side) for scale in scales]
    if (*size, side) == (512, 683, 512):
        assert found[512, 683] == 3 and set(found) == {
            (512, 683),
            (640, 854),
            (768, 1025),
            (896, 1195),
        }


def test_whole(params):
    """A picture squeezed into one window."""
    image = picture(31, 59)
    ((_, _, scores),) = labeller(mode='whole')(params, [(0, image)])
    np.testing.assert_allclose(
        np.asarray(scores)[:31, :59], expected(params, image, (12, 12), 5), atol=2e-5
    )


def test_the_usual_stride(params):
    """341 of 512 and 426 of 640, and so 8 of 12."""
    assert [
        PictureLabeller(label_windows, (side, 640), InferenceConfig(), jax.devices()[:1])._strides
        for side in (512, 640)
    ] == [[341, 426], [426, 426]]
    image = picture(31, 59)
    ((_, _, scores),) = labeller(stride=0)(params, [(0, image)])
    np.testing.assert_allclose(
        np.asarray(scores)[:31, :59], expected(params, image, (12, 23), 8), atol=2e-5
    )


@pytest.mark.parametrize('devices', [1, 8])
def test_evaluation(params, devices, tmp_path):
    """The metrics are those of scikit-learn's confusion matrix of what the windows say; table and
    pictures are written."""
    random, examples, counts = np.random.default_rng(0), [], 0
    for index, size in enumerate(((37, 53), (12, 41), (29, 71))):
        examples.append(
            (index + 7, picture(*size, index), random.choice([0, 1, 3, 255], size).astype(np.uint8))
        )
    for _, image, label_map in examples:
        classes = expected(params, image, SIZES.get(image.shape[:2], (12, 29)), 5).argmax(-1)
        counts += confusion_matrix(
            label_map[label_map != 255], classes[label_map != 255], labels=range(CLASSES)
        )
    names, never = tuple('abcde'), lambda number: False
    metrics = evaluate_pictures(labeller(devices), params, examples, names, tmp_path, 2, never)
    assert metrics.pop('images_per_second') > 0 and metrics.pop('images') == 3
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert not union.all()  # a class is neither there nor predicted
    iou = np.diag(counts) / np.maximum(union, 1)
    assert metrics['miou'] == pytest.approx(iou[union > 0].mean(), abs=1e-9) and metrics[
        'pixel_accuracy'
    ] == pytest.approx(np.trace(counts) / counts.sum(), abs=1e-9)
    table = list(csv.DictReader((tmp_path / 'classes.csv').open()))
    assert [row['class'] for row in table] == list(names) and [
        int(row['pixels']) for row in table
    ] == counts.sum(1).tolist()
    assert float(table[1]['iou']) == pytest.approx(iou[1], abs=1e-6) and table[2]['accuracy'] == ''
    assert sorted(path.name for path in (tmp_path / 'images').iterdir()) == [
        '00007.png',
        '00008.png',
    ]
    assert (
        evaluate_pictures(
            labeller(devices), params, examples, names, tmp_path, 0, lambda number: number == 1
        )
        is None
    )


def test_counts_of_hosts(monkeypatch):
    """Two hosts of the same counts, beyond what an int32 or a float32 holds."""
    from jax.experimental import multihost_utils

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(
        multihost_utils, 'process_allgather', lambda array: np.stack([array, array])
    )
    counts = np.array([[0, 1, 2**31 - 1], [2**31, 12_345_678_901_234_567, 16_777_217]])
    np.testing.assert_array_equal(_over_hosts(counts), 2 * counts)


def test_palette():
    """The first colours of PASCAL VOC after its background; all differ; the PNG's pixels are the
    classes."""
    assert palette()[:4].tolist() == [
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
    ] and palette()[255].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in palette().tolist()}) == 256
    label_map = np.random.default_rng(0).integers(0, 256, (11, 13), np.uint8)
    image = label_png(label_map)
    np.testing.assert_array_equal(np.asarray(image), label_map)
    np.testing.assert_array_equal(np.asarray(image.convert('RGB')), palette()[label_map])


def test_overview():
    """Image, truth, prediction and overlay side by side; ignored pixels of the prediction show the
    image."""
    image, truth = picture(20, 30), np.zeros((20, 30), np.uint8)
    prediction = np.where(np.arange(30) < 15, 1, 255).astype(np.uint8).repeat(1)[None].repeat(20, 0)
    drawn = np.asarray(
        overview(
            image,
            {'truth': truth, 'prediction': prediction},
            ('sky', 'tree', 'a name that Pillow has not: \u6728'),
        )
    )
    assert drawn.shape == (20 + 240 + 6, 4 * 366 + 6 + 200, 3)
    assert drawn[100, 366 + 6 + 100].tolist() == [128, 0, 0] and drawn[
        100, 2 * 366 + 6 + 100
    ].tolist() == [0, 128, 0]
    assert drawn[100, 3 * 366 + 6 + 350].tolist() == drawn[100, 6 + 350].tolist()


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'mode': 'slid'}, 'Did you mean slide'),
        ({'stride': -1}, 'stride is -1'),
        ({'windows': 0}, 'windows is 0'),
        ({'scales': ()}, 'scales is empty'),
        ({'mode': 'whole', 'scales': (0.5, 1.0)}, 'one window of one size'),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(RequestError, match=message):
        from_mapping(InferenceConfig, config, 'inference.')
