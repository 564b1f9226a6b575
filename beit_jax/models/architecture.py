"""A model from the description of its architecture that checkpoints carry.

That has the fields of `EncoderConfig`, `grid`, and those of its head.
"""

import dataclasses

from flax import nnx

from beit_jax.errors import check
from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import Classifier, ClsHeadConfig, MaskedImageModel
from beit_jax.models.presets import PRESETS
from beit_jax.models.upernet import Segmenter, UperNetConfig
from beit_jax.models.ways import PARTS
from beit_jax.settings.mapping import from_mapping

ARCHITECTURES = ('beit_masked_image_model', 'beit_classifier', 'beit_segmenter')
# what the outputs of a classifier are, as transformers calls it: scores of which a softmax makes
# probabilities, scores of which a sigmoid makes one each, or plain numbers
PROBLEM_TYPES = ('single_label_classification', 'multi_label_classification', 'regression')


def check_encodes(architecture: dict, source: str) -> None:
    """Raises RequestError where a description is of a model without an encoder, a tokenizer."""
    check(
        architecture['architecture'] in ARCHITECTURES,
        f'{source} is a {architecture["architecture"]}: give a checkpoint of pre-training or of '
        'fine-tuning.',
    )


def patch_target(architecture: dict) -> str:
    """What a model of pre-training predicts of each patch; '' of other models.

    'tokens' or 'pixels' (normalised: see `tasks.pretrain`).
    """
    if architecture['architecture'] != 'beit_masked_image_model':
        return ''
    return architecture.get('target', 'tokens')  # not every description says


def predicts_tokens(architecture: dict) -> bool:
    """Whether a model is of pre-training on tokens."""
    return patch_target(architecture) == 'tokens'


def segments(architecture: dict) -> bool:
    """Whether a model classifies pixels."""
    return architecture['architecture'] == 'beit_segmenter'


def problem_type(architecture: dict) -> str:
    """Of PROBLEM_TYPES: where nothing is said, one output is a number, as transformers has it."""
    usual = PROBLEM_TYPES[2 if architecture.get('num_classes') == 1 else 0]
    return architecture.get('problem_type') or usual


def head_config(architecture: dict) -> UperNetConfig:
    """The head of a segmenter, all of it filled in."""
    head = from_mapping(UperNetConfig, architecture['head'], 'architecture.head.')
    return head.fitted(encoder_config(architecture))


def cls_head_config(architecture: dict) -> ClsHeadConfig:
    """The head that pre-trains CLS; of most models there is none."""
    return from_mapping(ClsHeadConfig, architecture.get('cls_head', {}), 'architecture.cls_head.')


def encoder_config(architecture: dict) -> EncoderConfig:
    """All of it but how it is computed, which is as the machine at hand can."""
    names = {field.name for field in dataclasses.fields(EncoderConfig)} - set(PARTS)
    return from_mapping(
        EncoderConfig, {name: architecture[name] for name in names}, 'architecture.'
    )


def build(
    architecture: dict, *, dtype='float32', rngs: nnx.Rngs
) -> MaskedImageModel | Classifier | Segmenter:
    """The module, freshly initialised.

    Args:
      architecture: `architecture` (of ARCHITECTURES), `grid`, the fields of `EncoderConfig`, and
        `target` and for tokens `vocabulary` and perhaps `cls_head` (the fields of `ClsHeadConfig`),
        or `num_classes` (0: no head but its norm) and `pooling`, or `num_classes` and `head` (the
        fields of `UperNetConfig`).
      dtype: of the products and of the residual stream.

    Raises:
      RequestError: sizes that do not fit one another.
    """
    config, grid = encoder_config(architecture), tuple(architecture['grid'])
    options = {'dtype': dtype, 'rngs': rngs}
    if predicts_tokens(architecture):
        more = cls_head_config(architecture)
        more.check_depth(config.depth)
        return MaskedImageModel(config, grid, architecture['vocabulary'], cls_head=more, **options)
    if patch_target(architecture):
        return MaskedImageModel(config, grid, config.patch_values, **options)
    classes = architecture['num_classes']
    if segments(architecture):
        return Segmenter(config, grid, classes, head=head_config(architecture), **options)
    return Classifier(config, grid, classes, pooling=architecture['pooling'], **options)


def abstract(architecture: dict, *, dtype='float32') -> tuple[nnx.GraphDef, dict]:
    """(graphdef, parameters as a nested dict of jax.ShapeDtypeStruct) of `build`."""
    model = nnx.eval_shape(lambda: build(architecture, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def in_words(architecture: dict) -> list[str]:
    """What a person wants to know of a description: head, sizes, pictures; a line each."""
    a, (rows, columns) = architecture, architecture['grid']
    if predicts_tokens(a):
        head = f'pre-trained: predicts {a["vocabulary"]} tokens'
        if (more := cls_head_config(a)).layers:
            head += f', CLS by {more.layers} more blocks on the patches of block {more.early}'
    elif patch_target(a):
        head = 'pre-trained: predicts the pixels of each patch, normalised'
    elif segments(a):
        uper = head_config(a)
        head, blocks = f'segmenter of {a["num_classes"]} classes: ', _listed(uper.taps)
        if uper.kind == 'linear':
            head += f'linear on blocks {blocks} (from 0)'
        else:
            head += (
                f'UPerNet of {uper.channels} channels on blocks {blocks} (from 0), pools '
                f'{_listed(uper.pool_scales)}'
            )
        if uper.kind == 'upernet' and uper.auxiliary_channels:
            head += f'; auxiliary head of {uper.auxiliary_channels}'
    elif a['num_classes']:
        head = f'classifier of {a["num_classes"]} classes, pooling {a["pooling"]}'
        if problem_type(a) != PROBLEM_TYPES[0]:
            head += f', {problem_type(a)}'
    else:
        head = f'encoder without classes or tokens; its last norm is for pooling {a["pooling"]}'
    is_preset = all(a[name] == value for name, value in PRESETS[a['size']].items())
    size = a['size'] if is_preset else 'a size of its own'
    return [
        head,
        f'{size}: width {a["width"]}, {a["depth"]} blocks, {a["heads"]} heads, MLP {a["hidden"]}; '
        f'positions {a["positions"]}, LayerScale {"yes" if a["layer_scale"] else "no"}, norm_eps '
        f'{a["norm_eps"]:g}',
        f'pictures of {rows * a["patch_size"]} x {columns * a["patch_size"]} pixels'
        f'{_pixels(a)}, {rows} x {columns} patches of {a["patch_size"]}; '
        f'mean {tuple(a["mean"])}, std {tuple(a["std"])}, crop {a["crop"]:g}',
    ]


def _pixels(architecture: dict) -> str:
    """What they are where they are not RGB."""
    said = '' if architecture['channels'] == 3 else f' and {architecture["channels"]} channels'
    stored = architecture.get('pixels')
    if stored:
        which = f', of which {_listed(stored["bands"])} (from 0)' * bool(stored['bands'])
        said += f' (stored: {stored["channels"]} of {stored["bits"]} bits{which})'
    return said


def _listed(numbers) -> str:
    return ', '.join(map(str, numbers))
