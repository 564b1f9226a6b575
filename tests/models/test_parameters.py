"""Names, shapes, initialisers, decay and initial values of the parameters."""

import math
from pathlib import Path

from flax import nnx
import numpy as np
import pytest
import scipy.stats

from beit_jax.models.encoder import EncoderConfig
from beit_jax.models.heads import MaskedImageModel
from beit_jax.train.optimizer import parameter_table

GOLDEN = Path(__file__).parents[1] / 'golden'


def abstract(**settings):
    config = EncoderConfig(**settings)
    model = nnx.eval_shape(lambda: MaskedImageModel(config, (14, 14), 8192, rngs=nnx.Rngs(0)))
    return nnx.state(model)


# The table is the contract for names, shapes, initialisers and decay. After a wanted change, from
# the root of the repository: python -c "from tests.models.test_parameters import *; (GOLDEN /
# 'base_plus_pretrain.txt').write_text(parameter_table(abstract(), 1.0))"
def test_parameters_of_base_plus():
    table = parameter_table(abstract(), layer_decay=1.0)
    assert table.endswith('total 91,965,776\n')  # recipe.md
    assert table == (GOLDEN / 'base_plus_pretrain.txt').read_text()


def test_layer_decay_of_base_plus():
    """optim_factory.py: decay ** (13 - id); embeddings id 0, block i id i + 1, the rest 13."""
    rows = parameter_table(abstract(), layer_decay=0.65).splitlines()[:-1]
    scales = {row.split()[0]: float(row.split()[-1]) for row in rows}
    expected = {
        'encoder/cls_token': 13,
        'encoder/mask_token': 13,
        'encoder/patch_embedding/bias': 13,
        'encoder/patch_embedding/kernel': 13,
        'encoder/blocks/00/norm1/scale': 12,
        'encoder/blocks/00/attention/key/kernel': 12,
        'encoder/blocks/07/scale2': 5,
        'encoder/blocks/11/mlp/fc2/kernel': 1,
        'encoder/position_bias/table': 0,
        'head/norm/bias': 0,
        'head/projection/kernel': 0,
    }
    for path, power in expected.items():
        assert scales[path] == pytest.approx(0.65**power, rel=1e-5), path


@pytest.mark.parametrize(
    'positions, layer_scale', [('shared_bias', 0.1), ('layer_bias', 1e-5), ('absolute', 0.0)]
)
def test_initial_values(positions, layer_scale):
    """recipe.md, Initialisation: deviation 0.02, cut at one deviation, so that 0.0108 is left."""
    sizes = {'width': 147, 'depth': 3, 'heads': 3, 'hidden': 147, 'patch_size': 7}
    config = EncoderConfig(**sizes, positions=positions, layer_scale=layer_scale)
    state = nnx.state(MaskedImageModel(config, (3, 5), 147, rngs=nnx.Rngs(0)))
    flat = {'/'.join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
    assert any('table' in name for name in flat) == (positions != 'absolute')
    assert ('encoder/position_embedding' in flat) == (positions == 'absolute')
    assert any('/scale1' in name for name in flat) == bool(layer_scale)
    gamma = np.float32(layer_scale)
    constants = {'bias': 0, 'table': 0, 'scale': 1, 'scale1': gamma, 'scale2': gamma}
    law = scipy.stats.truncnorm(-1, 1, scale=0.02)
    assert abs(law.std() - 0.0108) < 1e-4
    for name, value in flat.items():
        assert value.dtype == np.float32, name
        last = name.split('/')[-1]
        if last in constants:
            assert (value == constants[last]).all(), name
        else:
            layer = int(name.split('/')[2]) + 1 if 'attention/out' in name or 'fc2' in name else 0.5
            scaled = value * math.sqrt(2 * layer)
            assert np.abs(scaled).max() <= 0.02 * (1 + 1e-6), name
            assert scipy.stats.kstest(scaled.ravel()[:20_000], law.cdf).pvalue > 1e-5, name
            assert value.size < 1000 or abs(scaled.std() - 0.0108) < 1e-3, name
