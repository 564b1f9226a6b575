"""Both decoders against Pillow and against each other: pixels, sizes, and which files are bad."""

import io

from cykooz_resizer import CpuExtensions
import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import View
from beit_jax.data.pictures import boxes, decode_simd
from beit_jax.data.pictures.load import square
from tests.data.ways import WAYS, each_way, reference
from tests.photos import write_photos


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp('photos'))


def encoded(image, **kwargs):
    file = io.BytesIO()
    image.save(file, **kwargs)
    return file.getvalue()


def variants(image):
    """Kind, file: everything that a folder of photographs may hold."""
    rgba = image.copy()
    rgba.putalpha(Image.linear_gradient('L').resize(image.size))
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn by 90 degrees
    yield 'jpeg', encoded(image, format='JPEG', quality=95)
    yield 'progressive', encoded(image, format='JPEG', quality=90, progressive=True)
    yield '4:4:4', encoded(image, format='JPEG', quality=90, subsampling=0)
    yield 'grey jpeg', encoded(image.convert('L'), format='JPEG')
    yield 'CMYK', encoded(image.convert('CMYK'), format='JPEG', quality=95)
    yield 'rotated by EXIF', encoded(image, format='JPEG', exif=exif)
    yield 'png', encoded(image, format='PNG')
    yield 'RGBA', encoded(rgba, format='PNG')
    yield 'grey png', encoded(image.convert('L'), format='PNG')
    yield 'grey and alpha', encoded(rgba.convert('LA'), format='PNG')
    yield 'palette', encoded(image.quantize(64), format='PNG')
    yield 'transparent palette', encoded(image.quantize(64), format='PNG', transparency=3)
    yield 'black and white', encoded(image.convert('1'), format='PNG')


def flaw(images, file):
    """Why it is bad, or None."""
    try:
        images.decode_crop(file, boxes.whole_box)
    except boxes.BadImageError as error:
        return str(error)
    return None


@each_way
def test_decode_crop_agrees_with_pillow(images, photos):
    image = Image.open(photos[0]).convert('RGB')
    sizes, box = [], (37, 53, 211, 307)
    top, left, height, width = box
    for kind, file in variants(image):
        assert flaw(images, file) is None, kind
        ours = images.decode_crop(file, lambda *size: sizes.append(size) or box)
        assert sizes.pop() == image.size[::-1], kind
        theirs = np.asarray(Image.open(io.BytesIO(file)).convert('RGB'))
        theirs = theirs[top : top + height, left : left + width]
        assert ours.shape == (211, 307, 3) and ours.dtype == np.uint8, kind
        error = np.abs(ours.astype(int) - theirs)
        assert error.mean() < 0.05 and error.max() <= 8, (kind, error.mean(), error.max())
        if images is decode_simd:
            whole = WAYS.get('tensorflow', images).decode_crop(file, boxes.whole_box)
            np.testing.assert_array_equal(ours, whole[top : top + height, left : left + width])


