import pytest

from beit_jax.weights.pytorch import names

STRANGE = ('blocks.007.norm1.weight', 'blocks.1.norm3.weight', 'beit.encoder.layer.1', 'head', '')


@pytest.mark.parametrize('dialect', names.DIALECTS)
@pytest.mark.parametrize('head', names.HEADS)
def test_the_table_is_its_own_inverse(dialect, head):
    column = 2 if dialect == 'huggingface' else 1
    paths = [row[0] for row in names.ENCODER + names.HEADS[head] if row[column]]
    paths += [f'encoder/blocks/{i:02d}/{row[0]}' for row in names.BLOCK for i in (0, 7, 23)]
    theirs = [names.to_name(path, dialect, head) for path in paths]
    assert len(set(theirs)) == len(paths)
    assert [names.to_path(name, dialect, head) for name in theirs] == paths
    for name in STRANGE:
        assert names.to_path(name, dialect, head) is None
