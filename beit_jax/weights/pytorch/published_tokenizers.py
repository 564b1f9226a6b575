"""A published tokenizer out of its files: DALL-E's has one for each half."""

from beit_jax.errors import RequestError, check
from beit_jax.weights.pytorch.tokenizers import from_customized, from_dalle
from beit_jax.weights.pytorch.torch_reader import read_tensors


def read_tokenizer(paths: list[str]):
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
    """(kind, Config, params) of a tokenizer with `parts` added, which are from `source`.

    DALL-E's two halves share all sizes but the decoder's input width.

    Raises:
      RequestError: they do not belong together.
    """
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
