"""Pictures of other channels and bits: files of each kind give the array that was written, resized
as by Pillow, channel by channel; what is not as promised is said."""

import contextlib
import io

import numpy as np
from PIL import Image
import pytest
import tifffile

from beit_jax.data.config import PixelFormat, View
from beit_jax.data.pictures import arrays
from beit_jax.data.pictures.boxes import BadImageError, FormatError, center_box, flipped

SHAPE = 37, 53


def made(channels, bits=16):
    """Smooth fields with some noise, [H, W, C]."""
    random = np.random.default_rng(channels)
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    phase, noise = random.random((2, channels)), random.random((*SHAPE, channels))
    waves = np.sin(rows[..., None] * phase[0] / 3 + columns[..., None] * phase[1] / 5)
    return ((0.5 + 0.4 * waves + 0.1 * (noise - 0.5)) * (2**bits - 1)).astype(f'uint{bits}')


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def stack(array):
    first, *others = (Image.fromarray(page) for page in np.moveaxis(array, 2, 0))
    file = io.BytesIO()
    first.save(file, 'TIFF', save_all=True, append_images=others)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    options = {'photometric': 'minisblack'} | options
    tifffile.imwrite(file, np.moveaxis(array, 2, 0), **options)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array[..., 0]).save(file, 'PNG')
    return file.getvalue()


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('channels', [1, 2, 4, 12])
def test_every_file(channels, bits):
    array, pixels = made(channels, bits), PixelFormat(channels, bits)
    files = [npy(array), npy(np.asfortranarray(array)), npy(array.astype(f'>u{bits // 8}'))]
    files += [stack(array), tiff(array), tiff(array, byteorder='>'), array]
    if channels == 1:
        files += [npy(array[..., 0]), png(array)]
    for file in files:
        found = arrays.decode(file, pixels)
        assert found.dtype == array.dtype and found.dtype.isnative
        np.testing.assert_array_equal(found, array)
    bands = tuple(np.random.default_rng(0).permutation(channels)[: channels // 2 + 1].tolist())
    found = arrays.decode(files[0], PixelFormat(channels, bits, bands))
    np.testing.assert_array_equal(found, np.stack([array[..., band] for band in bands], 2))


def test_colours_of_files():
    rgb = made(3, 8)
    for mode, channels in (('L', 1), ('RGB', 3), ('RGBA', 4), ('P', 3), ('1', 1), ('CMYK', 4)):
        picture, file = Image.fromarray(rgb).convert(mode), io.BytesIO()
        picture.save(file, 'TIFF')
        expected = np.asarray(picture.convert({'P': 'RGB', '1': 'L'}.get(mode, mode)))
        found = arrays.decode(file.getvalue(), PixelFormat(channels, 8, (channels - 1, 0)))
        expected = expected.reshape(*SHAPE, channels)[..., [channels - 1, 0]]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    'file, pixels, message',
    [
        (
            npy(made(4)),
            (12, 16),
            r'4 channels, not config.data.channels=12 and config.data.bits=16',
        ),
        (npy(made(4)), (4, 8), '16 bits a value, not config.data.channels=4 and .*bits=8'),
        (npy(made(4, 8)), (4, 16), '8 bits a value'),
        (npy(np.moveaxis(made(4), 2, 0)), (4, 16), r'shape \(4, 37, 53\): 53 channels'),
        (npy(made(4).astype(np.float32)), (4, 16), 'values of float32: 8 or 16 bits'),
        (npy(made(4)[None]), (4, 16), r'shape \(1, 37, 53, 4\)'),
        (npy(np.array([[{}]])), (1, 16), 'type object'),
        (stack(made(4)), (12, 16), '4 pages, not config.data.channels=12'),
        (png(made(1)), (1, 8), '16 bits a value'),
        (png(made(1, 8)), (3, 8), '1 channels, not'),
    ],
)
def test_not_as_promised(file, pixels, message):
    with pytest.raises(FormatError, match=message):
        arrays.decode(file, PixelFormat(*pixels))


def test_what_pillow_cannot_read_is_said():
    colour = made(3)
    for pages in (colour, np.moveaxis(colour, 2, 0)):
        file = io.BytesIO()
        tifffile.imwrite(file, pages, photometric='rgb')
        with pytest.raises(FormatError, match=r'3 x 16 bits .* save each channel as a page'):
            arrays.decode(file.getvalue(), PixelFormat(3, 16))
    file = io.BytesIO()
    tifffile.imwrite(file, made(12), photometric='minisblack', planarconfig='contig')
    with pytest.raises(BadImageError, match=r'cannot read .* save each channel as a page'):
        arrays.decode(file.getvalue(), PixelFormat(12, 16))


def test_damage_and_bombs():
    array, pixels, random = made(4), PixelFormat(4, 16), np.random.default_rng(0)
    bomb = npy(array).replace(b'(37, 53, 4)', b'(99, 99, 4)')
    assert len(bomb) == len(npy(array))
    with pytest.raises(BadImageError, match=r'bytes of numbers where its header says'):
        arrays.decode(bomb, pixels)
    with pytest.raises(BadImageError, match=r'more than config.data.max_pixels'):
        arrays.decode(npy(array).replace(b'37', b'99'), pixels, 50 * 60)
    for whole in (npy(array), stack(array), png(made(1))):
        for cut in random.integers(0, len(whole), 40):
            with pytest.raises(BadImageError):
                arrays.decode(whole[:cut], pixels)
        for place in random.integers(0, len(whole), 300):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << random.integers(8)
            with contextlib.suppress(BadImageError):
                arrays.decode(bytes(damaged), pixels)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('method, pillow', [('bicubic', 'BICUBIC'), ('lanczos3', 'LANCZOS')])
def test_resized_as_by_pillow(dtype, method, pillow):
    array = made(5, 8 if dtype == np.uint8 else 16).astype(dtype)
    kernel = Image.Resampling[pillow]
    for box in (None, (1.5, 2.25, 31.2, 40.1)):
        top, left, height, width = box or (0, 0, *SHAPE)
        edges = left, top, left + width, top + height
        for shape in ((16, 24), (61, 97)):
            found = arrays.resize(array, shape, method, box)
            assert found.shape == (*shape, 5) and found.dtype == dtype
            for channel in range(5):
                picture = Image.fromarray(array[..., channel])
                expected = np.asarray(picture.resize(shape[::-1], kernel, edges), np.float64)
                error = np.abs(found[..., channel] - expected).max()
                assert error <= (0.05 if dtype == np.float32 else 2), (box, shape, error)
    np.testing.assert_array_equal(arrays.resize(array, SHAPE, method), array)


def test_views_and_boxes():
    array = made(12)
    ops = arrays.ArrayOps(PixelFormat(12, 16, (3, 2)))
    crop = ops.decode_crop(npy(array), lambda height, width: (5, 7, 11, 13))
    np.testing.assert_array_equal(crop, array[5:16, 7:20, [3, 2]])
    np.testing.assert_array_equal(flipped(crop), crop[:, ::-1])
    one, other = ops.resize(crop, [View('', 8), View('', (9, 17), 'lanczos3')])
    assert one.shape == (8, 8, 2) and other.shape == (9, 17, 2)
    with pytest.raises(BadImageError, match=r'smaller than 8 pixels'):
        ops.decode_crop(npy(array[:7]), lambda height, width: (0, 0, height, width))


def test_central_rectangle():
    """timm's ResizeKeepRatio and torchvision's CenterCrop: resized to just cover size / share."""
    for height, width, size, share in ((300, 500, (64, 96), 0.5), (500, 300, (64, 96), 1.0)):
        covered = [side / share for side in size]
        scale = max(covered[0] / height, covered[1] / width)  # of the resized picture
        expected = [side / scale for side in size]
        box = center_box(height, width, size, share)
        np.testing.assert_allclose(box[2:], expected, rtol=0.01)
        middle = [start + side / 2 for start, side in zip(box[:2], box[2:])]
        np.testing.assert_allclose(middle, (height / 2, width / 2), atol=0.6 / scale)
