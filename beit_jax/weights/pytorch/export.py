"""Our models in PyTorch's names and layouts, with the JSON that each library wants beside them."""

from flax import traverse_util
import jax
import numpy as np

from beit_jax.data.config import PixelFormat, sides
from beit_jax.errors import check
from beit_jax.models.architecture import head_config, predicts_tokens, segments
from beit_jax.models.layers import relative_position_index
from beit_jax.weights.pytorch import names
from beit_jax.weights.pytorch.facts import huggingface_settings, problem
from beit_jax.weights.pytorch.pictures import BICUBIC, BILINEAR
from beit_jax.weights.pytorch.pictures import pictures as pictures_of


def to_tensors(params, architecture: dict, dialect: str) -> dict[str, np.ndarray]:
    """The parameters (nested dict) as a state dict of the dialect.

    Contiguous float32, the numbers bit for bit. `unilm` gets the buffers that its models have
    (`relative_position_index`, int64), so that it loads them strictly, and a segmenter the counters
    of its batch norms.

    Raises:
      RequestError: the library has no such segmenter.
    """
    if segments(architecture):
        check(
            dialect != 'timm', 'timm has no segmentation models: use --format huggingface or unilm.'
        )
        check(
            head_config(architecture).kind == 'upernet',
            'this segmenter has a linear head, which these libraries have not: beit_jax.load and '
            'predict take it; with config.head.kind=upernet another can be trained.',
        )
        params = with_empty_block(params, architecture) if dialect == 'huggingface' else params
    if dialect == 'huggingface' and not architecture['qkv_bias']:
        params = _with_zero_biases(params)
    head, patch_size = names.head_kind(architecture), architecture['patch_size']
    tensors = {
        names.to_name(path, dialect, head): names.to_torch(path, np.asarray(array), patch_size)
        for path, array in traverse_util.flatten_dict(params, sep='/').items()
    }
    if dialect != 'huggingface':
        tensors = names.join_qkv(tensors)
    elif is_headless(architecture):  # a BeitModel
        tensors = {name.removeprefix('beit.'): array for name, array in tensors.items()}
    if dialect == 'unilm':
        index = relative_position_index(tuple(architecture['grid'])).astype(np.int64)
        tensors |= _beside(tensors, '.relative_position_bias_table', names.INDEX, index)
    count = np.asarray(architecture.get('batches_tracked', 0), np.int64)
    tensors |= _beside(tensors, '.running_mean', names.COUNTER, count)
    return {name: np.asarray(array, order='C') for name, array in tensors.items()}


def _beside(tensors: dict, end: str, other_end: str, buffer: np.ndarray) -> dict:
    """The buffer beside each tensor whose name ends so."""
    found = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    return {module + other_end: buffer for module in found}


def is_headless(architecture: dict) -> bool:
    """Whether a model has neither classes nor tokens."""
    return not predicts_tokens(architecture) and not architecture['num_classes']


def with_empty_block(params, architecture: dict) -> dict:
    """The parameters of a segmenter as transformers can run it.

    Index i of its `out_indices` is what block i - 1 gets, so that a last block that is tapped needs
    one behind it. That one is of zeros and adds nothing.

    Raises:
      RequestError: a head that transformers does not have.
    """
    head = head_config(architecture)
    check(
        list(head.taps) == sorted(set(head.taps)),
        f'its head taps blocks {list(head.taps)}: transformers taps four different ones, in order.',
    )
    check(
        (head.channels, head.auxiliary_tap, head.norm_eps) == (architecture['width'], 2, 1e-5),
        f'this head has {head.channels} channels, the auxiliary one on level {head.auxiliary_tap}, '
        f'norm_eps {head.norm_eps:g}: transformers has {architecture["width"]}, the width of the '
        'encoder, 2 and 1e-05.',
    )
    if not _taps_last(architecture):
        return params
    encoder = params['encoder']
    blocks = encoder['blocks']
    empty = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), blocks[max(blocks)])
    blocks = blocks | {f'{len(blocks):02d}': empty}
    return params | {'encoder': encoder | {'blocks': blocks}}


def _with_zero_biases(params) -> dict:
    """The parameters with the biases of queries and values, which transformers always has."""
    encoder = params['encoder']
    blocks = {}
    for name, block in encoder['blocks'].items():
        zeros, attention = np.zeros(len(block['norm1']['scale']), np.float32), block['attention']
        biased = {part: attention[part] | {'bias': zeros} for part in ('query', 'value')}
        blocks[name] = block | {'attention': attention | biased}
    return params | {'encoder': encoder | {'blocks': blocks}}


def _taps_last(architecture: dict) -> bool:
    return max(head_config(architecture).taps) == architecture['depth'] - 1


