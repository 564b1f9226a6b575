"""Pictures as tools read them: bit for bit what both decoders of training give, of every kind of
file; headers that promise too much; Pillow images of any mode."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from beit_jax.data.config import MAX_PIXELS, Reading
from beit_jax.data.pictures import boxes, label_maps
from beit_jax.data.pictures.read import decode, read_image, rgb
from beit_jax.errors import RequestError
from tests import tiny
from tests.data.pictures.test_decode import encoded, variants
from tests.data.ways import WAYS, reference
from tests.photos import write_photos


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    return Image.open(write_photos(tmp_path_factory.mktemp('photos'))[0]).convert('RGB')


def deep(photo, channels):
    """A PNG of 16 bits a channel, whose lower 8 are noise."""
    pixels = np.asarray(photo.resize((97, 61))).astype(np.uint16)
    pixels = np.concatenate([pixels, 255 - pixels[..., :1]], 2) << 8
    pixels |= np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint16)
    colors = {1: 0, 2: 4, 3: 2, 4: 6}
    header = struct.pack('>IIBBBBB', 97, 61, 16, colors[channels], 0, 0, 0)
    # each row of the file begins with its filter: none
    rows = b''.join(b'\0' + row.tobytes() for row in pixels[..., :channels].astype('>u2'))
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunks


def chunk(kind, body, checksum=None):
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', checksum)


def decorated(png):
    """The file with chunks that Pillow refuses, or may: what, file."""
    bomb = zlib.compress(bytes(5_000_000))
    chunks = {
        'large text': chunk(b'tEXt', b'key\0' + b'x' * 5_000_000),
        'compressed text': chunk(b'zTXt', b'key\0\0' + bomb),
        'much text': 100 * chunk(b'zTXt', b'key\0\0' + zlib.compress(bytes(900_000))),
        'a large profile': chunk(b'iCCP', b'key\0\0' + bomb),
        'no profile': chunk(b'iCCP', b'junk'),
        'a wrong checksum': chunk(b'tEXt', b'key\0value', checksum=5),
        'half a gamma': chunk(b'gAMA', b'\0'),
        'half a size': chunk(b'pHYs', b'\0'),
        'an animation': chunk(b'acTL', struct.pack('>II', 2, 0)),
        'EXIF': chunk(b'eXIf', b'junk'),
    }
    for what, added in chunks.items():
        yield what, png[:33] + added + png[33:]
    yield 'text at the end', png[:-12] + chunks['a wrong checksum'] + png[-12:]


def files(photo):
    yield from variants(photo)
    for channels in range(1, 5):
        yield f'16 bits, {channels}', deep(photo, channels)
    yield (
        'CMYK without Adobe',
        encoded(photo.convert('CMYK'), format='JPEG').replace(b'\0\x0eAdobe', b'\0\x0eOther'),
    )
    yield from decorated(encoded(photo.resize((97, 61)), format='PNG'))


def taken(decoder, file):
    """The pixels, or None of a bad file."""
    try:
        return decoder(file, boxes.whole_box)
    except boxes.BadImageError:
        return None


def test_bit_for_bit_what_training_reads(photo, tmp_path):
    for kind, file in files(photo):
        ours = decode(file)
        for trained in WAYS.values():
            expected = trained.decode_crop(file, boxes.whole_box)
            np.testing.assert_array_equal(ours, expected, err_msg=kind)
        (tmp_path / 'x.png').write_bytes(file)
        np.testing.assert_array_equal(read_image(str(tmp_path / 'x.png')), expected)
        if '16 bits' in kind or kind == 'CMYK':
            np.testing.assert_array_equal(rgb(Image.open(io.BytesIO(file))), expected)
    grey = decode(deep(photo, 1))
    assert grey.std() > 20  # not white


def test_damaged_files_are_judged_alike(photo):
    """What TensorFlow takes is taken, pixel for pixel, and nothing else."""
    rng, bad, trained = np.random.default_rng(0), 0, reference()
    small = photo.resize((97, 61))
    wholes = [encoded(small, format='JPEG'), encoded(small, format='PNG'), deep(photo, 1)]
    for number in range(450):
        whole = wholes[number % 3]
        damaged = bytearray(whole)
        for place in rng.integers(0, 400 if number % 2 else len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        expected = taken(trained.decode_crop, bytes(damaged))
        ours = taken(lambda file, box: boxes.crop(decode(file), box), bytes(damaged))
        bad += expected is None
        assert (ours is None) == (expected is None)
        np.testing.assert_array_equal(ours, expected)
    assert bad > 100


def test_segments_that_are_cut_off_or_apart(photo):
    """Of 20,000 damaged files, those that Pillow alone and libjpeg alone judge otherwise: a marker
    in a scan that leads past the end, which is reached after the last pixel; bytes between the
    segments of the header; a segment of an application that is too short."""
    whole, decoders = encoded(photo.resize((97, 61)).convert('CMYK'), format='JPEG'), [decode]
    decoders += [
        lambda file, way=way: way.decode_crop(file, boxes.whole_box) for way in WAYS.values()
    ]
    table, scan = whole.index(b'\xff\xc4'), whole.index(b'\xff\xda')
    apart = whole[:table] + b'\xff\x01' + bytes(9) + b'\xff' + whole[table:]
    cut = whole[: scan + 400] + b'\xff\xe7\xfe\xed' + whole[scan + 404 :]
    short = whole[:2] + b'\xff\xe0\0\x08JFIF\0\x01\xff\xe2\0\x0eICC_PROFILE\0\xff\xee\0\x07Adobe'
    expected = decode(whole)
    for decoder in decoders:
        np.testing.assert_array_equal(decoder(apart), expected)
        np.testing.assert_array_equal(decoder(short + whole[2:]), expected)
        with pytest.raises(boxes.BadImageError, match='truncated or damaged'):
            decoder(cut)


def test_what_is_refused_names_the_file(photo, tmp_path):
    eps, whole = io.BytesIO(), encoded(photo, format='JPEG')
    photo.resize((9, 9)).save(eps, 'EPS')
    for name, content, words in (
        (
            'eps.jpg',
            eps.getvalue(),
            'no image of a kind that is read',
        ),  # Pillow would run Ghostscript
        ('cut.jpg', whole[:999], 'truncated'),
        ('jp2.png', encoded(photo, format='JPEG2000'), 'no image of a kind that is read'),
        ('end.png', encoded(photo, format='PNG')[:-12], 'truncated or damaged'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=rf'/{name} cannot be read as an image: {words}'):
            read_image(str(tmp_path / name))
    with pytest.raises(RequestError, match=r'gone.jpg cannot be read as an image: No such file'):
        read_image(str(tmp_path / 'gone.jpg'))


def test_modes_of_pillow_images():
    values = np.random.default_rng(0).integers(0, 65536, [11, 13], np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert image.mode in ('I;16', 'I')
        np.testing.assert_array_equal(rgb(image), expected)
    for wrong in (
        values.astype(np.int32) - 65536,
        values.astype(np.int32) >> 8,
        values.astype('f4'),
    ):
        with pytest.raises(RequestError, match=r"of mode [IF] has values .*: make it 'L' or 'RGB'"):
            rgb(Image.fromarray(wrong))


def promising(file, height, width):
    """A small file whose header says that it is of that size."""
    if file.startswith(b'\x89PNG'):
        header = struct.pack('>II', width, height) + file[24:29]
        return file[:8] + chunk(b'IHDR', header) + file[33:]
    start = max(file.find(b'\xff\xc0'), file.find(b'\xff\xc2')) + 5
    return file[:start] + struct.pack('>HH', height, width) + file[start + 4 :]


BOMBS = """
import pathlib, resource, sys
from beit_jax.data.pictures import boxes, label_maps, read
from tests.data.ways import WAYS
files = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).iterdir())]
small = files.pop(0)
ways = [
    *(lambda file, way=way: way.decode_crop(file, boxes.whole_box) for way in WAYS.values()),
    read.decode,
    lambda file: label_maps.decode(file, 'x', 150, False),
]
for way in ways[:-1]:
    way(small)  # threads and tables are there
