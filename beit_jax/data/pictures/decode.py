"""Which library decodes and resizes: what the settings say."""

from types import ModuleType
import typing

from beit_jax.data.config import DataConfig, PixelFormat
from beit_jax.errors import RequestError

# by config.data.image_ops: what it takes, and what does without
_TAKES = {
    'simd': ('simplejpeg and cykooz_resizer', 'tensorflow, which takes TensorFlow and is slower'),
    'tensorflow': ('TensorFlow', 'simd, the default, which does without'),
}

if typing.TYPE_CHECKING:
    from beit_jax.data.pictures.arrays import ArrayOps


def image_ops(config: DataConfig) -> 'ModuleType | ArrayOps':
    """What decodes and resizes: `decode_tensorflow` or its like.

    Raises:
      RequestError: a library is not installed.
    """
    if not config.pixels.is_rgb:
        return array_ops(config.pixels)
    try:
        if config.image_ops == 'tensorflow':
            from beit_jax.data.pictures import decode_tensorflow as images
        else:
            from beit_jax.data.pictures import decode_simd as images
    except ImportError as error:
        takes, other = _TAKES[config.image_ops]
        raise RequestError(
            f'config.data.image_ops={config.image_ops} takes {takes} ({error}): install '
            f'requirements.txt, or set config.data.image_ops={other}.'
        ) from error
    return images


def array_ops(pixels: PixelFormat) -> 'ArrayOps':
    """What decodes and resizes pictures that are not RGB of 8 bits.

    Raises:
      RequestError: a library is not installed.
    """
    try:
        from beit_jax.data.pictures.arrays import ArrayOps
    except ImportError as error:
        raise RequestError(
            f'config.data.channels, bits and bands take cykooz_resizer ({error}): install '
            'requirements.txt.'
        ) from error
    return ArrayOps(pixels)