def headless(params, architecture: dict) -> tuple[dict, dict]:
    """(parameters, architecture) of a pre-trained model as timm has it.

    Without mask token and tokens, its last norm on CLS.
    """
    encoder = {name: value for name, value in params['encoder'].items() if name != 'mask_token'}
    params = {'encoder': encoder, 'head': {'norm': params['head']['norm']}}
    kind = {'architecture': 'beit_classifier', 'num_classes': 0, 'pooling': 'cls'}
    return params, architecture | kind


def huggingface_config(architecture: dict, classes: list[str]) -> dict:
    """config.json of transformers (4 and 5)."""
    head = {}
    if segments(architecture):
        head['out_indices'] = [tap + 2 for tap in head_config(architecture).taps]
        head['num_hidden_layers'] = architecture['depth'] + _taps_last(architecture)
    config = {
        'model_type': 'beit',
        'architectures': [_model_of_transformers(architecture)],
        **huggingface_settings(architecture),
        **head,
        'use_mask_token': predicts_tokens(architecture),
        'layer_norm_eps': architecture['norm_eps'],
        'layer_scale_init_value': architecture['layer_scale'],
        'drop_path_rate': architecture['drop_path'],
        'torch_dtype': 'float32',
    }
    config |= pictures_of(architecture)
    if predicts_tokens(architecture) or is_headless(architecture):
        return config
    labels = classes or [f'LABEL_{i}' for i in range(architecture['num_classes'])]
    config['id2label'] = {str(i): name for i, name in enumerate(labels)}
    config['label2id'] = {name: i for i, name in enumerate(labels)}
    return config | ({} if segments(architecture) else problem(architecture))


def _model_of_transformers(architecture: dict) -> str:
    if predicts_tokens(architecture):
        return 'BeitForMaskedImageModeling'
    if segments(architecture):
        return 'BeitForSemanticSegmentation'
    return 'BeitModel' if is_headless(architecture) else 'BeitForImageClassification'


def huggingface_processor(architecture: dict) -> dict:
    """preprocessor_config.json: shorter side, central crop, bicubic.

    BEiT's own image processor squeezes pictures to a square; CLIP's resizes the shorter side and
    crops, which is how BEiT was evaluated. A segmenter has BEiT's own, which knows annotations:
    squeezed, bilinear.
    """
    height, width = sides(architecture['image_size'])
    stored = PixelFormat(**architecture.get('pixels', {}))
    pixels = {
        'do_rescale': True,
        'rescale_factor': 1 / stored.top,
        'do_normalize': True,
        'image_mean': list(architecture['mean']),
        'image_std': list(architecture['std']),
    }
    if segments(architecture):
        return {
            'image_processor_type': 'BeitImageProcessor',
            'do_resize': True,
            'size': {'height': height, 'width': width},
            'resample': BILINEAR,
            'do_center_crop': False,
            'do_reduce_labels': architecture.get('reduce_zero_label', False),
            **pixels,
        }
    return {
        'image_processor_type': 'CLIPImageProcessor',
        'do_convert_rgb': architecture['channels'] == 3,
        'do_resize': True,
        'size': {'shortest_edge': round(max(height, width) / architecture['crop'])},
        'resample': BICUBIC,
        'do_center_crop': True,
        'crop_size': {'height': height, 'width': width},
        **pixels,
    }


def timm_config(architecture: dict, classes: list[str]) -> dict:
    """config.json of `timm.create_model('local-dir:DIR')`.

    The smallest of its models with every size overridden.
    """
    size, num_classes = architecture['image_size'], architecture['num_classes']
    width, hidden = architecture['width'], architecture['hidden']
    ratio = hidden / width
    model = {
        'img_size': size if isinstance(size, int) else list(size),
        'in_chans': architecture['channels'],
        'patch_size': architecture['patch_size'],
        'embed_dim': width,
        'depth': architecture['depth'],
        'num_heads': architecture['heads'],
        'mlp_ratio': ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        'init_values': architecture['layer_scale'],
        'qkv_bias': architecture['qkv_bias'],
        'use_abs_pos_emb': 'absolute' in architecture['positions'],
        'use_rel_pos_bias': 'layer_bias' in architecture['positions'],
        'use_shared_rel_pos_bias': 'shared_bias' in architecture['positions'],
        'global_pool': {'mean': 'avg', 'cls': 'token'}[architecture['pooling']],
    }
    pictures = {
        'input_size': [architecture['channels'], *sides(size)],
        'fixed_input_size': True,
        'interpolation': 'bicubic',
        'crop_mode': 'center',
        'crop_pct': architecture['crop'],
        'mean': list(architecture['mean']),
        'std': list(architecture['std']),
        'num_classes': num_classes,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
    }
    return {
        'architecture': 'beit_base_patch16_224',
        'num_classes': num_classes,
        'num_features': width,
        **(problem(architecture) if num_classes else {}),
        **pictures_of(architecture),
        'model_args': model,
        'pretrained_cfg': pictures | ({'label_names': list(classes)} if classes else {}),
    }
