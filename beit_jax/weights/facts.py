"""What is said of a model beside its tensors: the JSON of transformers and timm, the arguments of
the official code, our own metadata."""

import dataclasses
import re
from typing import Any

from beit_jax.errors import check
from beit_jax.models.architecture import head_config, segments
from beit_jax.weights.files import Source

IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
HALF = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, which Hugging Face writes

# BeitConfig's, for transformers may leave out of config.json what is at its default
HUGGINGFACE_DEFAULTS = {
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'hidden_act': 'gelu',
    'image_size': 224,
    'patch_size': 16,
    'num_channels': 3,
    'vocab_size': 8192,
    'layer_norm_eps': 1e-12,
    'layer_scale_init_value': 0.1,
    'use_absolute_position_embeddings': False,
    'use_relative_position_bias': False,
    'use_shared_relative_position_bias': False,
    'use_mean_pooling': True,
    'pool_scales': [1, 2, 3, 6],
    'use_auxiliary_head': True,
    'auxiliary_channels': 256,
    'auxiliary_num_convs': 1,
    'auxiliary_concat_input': False,
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """None where nothing is said. `mean` and `std` are for pixels in [0, 1]; `crop` is the side of
    the central square that is shown over the shorter side of a picture."""

    heads: int | None = None
    norm_eps: float | None = None
    layer_scale: float | None = None  # the initial value
    num_classes: int | None = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop: float | None = None
    # of the annotations of a segmenter: 0 is ignored, k is class k - 1
    reduce_zero_label: bool = False
    head: dict = dataclasses.field(default_factory=dict)  # fields of UperNetConfig
    # config.json of transformers, its defaults filled in
    claims: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_facts(source: Source, dialect: str, image_size: int, segments: bool) -> Facts:
    """What is said of a model whose tensors are for pictures of `image_size` pixels; `segments`:
    whether it is a segmenter.

    Raises:
      RequestError: an entry of another type or out of its range.
    """
    if source.metadata:
        return _from_metadata(source.metadata)
    if dialect == 'huggingface':
        return _from_huggingface(source.config, source.processor, image_size, segments)
    if segments:
        return _from_mmsegmentation(source.arguments)
    return _from_timm(source.config) if source.config else _from_arguments(source.arguments)


def usual_crop(image_size: int) -> float:
    """BEiT's evaluation (datasets.py): the shorter side is 256 / 224 of the crop below 384 pixels,
    and the crop itself from there on."""
    return 224 / 256 if image_size < 384 else 1.0


def metadata(architecture: dict, classes: tuple[str, ...]) -> dict:
    """What no file of the official code says, for the header of a safetensors file."""
    head = {}
    if segments(architecture):
        head = {
            'head': dataclasses.asdict(head_config(architecture)),
            'reduce_zero_label': architecture.get('reduce_zero_label', False),
        }
    names = ('heads', 'norm_eps', 'layer_scale', 'mean', 'std', 'crop')
    return {name: architecture[name] for name in names} | {'classes': list(classes)} | head


def _from_metadata(entries: dict) -> Facts:
    head = _group(entries, 'head')
    head = {
        'taps': _wholes(head, 'taps', -1),
        'pool_scales': _wholes(head, 'pool_scales', 1),
        'auxiliary_tap': _whole(head, 'auxiliary_tap', 0),
        'dropout': _number(head, 'dropout', 0, 1),
        'norm_eps': _number(head, 'norm_eps', 0, 1),
        'norm_momentum': _number(head, 'norm_momentum', 0, 1),
    }
    return Facts(
        head={name: value for name, value in head.items() if value is not None},
        reduce_zero_label=entries.get('reduce_zero_label') is True,
        heads=_whole(entries, 'heads'),
        norm_eps=_number(entries, 'norm_eps', 0, 1),
        layer_scale=_number(entries, 'layer_scale', 0, 1e3),
        classes=_labels(entries.get('classes')),
        mean=_three(entries, 'mean'),
        std=_three(entries, 'std', 1e-6),
        crop=_number(entries, 'crop', 0.01, 1),
    )


def _from_arguments(arguments: dict) -> Facts:
    """Those of run_beit_pretraining.py and run_class_finetuning.py."""
    imagenet = arguments.get('imagenet_default_mean_and_std')
    pixels = (IMAGENET if imagenet else HALF) if isinstance(imagenet, bool) else {}
    return Facts(
        layer_scale=_number(arguments, 'layer_scale_init_value', 0, 1e3),
        crop=_number(arguments, 'crop_pct', 0.01, 1),
        **pixels,
    )


def _from_mmsegmentation(arguments: dict) -> Facts:
    """The names of the classes, and from the text of its config the blocks that are tapped."""
    blocks = re.search(
        r'out_indices=[\[(]([\d, ]+)[\])]', str(arguments.get('config', '')).replace('\n', ' ')
    )
    taps = blocks and [int(number) for number in re.findall(r'\d{1,4}', blocks[1])]
    return Facts(
        classes=_labels(arguments.get('CLASSES')), head={'taps': tuple(taps)} if taps else {}
    )


def _from_timm(config: dict) -> Facts:
    arguments = _group(config, 'model_args')
    pictures = _group(config, 'pretrained_cfg') or config  # older ones have all on one level
    return Facts(
        heads=_whole(arguments, 'num_heads'),
        layer_scale=_number(arguments, 'init_values', 0, 1e3),
        num_classes=_whole(config, 'num_classes', 0),
        classes=_labels(config.get('label_names') or pictures.get('label_names')),
        mean=_three(pictures, 'mean'),
        std=_three(pictures, 'std', 1e-6),
        crop=_number(pictures, 'crop_pct', 0.01, 1),
    )


def _from_huggingface(config: dict, processor: dict, image_size: int, segments: bool) -> Facts:
    facts, notes = {}, []
    if config:
        config = HUGGINGFACE_DEFAULTS | config
        classes = _labels(config.get('id2label'))
        models = config.get('architectures') or []
        check(isinstance(models, list), f'architectures is {shown(models)}, not a list')
        # 2 is the default there
        facts = {
            'heads': _whole(config, 'num_attention_heads'),
            'norm_eps': _number(config, 'layer_norm_eps', 0, 1),
            'layer_scale': _number(config, 'layer_scale_init_value', 0, 1e3),
            'claims': config,
            'classes': ()
            if all(name == f'LABEL_{i}' for i, name in enumerate(classes))
            else classes,
            'num_classes': (len(classes) or 2) if 'BeitForImageClassification' in models else None,
        }
        if segments:
            facts['head'], said = _huggingface_head(config)
            notes += said
    if processor:
        scale = (
            255.0 * (_number(processor, 'rescale_factor', 1e-6, 1e3) or 1 / 255)
            if processor.get('do_rescale', True)
            else 255.0
        )
        mean, std = _three(processor, 'image_mean'), _three(processor, 'image_std', 1e-6)
        if processor.get('do_normalize', True) is False:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        facts |= {
            'mean': mean and tuple(one / scale for one in mean),
            'std': std and tuple(one / scale for one in std),
        }
        if segments:
            reduces = processor.get('do_reduce_labels', processor.get('reduce_labels'))
            return Facts(**facts, reduce_zero_label=reduces is True, notes=tuple(notes))
        shorter, cropped = _side(processor, 'size'), _side(processor, 'crop_size')
        keeps_shape = (
            not isinstance(processor.get('size'), dict) or 'shortest_edge' in processor['size']
        )
        if (
            processor.get('do_center_crop')
            and keeps_shape
            and cropped == image_size
            and shorter
            and cropped <= shorter
        ):
            facts['crop'] = cropped / shorter
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
    return Facts(**facts, notes=tuple(notes))


def _huggingface_head(config: dict) -> tuple[dict, list[str]]:
    """(fields of UperNetConfig, notes). Index i of transformers is hidden state i - 1, and hidden
    state 0 what the first block gets."""
    indices = _wholes(
        {'out_indices': config.get('out_indices') or config.get('segmentation_indices')},
        'out_indices',
        -200,
    )
    head = {'pool_scales': _wholes(config, 'pool_scales', 1)}
    if indices is None:
        return head, []
    states = 1 + (_whole(config, 'num_hidden_layers') or 0)
    check(len(indices) == 4, f'out_indices is {list(indices)}: a segmenter has four')
    check(
        all(-states <= index <= states for index in indices),
        f'out_indices is {list(indices)}, the model has {states} hidden states',
    )
    head['taps'] = tuple((index - 1) % states - 1 for index in indices)
    notes = [
        f'out_indices {list(indices)} is taken as transformers takes it: blocks '
        f'{list(head["taps"])} from 0 are tapped. Weights that another program trained on blocks '
        f'{list(indices)}, as the official code does, want {[index + 2 for index in indices]} there'
    ]
    return head, notes if indices[-1] == states - 2 else []


def _group(entries: dict, name: str) -> dict:
    value = entries.get(name) or {}
    check(isinstance(value, dict), f'{name} is {shown(value)}, not a group of settings')
    return value


def _number(entries: dict, name: str, low: float, high: float) -> float | None:
    value = entries.get(name)
    check(
        value is None
        or (
            isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        ),
        f'{name} is {shown(value)}, not a number from {low:g} to {high:g}',
    )
    return None if value is None else float(value)


def _whole(entries: dict, name: str, low: int = 1) -> int | None:
    value = _number(entries, name, low, 1e6)
    check(value is None or value == int(value), f'{name} is {value}, not a whole number')
    return None if value is None else int(value)


def _wholes(entries: dict, name: str, low: int) -> tuple[int, ...] | None:
    """Whole numbers of at least `low`."""
    value = entries.get(name)
    check(
        value is None or (isinstance(value, (list, tuple)) and 0 < len(value) <= 8),
        f'{name} is {shown(value)}, not a few numbers',
    )
    numbers = value and tuple(_whole({name: one}, name, low) for one in value)
    check(not numbers or None not in numbers, f'{name} is {shown(value)}, not a few numbers')
    return numbers


def _three(entries: dict, name: str, low: float = -1e3) -> tuple[float, float, float] | None:
    """A number for each colour, at least `low`."""
    value = entries.get(name)
    if value is None:
        return None
    check(
        isinstance(value, (list, tuple)) and len(value) == 3,
        f'{name} is {shown(value)}, not three numbers',
    )
    numbers = tuple(_number({name: one}, name, low, 1e3) for one in value)
    check(None not in numbers, f'{name} is {shown(value)}, not three numbers')
    return numbers


def _side(processor: dict, name: str) -> int | None:
    """The shorter side in pixels of `size` or `crop_size`, a number or a dict of them."""
    value = processor.get(name)
    sides = value if isinstance(value, dict) else {name: value}
    return min((side for side in (_whole(sides, key) for key in sides) if side), default=None)


def _labels(value: Any) -> tuple[str, ...]:
    """Names in a list, or in a dict by number. Numbers may be left out, as in the 22k classes of
    the hub: only their order counts."""
    if isinstance(value, dict):
        check(
            all(key.isdecimal() for key in value),
            f'the classes have the number {shown([key for key in value if not key.isdecimal()])}',
        )
        value = [value[key] for key in sorted(value, key=int)]
    check(
        value is None or isinstance(value, (list, tuple)),
        f'the names of the classes are {shown(value)}',
    )
    return tuple(str(name) for name in value or ())


def shown(value: Any) -> str:
    """A value from a file as a message may show it: on one line, short."""
    return ascii(value)[:80]