status = pathlib.Path('/proc/self/status').read_text().split()
limit = int(status[status.index('VmSize:') + 1]) * 1024 + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for way in ways:
    for file in files if way != ways[-1] else files[-1:]:
        try:
            way(file)
        except boxes.BadImageError as error:
            print(error)
"""


def test_headers_that_promise_too_much(photo, tmp_path):
    """13 GB in each of a few hundred bytes; there is half a gigabyte."""
    small = photo.resize((16, 16))
    (tmp_path / '0').write_bytes(encoded(small, format='JPEG'))
    for name, settings in (
        ('1', {'format': 'JPEG'}),
        ('2', {'format': 'JPEG', 'progressive': True}),
        ('3', {'format': 'PNG'}),
    ):
        (tmp_path / name).write_bytes(promising(encoded(small, **settings), 65_000, 65_500))
    done = tiny.run(['-c', BOMBS, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    said = '65000 x 65500 pixels, more than config.data.max_pixels (178,956,970)'
    expected = 3 * len(WAYS) + 4
    assert done.stdout.count(said) == expected == len(done.stdout.splitlines())


def test_the_limit(photo):
    """It is exact, and counts the pixels of the whole picture."""
    for kind in ('JPEG', 'PNG'):
        file = encoded(photo.resize((31, 37)), format=kind)
        for decoder in WAYS.values():
            assert decoder.decode_crop(file, boxes.whole_box, Reading(31 * 37)).shape == (37, 31, 3)
            with pytest.raises(boxes.BadImageError, match=r'37 x 31 pixels, more than .*1,146'):
                decoder.decode_crop(file, lambda *_: (0, 0, 9, 9), Reading(31 * 37 - 1))
        assert decode(file, Reading(31 * 37)).shape == (37, 31, 3)
        with pytest.raises(boxes.BadImageError, match='37 x 31 pixels'):
            decode(file, Reading(31 * 37 - 1))
    label = encoded(Image.new('L', (31, 37)), format='PNG')
    assert label_maps.decode(label, 'x', 5, False, Reading(31 * 37)).shape == (37, 31)
    with pytest.raises(boxes.BadImageError, match='annotation cannot be used: 37 x 31 pixels'):
        label_maps.decode(label, 'x', 5, False, Reading(31 * 37 - 1))
    assert MAX_PIXELS == 2 * (1024**3 // 4 // 3)  # where Pillow refuses


@pytest.mark.filterwarnings('error')
def test_annotations_with_large_chunks():
    values = np.random.default_rng(0).integers(0, 5, [61, 97], np.uint8)
    for what, file in decorated(encoded(Image.fromarray(values), format='PNG')):
        np.testing.assert_array_equal(label_maps.decode(file, 'x', 5, False), values, what)
