"""What is said of a model beside its tensors, and what we say of ours.

That is the JSON of transformers and timm, the arguments of the official code, our own metadata.
"""

import dataclasses
import re

from beit_jax.data.config import PixelFormat
from beit_jax.errors import check
from beit_jax.models.architecture import (
    PROBLEM_TYPES,
    head_config,
    predicts_tokens,
    problem_type,
    segments,
)
from beit_jax.weights.pytorch.entries import (
    choice,
    each_channel,
    group,
    labels,
    number,
    shown,
    whole,
    wholes,
)
from beit_jax.weights.pytorch.files import Source
from beit_jax.weights.pytorch.pictures import (
    HALF,
    IMAGENET,
    central_crop,
    normalisation,
    pictures,
    pixel_format,
)

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
    """None where nothing is said.

    `mean` and `std` are for pixels in [0, 1]; `crop` is the side of the central square that is
    shown over the shorter side of a picture.
    """

    heads: int | None = None
    norm_eps: float | None = None
    layer_scale: float | None = None  # the initial value
    num_classes: int | None = None
    classes: tuple[str, ...] = ()
    problem_type: str | None = None  # of PROBLEM_TYPES
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    # of `PixelFormat`, where they are not RGB of 8 bits
    pixels: dict = dataclasses.field(default_factory=dict)
    crop: float | None = None
    # of the annotations of a segmenter: 0 is ignored, k is class k - 1
    reduce_zero_label: bool = False
    head: dict = dataclasses.field(default_factory=dict)  # fields of UperNetConfig
    cls_early: int | None = None  # of ClsHeadConfig
    # config.json of transformers, its defaults filled in
    claims: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_facts(
    source: Source, dialect: str, image_size: int | tuple[int, int], segments: bool
) -> Facts:
    """What is said of a model.

    Args:
      source: its file or folder.
      dialect: of its names.
      image_size: of the pictures that its tensors are for, in pixels; of no squares two.
      segments: whether it is a segmenter.

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


def metadata(architecture: dict, classes: tuple[str, ...]) -> dict:
    """What no file of the official code says, for the header of a safetensors file."""
    names = ('heads', 'norm_eps', 'layer_scale', 'mean', 'std', 'crop')
    entries = {name: architecture[name] for name in names} | {'classes': list(classes)}
    entries |= problem(architecture) | pictures(architecture)
    if 'cls_head' in architecture:
        entries['cls_early'] = architecture['cls_head']['early']
    if segments(architecture):
        entries['head'] = dataclasses.asdict(head_config(architecture))
        entries['reduce_zero_label'] = architecture.get('reduce_zero_label', False)
    return entries


def problem(architecture: dict) -> dict:
    """{'problem_type': what the outputs of a classifier are}; {} where that need not be said."""
    named, usual = problem_type(architecture), problem_type(architecture | {'problem_type': None})
    return {} if named == usual else {'problem_type': named}


def huggingface_settings(architecture: dict) -> dict:
    """What config.json says of a model, under its names there, as far as the tensors show it."""
    tokens, pixels = predicts_tokens(architecture), segments(architecture)
    settings = {
        'hidden_size': architecture['width'],
        'num_hidden_layers': architecture['depth'],
        'num_attention_heads': architecture['heads'],
        'intermediate_size': architecture['hidden'],
        'hidden_act': 'gelu',
        'image_size': _number_or_list(architecture['image_size']),
        'patch_size': architecture['patch_size'],
        'num_channels': architecture['channels'],
        'use_absolute_position_embeddings': 'absolute' in architecture['positions'],
        'use_relative_position_bias': 'layer_bias' in architecture['positions'],
        'use_shared_relative_position_bias': 'shared_bias' in architecture['positions'],
        'use_mean_pooling': tokens or pixels or architecture['pooling'] == 'mean',
    }
    if pixels:
        head = head_config(architecture)
        settings |= {
            'pool_scales': list(head.pool_scales),
            'use_auxiliary_head': bool(head.auxiliary_channels),
        }
        if head.auxiliary_channels:
            settings |= {
                'auxiliary_channels': head.auxiliary_channels,
                'auxiliary_num_convs': 1,
                'auxiliary_concat_input': False,
            }
    if tokens:
        settings['vocab_size'] = architecture['vocabulary']
    return settings


def _number_or_list(size):
    return size if isinstance(size, int) else list(size)


def _from_metadata(entries: dict) -> Facts:
    head = group(entries, 'head')
    head = {
        'taps': wholes(head, 'taps', -1),
        'pool_scales': wholes(head, 'pool_scales', 1),
        'auxiliary_tap': whole(head, 'auxiliary_tap', 0),
        'dropout': number(head, 'dropout', 0, 1),
        'norm_eps': number(head, 'norm_eps', 0, 1),
        'norm_momentum': number(head, 'norm_momentum', 0, 1),
    }
    return Facts(
        head={name: value for name, value in head.items() if value is not None},
        reduce_zero_label=entries.get('reduce_zero_label') is True,
        heads=whole(entries, 'heads'),
        cls_early=whole(entries, 'cls_early'),
        norm_eps=number(entries, 'norm_eps', 0, 1),
        layer_scale=number(entries, 'layer_scale', 0, 1e3),
        classes=labels(entries.get('classes')),
        problem_type=choice(entries, 'problem_type', PROBLEM_TYPES),
        mean=each_channel(entries, 'mean'),
        std=each_channel(entries, 'std', 1e-6),
        crop=number(entries, 'crop', 0.01, 1),
        pixels=pixel_format(entries),
    )


def _from_arguments(arguments: dict) -> Facts:
    """Those of run_beit_pretraining.py (of BEiT v2 too) and run_class_finetuning.py."""
    imagenet = arguments.get('imagenet_default_mean_and_std')
    pixels = (IMAGENET if imagenet else HALF) if isinstance(imagenet, bool) else {}
    return Facts(
        layer_scale=number(arguments, 'layer_scale_init_value', 0, 1e3),
        cls_early=whole(arguments, 'early_layers'),
        crop=number(arguments, 'crop_pct', 0.01, 1),
        **pixels,
    )


def _from_mmsegmentation(arguments: dict) -> Facts:
    """The names of the classes, and from the text of its config the blocks that are tapped."""
    config = str(arguments.get('config', '')).replace('\n', ' ')
    blocks = re.search(r'out_indices=[\[(]([\d, ]+)[\])]', config)
    taps = tuple(map(int, re.findall(r'\d{1,4}', blocks[1]))) if blocks else ()
    head = {'taps': taps} if taps else {}
    return Facts(classes=labels(arguments.get('CLASSES')), head=head)


def _from_timm(config: dict) -> Facts:
    arguments = group(config, 'model_args')
    pictures = group(config, 'pretrained_cfg') or config  # older ones have all on one level
    return Facts(
        heads=whole(arguments, 'num_heads'),
        layer_scale=number(arguments, 'init_values', 0, 1e3),
        num_classes=whole(config, 'num_classes', 0),
        classes=labels(config.get('label_names') or pictures.get('label_names')),
        # timm does not know it: our own export says it
        problem_type=choice(config, 'problem_type', PROBLEM_TYPES),
        mean=each_channel(pictures, 'mean'),
        std=each_channel(pictures, 'std', 1e-6),
        crop=number(pictures, 'crop_pct', 0.01, 1),
        pixels=pixel_format(config),
    )


def _from_huggingface(
    config: dict, processor: dict, image_size: int | tuple[int, int], segments: bool
) -> Facts:
    facts, notes = {}, []
    if config:
        facts, notes = _from_huggingface_config(HUGGINGFACE_DEFAULTS | config, segments)
    if processor:
        facts |= normalisation(processor, PixelFormat(**facts.get('pixels', {})).top)
    if processor and segments:
        reduces = processor.get('do_reduce_labels', processor.get('reduce_labels'))
        facts['reduce_zero_label'] = reduces is True
    elif processor:
        facts['crop'], said = central_crop(processor, image_size)
        notes += said
    return Facts(**facts, notes=tuple(notes))


def _from_huggingface_config(config: dict, segments: bool) -> tuple[dict, list[str]]:
    """(fields of Facts, notes)."""
    classes = labels(config.get('id2label'))
    models = config.get('architectures') or []
    check(isinstance(models, list), f'architectures is {shown(models)}, not a list')
    classifies = 'BeitForImageClassification' in models
    unnamed = all(name == f'LABEL_{i}' for i, name in enumerate(classes))
    facts = {
        'heads': whole(config, 'num_attention_heads'),
        'norm_eps': number(config, 'layer_norm_eps', 0, 1),
        'layer_scale': number(config, 'layer_scale_init_value', 0, 1e3),
        'claims': config,
        'pixels': pixel_format(config),
        'classes': () if unnamed else classes,
        'problem_type': choice(config, 'problem_type', PROBLEM_TYPES),
        'num_classes': (len(classes) or 2) if classifies else None,  # 2 is the default there
    }
    if not segments:
        return facts, []
    facts['head'], notes = _huggingface_head(config)
    return facts, notes


def _huggingface_head(config: dict) -> tuple[dict, list[str]]:
    """(fields of UperNetConfig, notes).

    Index i of transformers is hidden state i - 1, and hidden state 0 what the first block gets.
    """
    given = config.get('out_indices') or config.get('segmentation_indices')
    indices = wholes({'out_indices': given}, 'out_indices', -200)
    head = {'pool_scales': wholes(config, 'pool_scales', 1)}
    if indices is None:
        return head, []
    states = 1 + (whole(config, 'num_hidden_layers') or 0)
    check(len(indices) == 4, f'out_indices is {list(indices)}: a segmenter has four')
    check(
        all(-states <= index <= states for index in indices),
        f'out_indices is {list(indices)}, the model has {states} hidden states',
    )
    head['taps'] = tuple((index - 1) % states - 1 for index in indices)
    note = (
        f'out_indices {list(indices)} is taken as transformers takes it: blocks '
        f'{list(head["taps"])} from 0 are tapped. Weights that another program trained on blocks '
        f'{list(indices)}, as the official code does, want {[index + 2 for index in indices]} there'
    )
    return head, [note] if indices[-1] == states - 2 else []