@each_way
@pytest.mark.parametrize(
    'size, method, pillow', [(224, 'bicubic', Image.BICUBIC), (112, 'lanczos3', Image.LANCZOS)]
)
def test_views_agree_with_pillow(images, photos, size, method, pillow):
    """From the file to the view, crops larger and smaller than the view."""
    for path in photos:
        image = Image.open(path).convert('RGB')
        width, height = image.size
        for box in [(0, 0, height, width), (7, 11, height // 2, width // 3), (3, 5, 61, 83)]:
            crop = images.decode_crop(path.read_bytes(), lambda *_, box=box: box)
            (ours,) = images.resize(crop, [View('', size, method)])
            top, left, h, w = box
            edges = left, top, left + w, top + h
            theirs = np.asarray(image.resize((size, size), pillow, box=edges), int)
            inner = np.asarray(image.crop(edges).resize((size, size), pillow), int)
            assert ours.dtype == np.uint8 and ours.shape == (size, size, 3)
            # Pillow rounds between its two passes
            assert np.abs(ours - inner).mean() < 0.3, (path, box)
            assert np.abs(ours - theirs).mean() < 1, (path, box)


@each_way
@pytest.mark.parametrize('size, share', [(224, 224 / 256), (384, 1.0), (97, 0.9)])
def test_evaluation_as_torchvision(images, photos, size, share):
    """Resize(size / share) and CenterCrop(size), in two steps by Pillow. Where the passes of one
    resize clip otherwise, it shows at sharp edges alone; a pixel beside it is a mean of 4."""
    for path in photos:
        pixels = images.decode_crop(path.read_bytes(), boxes.whole_box)
        picture = Image.fromarray(pixels)
        short, (width, height) = int(size / share), picture.size
        wide = width > height
        shape = (
            (int(short * width / height), short) if wide else (short, int(short * height / width))
        )
        left, top = (round((side - size) / 2) for side in shape)
        resized = picture.resize(shape, Image.BICUBIC)
        theirs = np.asarray(resized.crop((left, top, left + size, top + size)), int)
        box = boxes.center_box(height, width, size, share)
        (view,) = images.resize(pixels, [View('', size)], box=box)
        for ours in (view, square(pixels, size, share)):
            difference = np.abs(ours - theirs)
            assert difference.mean() < 0.25, path
            assert np.mean(difference > 1) < 2e-3 and difference.max() < 13, path


@each_way
@pytest.mark.parametrize('method', ['bicubic', 'lanczos3'])
def test_a_crop_of_the_size_of_the_view_is_untouched(images, method):
    pixels = np.random.default_rng(0).integers(0, 256, [67, 67, 3], np.uint8)
    np.testing.assert_array_equal(*images.resize(pixels, [View('', 67, method)]), pixels)


@pytest.mark.parametrize('method', ['bicubic', 'lanczos3'])
def test_simd_resizes_alike_on_every_processor(method):
    """With all the instructions that this one has, or none of them."""
    pixels = np.random.default_rng(0).integers(0, 256, [211, 307, 3], np.uint8)
    views = [View('', size, method) for size in (97, 401)]
    quick = decode_simd.resize(pixels, views)
    extensions = decode_simd._own.resizer.cpu_extensions
    decode_simd._own.resizer.cpu_extensions = CpuExtensions.none
    assert extensions != CpuExtensions.none
    for one, other in zip(quick, decode_simd.resize(pixels, views)):
        np.testing.assert_array_equal(one, other)
    decode_simd._own.resizer.cpu_extensions = extensions


@each_way
def test_flaws(images, photos):
    """Each file is bad wherever it is cropped; a thumbnail's own end marker and bytes after the end
    must not mislead."""
    image = Image.open(photos[0]).convert('RGB')
    thumbnail = encoded(image.resize((40, 30)), format='JPEG')
    jpeg, png = encoded(image, format='JPEG'), encoded(image, format='PNG')
    length = (len(thumbnail) + 2).to_bytes(2, 'big')
    embedded = jpeg[:2] + b'\xff\xe1' + length + thumbnail + jpeg[2:]
    for good in (jpeg, png, embedded, jpeg + b'\0' * 999, np.zeros([8, 9, 3], np.uint8)):
        assert flaw(images, good) is None
    for bad in (jpeg[:-2], jpeg[: len(jpeg) // 2], embedded[: -len(jpeg) // 3], jpeg[:40]):
        assert flaw(images, bad) == 'truncated'
    for bad in (png[: len(png) // 2], png[:20], png[:8] + jpeg, jpeg[:300] + jpeg[-2:]):
        assert flaw(images, bad) == 'truncated or damaged'
    for bad in (b'', b'hello world', encoded(image, format='JPEG2000'), b'\0' * 5000):
        assert flaw(images, bad) == 'no image of a kind that is read'
    pixel = encoded(image.resize((1, 1)), format='PNG')
    narrow = encoded(image.resize((7, 90)), format='JPEG')
    for small in (pixel, narrow, np.zeros([90, 7, 3], np.uint8)):
        assert flaw(images, small) == 'smaller than 8 pixels'


def test_both_ways_judge_alike(photos):
    """What training with one takes and refuses, and the pixels that it takes, are those of the
    other: 300 damaged files."""
    rng, refused, other = np.random.default_rng(0), 0, reference()
    for path in photos[:3]:
        whole = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
            file = bytes(damaged)
            verdict = flaw(decode_simd, file)
            assert verdict == flaw(other, file)
            refused += verdict is not None
            if verdict is None:
                np.testing.assert_array_equal(
                    decode_simd.decode_crop(file, boxes.whole_box),
                    other.decode_crop(file, boxes.whole_box),
                )
    assert refused
