"""What is said of a model's pictures beside its tensors: size, format, normalisation, crop."""

from collections.abc import Callable
import dataclasses

from beit_jax.data.config import PixelFormat, sides
from beit_jax.errors import check
from beit_jax.settings.mapping import from_mapping
from beit_jax.weights.pytorch.entries import each_channel, group, number, shown, whole, wholes
from beit_jax.weights.pytorch.files import Source

IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
HALF = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, which Hugging Face writes


def said_shape(source: Source) -> tuple[int, int] | None:
    """Height and width of its pictures, where something beside the tensors says both."""
    config = source.config
    pictures = group(config, 'pretrained_cfg')
    given = source.metadata.get('image_size') or config.get('image_size')
    given = given or group(config, 'model_args').get('img_size') or pictures.get('input_size')
    if not isinstance(given, list) or len(given) < 2:
        return None
    return wholes({'image_size': given[-2:]}, 'image_size', 1)


def usual_crop(image_size: int | tuple[int, int]) -> float:
    """Of BEiT's evaluation (datasets.py), by the side of its pictures in pixels.

    The shorter side is 256 / 224 of the crop below 384 pixels, and the crop itself from there on.
    """
    return 224 / 256 if max(sides(image_size)) < 384 else 1.0


def pictures(architecture: dict) -> dict:
    """{'pixels', 'image_size'}: what no library has a name for; {} of square pictures of RGB."""
    entries = {'pixels': architecture['pixels']} if architecture.get('pixels') else {}
    if not isinstance(architecture['image_size'], int):
        entries['image_size'] = list(architecture['image_size'])
    return entries


def pixel_format(entries: dict) -> dict:
    """The entry of `pictures`, checked."""
    given = group(entries, 'pixels')
    if not given:
        return {}
    found = from_mapping(PixelFormat, given, 'pixels.')
    check(
        found.bits in (8, 16) and all(band < found.channels for band in found.bands),
        f'pixels is {shown(given)}, which no pictures are',
    )
    return dataclasses.asdict(found)


def normalisation(processor: dict, top: int) -> dict:
    """`mean` and `std` for pixels in [0, 1], `top` as they are stored."""
    scale = float(top)
    if processor.get('do_rescale', True):
        scale = top * (number(processor, 'rescale_factor', 1e-6, 1e3) or 1 / 255)
    mean, std = each_channel(processor, 'image_mean'), each_channel(processor, 'image_std', 1e-6)
    if processor.get('do_normalize', True) is False:
        channels = len(mean or (0, 0, 0))
        mean, std = (0.0,) * channels, (1.0,) * channels
    return {
        'mean': mean and tuple(one / scale for one in mean),
        'std': std and tuple(one / scale for one in std),
    }


def central_crop(
    processor: dict, image_size: int | tuple[int, int]
) -> tuple[float | None, list[str]]:
    """(crop where pictures are cropped as here, notes)."""
    crop, notes = None, []
    shorter, cropped = _side(processor, 'size', min), _side(processor, 'crop_size', max)
    size = processor.get('size')
    keeps_shape = not isinstance(size, dict) or 'shortest_edge' in size
    fits = cropped == max(sides(image_size)) and shorter and cropped <= shorter
    if processor.get('do_center_crop') and keeps_shape and fits:
        crop = cropped / shorter
    else:
        notes.append(
            'preprocessor_config.json resizes and crops pictures otherwise; here the central '
            f'{usual_crop(image_size):.3g} of the shorter side becomes {image_size} pixels, as '
            'BEiT was evaluated'
        )
    if processor.get('resample', BICUBIC) != BICUBIC:
        notes.append(
            'preprocessor_config.json does not resample bicubically; here it is bicubic, as '
            'BEiT was evaluated'
        )
    return crop, notes


def _side(processor: dict, name: str, which: Callable) -> int | None:
    """The shorter (min) or longer (max) side in pixels of `size` or `crop_size`, a number or a dict
    of them."""
    value = processor.get(name)
    named = value if isinstance(value, dict) else {name: value}
    found = [whole(named, key) for key in named]
    return which((side for side in found if side), default=None)
