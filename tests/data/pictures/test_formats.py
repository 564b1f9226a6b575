"""Files that are no JPEG or PNG, as Pillow itself converts them, in training and tools alike;
damaged ones; EXIF orientation."""

import io

import numpy as np
from PIL import Image, ImageOps
import pytest

from beit_jax.data.config import ENDINGS, DataConfig, Reading, SegmentDataConfig
from beit_jax.data.pictures import boxes
from beit_jax.data.pictures.read import decode, formats, opened, orientation
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import RequestError
from tests.data.pictures.test_read import taken
from tests.data.ways import WAYS
from tests.photos import write_photos


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    picture = Image.open(write_photos(tmp_path_factory.mktemp('photos'))[0]).convert('RGB')
    return picture.resize((97, 61))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def kinds(photo):
    """What, file, the pixels that it shows."""
    grey, palette = photo.convert('L'), photo.quantize(64)
    alpha = photo.copy()
    alpha.putalpha(grey)
    deep = np.asarray(grey, np.uint16) * 256 + np.asarray(grey)[::-1]
    cyan = Image.fromarray(np.dstack([np.asarray(photo), np.asarray(grey)]), 'RGBA')
    cyan = Image.frombytes('CMYK', photo.size, cyan.tobytes())
    for kind, options in (
        ('WEBP', {'lossless': True}),
        ('TIFF', {}),
        ('TIFF', {'compression': 'tiff_lzw'}),
        ('TIFF', {'compression': 'tiff_adobe_deflate'}),
        ('BMP', {}),
        ('PPM', {}),
    ):
        yield f'{kind} {options}', saved(photo, kind, **options), np.asarray(photo)
        if kind != 'WEBP':
            expected = np.asarray(grey.convert('RGB'))
            yield f'grey {kind} {options}', saved(grey, kind, **options), expected
    lossy = saved(photo, 'WEBP', quality=50)
    yield 'lossy WebP', lossy, np.asarray(Image.open(io.BytesIO(lossy)).convert('RGB'))
    exact = {'lossless': True, 'exact': True}
    for kind, options in (('WEBP', exact), ('TIFF', {})):
        yield f'alpha {kind}', saved(alpha, kind, **options), np.asarray(photo)
    for kind in ('TIFF', 'BMP', 'GIF'):
        yield f'palette {kind}', saved(palette, kind), np.asarray(palette.convert('RGB'))
    more = {'save_all': True, 'append_images': [Image.new('P', photo.size)]}
    yield 'animated GIF', saved(palette, 'GIF', **more), np.asarray(palette.convert('RGB'))
    pages = saved(photo, 'TIFF', save_all=True, append_images=[grey])
    yield 'TIFF of two pages', pages, np.asarray(photo)
    bits = photo.convert('1')
    yield 'PBM', saved(bits, 'PPM'), np.asarray(bits.convert('RGB'))
    upper = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2)
    for order in '<>':
        image = Image.frombytes(
            'I;16' if order == '<' else 'I;16B', photo.size, deep.astype(f'{order}u2').tobytes()
        )
        yield f'16 bits, TIFF {order}', saved(image, 'TIFF'), upper
    height, width = deep.shape
    yield (
        '16 bits, PGM',
        b'P5 %d %d 65535\n' % (width, height) + deep.astype('>u2').tobytes(),
        upper,
    )
    dark = (deep >> 8).astype('>u2')
    yield 'dark PGM', b'P5 %d %d 65535\n' % (width, height) + dark.tobytes(), 0 * upper
    light = 255 - np.asarray(cyan).astype(np.uint16)
    cmyk = (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)
    yield 'CMYK TIFF', saved(cyan, 'TIFF'), cmyk


def test_pixels(photo):
    for what, file, expected in kinds(photo):
        np.testing.assert_array_equal(decode(file), expected, err_msg=what)
        for decoder in WAYS.values():
            pixels = decoder.decode_crop(file, lambda height, width: (3, 5, 31, 41))
            np.testing.assert_array_equal(pixels, expected[3:34, 5:46], err_msg=what)
        assert orientation(file) == 1
        small = Reading(max_pixels=97 * 61 - 1)
        assert taken(lambda file, _: decode(file, small), file) is None


