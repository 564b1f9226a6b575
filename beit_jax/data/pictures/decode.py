"""Which library decodes and resizes: what the settings say."""

from types import ModuleType

from beit_jax.data.config import DataConfig
from beit_jax.errors import RequestError


def image_ops(config: DataConfig) -> ModuleType:
    """What decodes and resizes: `decode_tensorflow` or its like.

    Raises:
      RequestError: a library is not installed.
    """
    if config.image_ops == 'tensorflow':
        from beit_jax.data.pictures import decode_tensorflow

        return decode_tensorflow
    try:
        from beit_jax.data.pictures import decode_simd
    except ImportError as error:
        raise RequestError(
            f'config.data.image_ops=simd takes simplejpeg and cykooz_resizer ({error}): install '
            'requirements.txt, or set config.data.image_ops=tensorflow, which is slower.'
        ) from error
    return decode_simd
