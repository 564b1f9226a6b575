"""The ways to decode and resize, by config.data.image_ops, that are installed here."""

import importlib.util

import pytest

from beit_jax.data.pictures import decode_simd

WAYS = {'simd': decode_simd}
if importlib.util.find_spec('tensorflow'):
    from beit_jax.data.pictures import decode_tensorflow

    WAYS['tensorflow'] = decode_tensorflow

each_way = pytest.mark.parametrize('images', WAYS.values(), ids=WAYS)
each_name = pytest.mark.parametrize('image_ops', WAYS)


def reference():
    """TensorFlow's; without it the test is skipped."""
    return pytest.importorskip('beit_jax.data.pictures.decode_tensorflow')
