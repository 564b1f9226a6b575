"""Fine-tuning: what becomes of a head, or of the norm before it, in a checkpoint."""

from flax import nnx
import jax
import numpy as np
import pytest

from beit_jax.errors import RequestError
from beit_jax.train import state as states
from beit_jax.weights.load import load_weights
from tests.tasks.test_classify import CLASSES, describe, fresh, make


def test_a_head_for_the_same_classes_is_kept():
    task = make()
    params, prefixes, notes = task.adapt(fresh(task, 1), describe(task), CLASSES, 'C')
    assert not prefixes and not notes
    jax.tree.map(np.testing.assert_array_equal, params, fresh(task, 1))


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (
            ('a', 'b', 'c', 'd'),
            'the head of C is for 3 classes; this run has 4: give the classes that it was trained '
            'on, or set config.new_head',
        ),
        (
            ('a', 'x', 'c'),
            "for 3 classes, class 1 of which is 'b'; in this run it is 'x'; this run .*, set "
            'config.same_classes=true where these are they in the same order, or set config.new_h',
        ),
    ],
)
def test_a_head_for_other_classes(classes, message):
    old = make()
    with pytest.raises(RequestError, match=message):
        make(classes).adapt(fresh(old), describe(old), classes, 'C')
    task = make(classes, new_head=True)
    params, prefixes, notes = task.adapt(fresh(old, 1), describe(old), classes, 'C')
    assert prefixes == ('head/classes',) and 'replaced by a fresh one' in notes[0]
    whole = states.merge(params, states.initial_params(task, 0, below=prefixes))
    assert (
        whole['head']['classes']['kernel'].shape == (16, len(classes))
        and whole['head']['norm'] is not None
    )


def test_classes_of_other_names():
    """A published checkpoint on ImageNet's folders; the setting where no table tells; neither where
    there are not as many."""
    old, named = make(), ['tench, Tinca tinca', 'goldfish, Carassius auratus', 'great white shark']
    theirs, described = fresh(old, 1), describe(old, named)
    folders = ('n01440764', 'n01443537', 'n01484850')
    params, prefixes, notes = make(folders).adapt(theirs, described, folders, 'C')
    assert not prefixes and not notes
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    with pytest.raises(RequestError, match=r"class 0 of which is 'tench, Tinca tinca'; in"):
        make(folders[::-1]).adapt(theirs, described, folders[::-1], 'C')
    task = make(('x', 'y', 'z'), same_classes=True)
    params, prefixes, notes = task.adapt(theirs, described, ('x', 'y', 'z'), 'C')
    assert not prefixes and 'taken as the same, by config.same_classes' in notes[0]
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    with pytest.raises(
        RequestError, match=r'this run has 4: give the .* trained on, or set config'
    ):
        make('wxyz', same_classes=True).adapt(theirs, described, tuple('wxyz'), 'C')


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_the_norm_of_a_model_without_classes(pooling):
    """As timm's with num_classes=0: it is taken for the pooling that it is of, else drawn."""
    task, other = make(), make(pooling=pooling)
    described = {'architecture': describe(other)['architecture'] | {'num_classes': 0}}
    norm = {'scale': np.full(16, 1.5), 'bias': np.full(16, 0.5)}
    theirs = {'encoder': fresh(other)['encoder'], 'head': {'norm': norm}}
    params, prefixes, notes = task.adapt(theirs, described, CLASSES, 'C')
    if pooling == 'mean':
        assert prefixes == ('head/classes',) and params['head'] == {'norm': norm} and notes
    else:
        assert prefixes == ('head',) and params.keys() == {'encoder'} and not notes


def test_a_head_that_is_replaced_keeps_the_norm_of_its_own_pooling():
    old = make(pooling='cls')
    for pooling, kept in (('cls', ('head/classes',)), ('mean', ('head',))):
        task = make((*CLASSES, 'd'), new_head=True, pooling=pooling)
        params, prefixes, _ = task.adapt(fresh(old), describe(old), (*CLASSES, 'd'), 'C')
        assert prefixes == kept and ('head' in params) == (pooling == 'cls')


def test_cls_after_pretraining_as_in_pytorch(tmp_path):
    """The official loader gives `norm` of pre-training to a model that reads CLS (timm stands for
    it, loading with strict=False): what the classes then see is the same."""
    import torch

    from tests import torch_models
    from tests.weights.pytorch.small_models import PRETRAINED, SIZES, save

    state = torch_models.make_timm(**PRETRAINED).state_dict()
    path = save(state, tmp_path / 'pretrained.pth')
    table = state.pop('rel_pos_bias.relative_position_bias_table')
    state |= {f'blocks.{i}.attn.relative_position_bias_table': table for i in range(2)}
    kind = SIZES | {'positions': 'layer_bias', 'classes': 0, 'pooling': 'cls'}
    theirs = torch_models.make_timm(**kind)
    assert not theirs.load_state_dict(state, strict=False).missing_keys

    sizes = {name: SIZES[name] for name in ('width', 'depth', 'heads', 'hidden')}
    task = make(
        pooling='cls',
        data={'image_size': 80},
        model=sizes | {'patch_size': 16, 'positions': 'layer_bias'},
    )
    params, description = load_weights(str(path))
    params, prefixes, notes = task.adapt(params, description, CLASSES, 'C')
    assert (
        prefixes == ('head/classes',) and 'the norm before the head is the last one of C' in notes
    )
    params = states.merge(params, states.initial_params(task, 0, below=prefixes))
    pixels = np.random.default_rng(0).normal(size=(2, 80, 80, 3)).astype(np.float32)
    model = nnx.merge(task.graphdef, params)
    found = model.head.norm(model.encoder(pixels)[:, 0])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
