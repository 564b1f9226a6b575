"""How a file of PyTorch weights wants its pictures, and what it calls its classes: from the JSON beside it and from its own settings.

`mean` and `std` are for pixels in [0, 1]; `crop` is the side of the central square that is shown over the shorter side of a picture.
"""
from beit_jax.config import check
from beit_jax.weights.files import Source

IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
HALF = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
BICUBIC = 3  # Pillow's number, which Hugging Face writes


def usual_crop(image_size: int) -> float:
    """BEiT's evaluation (datasets.py): the shorter side is 256 / 224 of the crop below 384 pixels, and the crop itself from there on."""
    return 224 / 256 if image_size < 384 else 1.0


def read_processing(source: Source, image_size: int, notes: list[str]) -> dict:
    """{'mean', 'std', 'crop'}; adds to `notes` where it is an assumption."""
    crop, processor, settings = usual_crop(image_size), source.processor, source.settings
    if processor:
        pixels = {'mean': processor.get('image_mean'), 'std': processor.get('image_std')}
        resized, cropped = (_side(processor.get(name)) for name in ('size', 'crop_size'))
        if processor.get('do_center_crop') and cropped and resized:
            crop = min(1.0, cropped / resized)
        else:
            notes.append(f'preprocessor_config.json squeezes whole pictures to {resized} pixels; here the central {crop:.0%} is shown, as BEiT '
                         'was evaluated')
        if processor.get('resample', BICUBIC) != BICUBIC:
            notes.append('preprocessor_config.json resamples otherwise; here it is bicubic, as BEiT was evaluated')
    elif source.config.get('pretrained_cfg'):  # timm
        pixels, crop = source.config['pretrained_cfg'], source.config['pretrained_cfg'].get('crop_pct', crop)
    elif 'mean' in settings:  # our own metadata
        pixels, crop = settings, settings.get('crop', crop)
    elif 'imagenet_default_mean_and_std' in settings:  # an argument of the official code
        pixels = IMAGENET if settings['imagenet_default_mean_and_std'] else HALF
    else:
        pixels = HALF
        if source.released is None:
            notes.append('nothing tells how its pixels were normalised: mean and std 0.5 are assumed, as for all released weights')
    found = {name: pixels.get(name) for name in ('mean', 'std')}
    for name, value in found.items():
        check(isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(one, (int, float)) for one in value),
              f'the {name} of its pixels is {value!r}, not three numbers')
    return {name: [float(one) for one in value] for name, value in found.items()} | {'crop': float(crop)}


def _side(size) -> int | None:
    """Of `size` or `crop_size` in preprocessor_config.json, a number or a dict: the shorter side in pixels."""
    return min(size.values(), default=None) if isinstance(size, dict) else size


def read_classes(source: Source) -> tuple[str, ...]:
    """The names of the classes in their order; () where there are none but 'LABEL_0', 'LABEL_1', ..."""
    labels = source.config.get('id2label') or {}
    check(all(key.isdigit() for key in labels), 'id2label in config.json has a key that is no number.')
    named = [labels[key] for key in sorted(labels, key=int)]
    named = named or (source.config.get('pretrained_cfg') or {}).get('label_names') or source.settings.get('classes') or []
    return () if all(name == f'LABEL_{i}' for i, name in enumerate(named)) else tuple(str(name) for name in named)
