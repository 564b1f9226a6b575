"""The two lines of docs/weights.md that make ONNX by jax2onnx; where that and onnxruntime are
installed (`pip install jax2onnx onnxruntime`)."""

import numpy as np
import pytest

import beit_jax
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from tests import tiny

jax2onnx = pytest.importorskip('jax2onnx')
onnxruntime = pytest.importorskip('onnxruntime')


@pytest.mark.parametrize('positions', ['absolute', 'layer_bias'])
def test_onnx(positions, tmp_path):
    """Of one picture and of seven, in float32."""
    settings = tiny.classify_settings(head_scale=1.0, model={'positions': positions})
    classes = tuple('abcde')
    tiny.save_checkpoint(tmp_path / 'c', make_task(task_config(settings).resolve(37, classes)))
    model = beit_jax.load(tmp_path / 'c')
    logits, (height, width) = model.programs()['logits'], model.shape
    made = jax2onnx.to_onnx(lambda images: logits(model.params, images), [('B', height, width, 3)])
    (tmp_path / 'model.onnx').write_bytes(made.SerializeToString())
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    (pictures,) = session.get_inputs()
    images = np.random.default_rng(0).random((7, height, width, 3), np.float32)
    for count in (1, 7):
        (found,) = session.run(None, {pictures.name: images[:count]})
        np.testing.assert_allclose(found, model.logits(images[:count]), atol=1e-6)