def test_damaged_files(photo):
    """Nothing but BadImageError, whatever is broken; what is taken is taken alike."""
    rng, bad = np.random.default_rng(0), 0
    wholes = [file for _, file, _ in kinds(photo)]
    for number in range(40 * len(wholes)):
        whole = wholes[number % len(wholes)]
        damaged = bytearray(whole)
        for place in rng.integers(0, 300 if number % 2 else len(whole), rng.integers(1, 4)):
            damaged[min(place, len(whole) - 1)] = rng.integers(256)
        if number % 5 == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        found = [taken(lambda file, _: decode(file), bytes(damaged))]
        found += [taken(decoder.decode_crop, bytes(damaged)) for decoder in WAYS.values()]
        # one, for these look at the size as well
        assert found[1] is None or all(np.array_equal(found[0], each) for each in found[1:])
        bad += found[0] is None
    assert 0.2 < bad / (40 * len(wholes)) < 0.9


@pytest.mark.parametrize('value', range(9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_exif(photo, kind, value):
    """Turned as Pillow's own exif_transpose does it, where asked for."""
    exif = Image.Exif()
    exif[0x0112] = value
    options = {'lossless': True} if kind == 'WEBP' else {}
    file = saved(photo, kind, exif=exif, **options)
    plain = np.asarray(Image.open(io.BytesIO(saved(photo, kind, **options))).convert('RGB'))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert('RGB'))
    assert orientation(file) == (1 if kind == 'TIFF' else value)
    np.testing.assert_array_equal(decode(file), turned if kind == 'TIFF' else plain)
    np.testing.assert_array_equal(decode(file, Reading(exif=True)), turned)
    for decoder in WAYS.values():
        pixels = decoder.decode_crop(file, lambda *_: (3, 5, 41, 43), Reading(exif=True))
        np.testing.assert_array_equal(pixels, turned[3:44, 5:48])
    if kind != 'TIFF' and value > 4:
        assert turned.shape == (97, 61, 3)


def test_broken_exif_turns_nothing(photo):
    for junk in (b'junk', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff', b'Exif\0\0'):
        file = saved(photo, 'JPEG', exif=junk)
        assert orientation(file) == 1
        np.testing.assert_array_equal(decode(file, Reading(exif=True)), decode(file))


def test_endings(photo, tmp_path):
    """A folder's files are those with one of the endings; what Pillow reads may be added."""
    folder = tmp_path / 'class'
    folder.mkdir()
    for kind, ending in (('JPEG', 'JPG'), ('WEBP', 'webp'), ('TGA', 'tga'), ('EPS', 'eps')):
        (folder / f'a.{ending}').write_bytes(saved(photo, kind))
    config = DataConfig(path=str(tmp_path))
    assert [open_source(config, 'train').name(i)[-4:] for i in range(2)] == ['.JPG', 'webp']
    more = DataConfig(path=str(tmp_path), endings=(*ENDINGS, '.tga'))
    source = open_source(more, 'train')
    assert len(source) == 3
    tga = source.read(1).image
    for reading in (more.reading, more.reading._replace(exif=True)):
        np.testing.assert_array_equal(decode(tga, reading), np.asarray(photo))
    with pytest.raises(boxes.BadImageError, match='no image of a kind that is read'):
        decode(tga)
    for reading in (Reading(), more.reading):
        with pytest.raises(boxes.BadImageError):
            decode(saved(photo, 'EPS'), reading)  # Pillow would run Ghostscript
    for ending in ('.eps', '.mp4', 'jpg', '.JPG'):
        wrong = DataConfig(path=str(tmp_path), endings=(ending,))
        with pytest.raises(RequestError, match=rf"endings has '{ending}', which Pillow does not"):
            open_source(wrong, 'train')
    assert {'JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM'} == set(formats(ENDINGS))


def test_values_of_no_known_range(photo):
    values = np.asarray(photo.convert('L')).astype(np.float32)
    for array in (values, values.astype(np.int32)):
        with pytest.raises(boxes.BadImageError, match='of no known range'):
            decode(saved(Image.fromarray(array), 'TIFF'))


def test_a_picture_of_annotations_is_not_turned():
    with pytest.raises(RequestError, match=r'config\.data\.exif would turn images and not their'):
        SegmentDataConfig(exif=True)


def test_only_the_header_is_read(photo, monkeypatch):
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    for kind in ('JPEG', 'PNG', 'TIFF', 'GIF', 'BMP', 'PPM'):
        monkeypatch.undo()
        file = saved(photo.convert('L'), kind)
        monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
        with opened(file) as picture:
            assert picture.size == (97, 61)
        assert orientation(file) == 1
