"""Converts a published tokenizer to safetensors: once, without PyTorch and without running anything
in the file. It may be DALL-E's encoder.pkl and decoder.pkl, the "customized" dVAE of the official
BEiT code (pytorch_model.bin), or VQ-KD of BEiT v2 (vqkd_*.pth)."""

import numpy as np

from beit_jax.errors import check
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    import jax

    from beit_jax.models.tokenizers import make_tokenizer
    from beit_jax.weights.pytorch.published_tokenizers import Published, join, read_tokenizer
    from beit_jax.weights.tokenizer import DESCRIPTION, load_tokenizer, save_tokenizer

    output = outputs.folder('--output', options.output)
    found = read_tokenizer(options.input)
    check(
        options.image_size in (0, found.image_size or options.image_size),
        f'{options.input[0]} is for pictures of {found.image_size} pixels, as its positions are: '
        'leave --image_size out.',
    )
    image_size = options.image_size or found.image_size or 112
    # encoder.pkl and decoder.pkl may come one after the other
    if (output / DESCRIPTION).is_file():
        tokenizer, there = load_tokenizer(str(output), encoder=False, decoder=True)
        again = ' and '.join(sorted(there.keys() & found.params.keys()))
        check(not again, f'{output} has {again} already: give another --output, or remove it.')
        image_size = options.image_size or tokenizer.image_size
        found = join(Published(tokenizer.kind, tokenizer.config, there), found, options.input[0])
    kind, config = found.kind, found.config
    tokenizer = make_tokenizer(kind, vars(config), image_size)
    params = jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), found.params)
    _check_shapes(tokenizer, params, ' '.join(options.input))
    save_tokenizer(output, kind, config, image_size, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    side = image_size // tokenizer.factor
    print(
        f'{kind} tokenizer, {" and ".join(sorted(params))}: {count:,} parameters, '
        f'{config.vocabulary} tokens, {image_size} pixels to {side} x {side} -> {output}',
        *found.notes,
        sep='\n',
    )


def _check_shapes(tokenizer, params, source: str) -> None:
    from flax import traverse_util

    from beit_jax.weights.tokenizer import mismatches

    wrong = mismatches(tokenizer, traverse_util.flatten_dict(params, sep='/'))
    examples = [
        f'{name} is {found[0] if found else "missing"}, expected '
        f'{expected[0] if expected else "nothing"}'
        for name, (found, expected) in list(wrong.items())[:3]
    ]
    check(
        not wrong,
        f'{source}: {len(wrong)} tensors do not fit the architecture: {"; ".join(examples)}.',
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
        type=arguments.path,
        metavar='FILE',
        help='encoder.pkl (enough to pre-train), decoder.pkl (to draw), or both; or '
        'pytorch_model.bin, or vqkd_*.pth',
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
        help='side in pixels of the pictures it is for (112: 14 x 14 tokens; of VQ-KD its own)',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
