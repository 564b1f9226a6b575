"""Converts a published tokenizer to safetensors, once, without PyTorch and without running anything
in the file: DALL-E's encoder.pkl and decoder.pkl, or the "customized" dVAE of the official BEiT
code (pytorch_model.bin)."""

from pathlib import Path

from flax import traverse_util
import jax
import numpy as np

from beit_jax.errors import RequestError, check
from beit_jax.models.tokenizers import make_tokenizer
from beit_jax.tools import arguments
from beit_jax.weights.pickles import read_tensors
from beit_jax.weights.tokenizer import DESCRIPTION, load_tokenizer, mismatches, save_tokenizer
from beit_jax.weights.torch_tokenizers import from_customized, from_dalle


def convert(paths: list[str]):
    """(kind, Config, params) of one or two files.

    Raises:
      RequestError: a file that is refused, or two that do not belong together.
    """
    kind, config, params = '', None, {}
    for path in paths:
        tensors = read_tensors(path)
        dalle = any(name.startswith('blocks.') for name in tensors)
        try:
            new_config, parts = from_dalle(tensors) if dalle else from_customized(tensors)
        except RequestError as error:
            raise RequestError(f'{path}: {error}') from error
        new_kind = 'dvae' if dalle else 'customized'
        check(
            not params.keys() & parts.keys(),
            f'{path} is a second {" and ".join(parts)}: give one of each.',
        )
        kind, config, params = join(kind, config, params, new_kind, new_config, parts, path)
    return kind, config, params


def join(kind, config, params, new_kind, new_config, parts, source: str):
    """(kind, config, params) of a tokenizer with `parts` added. DALL-E's two halves share all sizes
    but the decoder's input width."""
    if not params:
        return new_kind, new_config, parts
    decoder_config, other = (new_config, config) if 'decoder' in parts else (config, new_config)
    same = ('groups', 'blocks', 'width', 'vocabulary')
    check(
        kind == new_kind == 'dvae'
        and all(getattr(decoder_config, name) == getattr(other, name) for name in same),
        f'{source} does not belong to the other half: it is {new_config}, the other one {config}. '
        'Give both, or another --output.',
    )
    return kind, decoder_config, params | parts


def run(options) -> None:
    kind, config, params = convert(options.input)
    output = Path(options.output)
    image_size = options.image_size or 112
    # encoder.pkl and decoder.pkl may come one after the other
    if (output / DESCRIPTION).is_file() and len(params) == 1:
        tokenizer, there = load_tokenizer(options.output, encoder=False, decoder=True)
        kept = {part: tree for part, tree in there.items() if part not in params}
        if kept:
            image_size = options.image_size or tokenizer.image_size
            kind, config, params = join(
                tokenizer.kind, tokenizer.config, kept, kind, config, params, options.input[0]
            )
    tokenizer = make_tokenizer(kind, vars(config), image_size)
    params = jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), params)
    wrong = mismatches(tokenizer, traverse_util.flatten_dict(params, sep='/'))
    check(
        not wrong,
        f'{" ".join(options.input)}: {len(wrong)} tensors do not fit the architecture: '
        + '; '.join(
            f'{name} is {found[0] if found else "missing"}, expected '
            f'{expected[0] if expected else "nothing"}'
            for name, (found, expected) in list(wrong.items())[:3]
        )
        + '.',
    )
    save_tokenizer(output, kind, config, image_size, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f'{kind} tokenizer, {" and ".join(sorted(params))}: {count:,} parameters, '
        f'{config.vocabulary} tokens, {image_size} pixels to {image_size // tokenizer.factor} x '
        f'{image_size // tokenizer.factor} -> {output}'
    )


def _arguments():
    parser = arguments.parser(
        'import_tokenizer',
        __doc__,
        'python -m beit_jax.tools.import_tokenizer --input encoder.pkl decoder.pkl --output '
        'tokenizers/dalle',
    )
    parser.add_argument(
        '--input',
        required=True,
        nargs='+',
        metavar='FILE',
        help='encoder.pkl (enough to pre-train), decoder.pkl (to draw), or both; or '
        'pytorch_model.bin',
    )
    parser.add_argument(
        '--output',
        required=True,
        metavar='DIR',
        help='the directory to write; a half that is there already is kept',
    )
    parser.add_argument(
        '--image_size',
        type=int,
        default=0,
        help='side in pixels of the pictures it is for (112: 14 x 14 tokens)',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
