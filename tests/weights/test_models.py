"""A model in Python: what it says of itself, and where it is written."""

import jax
import numpy as np
import pytest

import beit_jax
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.tools import export_weights
from tests import tiny
from tests.tools.call import call

LABELS = tuple(f'kind {i}' for i in range(5))


def test_a_model_is_kept_and_given_on(tmp_path):
    """Three lines say what it is; saved and exported it is the same; nothing is written over."""
    task = make_task(task_config(tiny.classify_settings()).resolve(37, LABELS))
    tiny.save_checkpoint(tmp_path / 'c', task, classes=LABELS)
    model = beit_jax.load(tmp_path / 'c')
    said = repr(model).splitlines()
    count = sum(array.size for array in jax.tree.leaves(model.params))
    assert len(said) == 3 and said[0].startswith(f'{count:,} parameters, classifier of 5 classes')
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    model.save(tmp_path / 'saved')
    saved = beit_jax.load(tmp_path / 'saved')
    np.testing.assert_array_equal(saved.logits(images), model.logits(images))
    assert saved.description == model.description
    model.export(tmp_path / 'exported', format='timm')
    call(export_weights, input=tmp_path / 'c', format='timm', output=tmp_path / 'by_the_tool')
    names = sorted(path.name for path in (tmp_path / 'exported').iterdir())
    assert names == ['README.md', 'config.json', 'model.safetensors']
    for name in names:
        made, expected = (tmp_path / folder / name for folder in ('exported', 'by_the_tool'))
        assert made.read_bytes() == expected.read_bytes()
    for wrong, message in (
        (lambda: model.save(tmp_path / 'saved'), 'is there already'),
        (lambda: model.export(tmp_path / 'exported', 'timm'), 'is there already'),
        (lambda: model.export(tmp_path / 'other', 'tim'), 'Did you mean timm?'),
    ):
        with pytest.raises(RequestError, match=message):
            wrong()
