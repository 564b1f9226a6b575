"""Checkpoints on disk: readable by Orbax alone, strict when read, only the newest kept."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from beit_jax.errors import RequestError, StorageError
from beit_jax.train.workdir.checkpoint import PATIENCE, Checkpoints
from beit_jax.weights.checkpoint import find_checkpoint, load_params
from beit_jax.weights.integrity import DamagedError, checksums

STATE = {
    'step': jnp.int32(7),
    'params': {'blocks': {'00': {'kernel': jnp.arange(15, dtype=jnp.float32).reshape(3, 5)}}},
    'optimizer': (jnp.ones(3, jnp.bfloat16),),
}


def abstract(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), tree
    )


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 5, 7):
        checkpoints.save(
            {**STATE, 'step': jnp.int32(step)}, step, {'task': 'pretrain', 'data': {'examples': 11}}
        )
    checkpoints.close()
    return tmp_path


def test_round_trip_and_what_is_kept(workdir):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.steps == [7, 5]
    assert sorted(entry.name for entry in (workdir / 'checkpoints').iterdir()) == ['5', '7']
    restored = checkpoints.restore(7, abstract(STATE))
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)
    assert checkpoints.description(7) == {'task': 'pretrain', 'data': {'examples': 11}}


def test_orbax_alone_reads_it(workdir):
    arrays = ocp.training.Checkpointer(workdir / 'checkpoints').load(7)
    np.testing.assert_array_equal(
        arrays['params']['blocks']['00']['kernel'], np.arange(15).reshape(3, 5)
    )


def test_parameters_alone(workdir):
    params, description = load_params(str(workdir))
    np.testing.assert_array_equal(params['blocks']['00']['kernel'], np.arange(15).reshape(3, 5))
    assert description['task'] == 'pretrain'
    assert find_checkpoint(str(workdir / 'checkpoints' / '5')).name == '5'
    with pytest.raises(RequestError, match='neither a checkpoint nor a work directory'):
        find_checkpoint(str(workdir / 'nothing'))


def test_the_moving_average_stands_for_the_parameters(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(STATE | {'ema': {'kernel': jnp.full(3, 0.5)}}, 3, {})
    checkpoints.close()
    np.testing.assert_array_equal(load_params(str(tmp_path))[0]['kernel'], np.full(3, 0.5))


def test_a_damaged_file_never_restores_otherwise(workdir, tmp_path_factory):
    """Every file of the newest checkpoint, cut off, deleted, or with one bit flipped: its values,
    or aloud those of the one before."""
    newest, outcomes, rng = workdir / 'checkpoints' / '7', {}, np.random.default_rng(0)
    other = {**STATE, 'step': jnp.int32(5)}
    for file in sorted(path.relative_to(newest) for path in newest.rglob('*') if path.is_file()):
        content = (newest / file).read_bytes()
        flipped = [bytearray(content) for _ in range(4)]
        for copied, place in zip(flipped, rng.integers(0, len(content), 4)):
            copied[place] ^= 1 << rng.integers(8)
        for damaged in (None, content[: len(content) // 2], content[:-1], *flipped):
            copied = tmp_path_factory.mktemp('damaged') / 'w'
            shutil.copytree(workdir, copied)
            path = copied / 'checkpoints' / '7' / file
            path.unlink() if damaged is None else path.write_bytes(damaged)
            state, lines = Checkpoints(copied).restore_newest(
                abstract(STATE), lambda description: description['data']
            )
            jax.tree.map(np.testing.assert_array_equal, state, other if lines else STATE)
            outcomes.setdefault(str(file), []).append(bool(lines))
            if lines:
                assert (
                    len(lines) == 1
                    and '7 is damaged' in lines[0]
                    and 'goes on from step 5' in lines[0]
                )
                assert sorted(entry.name for entry in (copied / 'checkpoints').iterdir()) == [
                    '5',
                    '7.damaged',
                ]
    # where the numbers lie
    assert any(all(loud) for file, loud in outcomes.items() if '/d/' in file), outcomes
    assert all(outcomes['state/manifest.ocdbt']) and all(outcomes['_CHECKPOINT_METADATA'][:3])


def test_a_second_damaged_checkpoint_of_a_step(workdir):
    directory = workdir / 'checkpoints'
    for number, name in enumerate(('7.damaged', '7.damaged.2'), 1):
        (directory / '7/state/manifest.ocdbt').unlink()
        state, lines = Checkpoints(workdir).restore_newest(abstract(STATE), lambda _: None)
        assert int(state['step']) == 5 and f'set aside as {name},' in lines[0]
        assert len(list(directory.glob('7.damaged*'))) == number
        checkpoints = Checkpoints(workdir, keep=2)
        checkpoints.save(STATE, 7, {'data': {}})
        checkpoints.close()
    assert Checkpoints(workdir).steps == [7, 5]


def unreadable(path):
    """As a lack of rights, which does not stop root: `open` fails, and the name is there."""
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize('file', ['_CHECKPOINT_METADATA', 'state/manifest.ocdbt', 'state/d'])
def test_what_cannot_be_read_is_not_damaged(file, workdir, monkeypatch):
    """It is tried again, then told; nothing is set aside, and it is there when it can be read."""
    path, kept = workdir / 'checkpoints/7' / file, workdir / 'kept'
    path = next(path.iterdir()) if path.is_dir() else path
    shutil.copy(path, kept)
    unreadable(path)
    waited = []
    monkeypatch.setattr('time.sleep', waited.append)
    with pytest.raises(StorageError, match=r'checkpoint .*7 cannot be read \(Too many levels'):
        Checkpoints(workdir).restore_newest(abstract(STATE), lambda _: None)
    assert tuple(waited) == PATIENCE and Checkpoints(workdir).steps == [7, 5]

    def mended(seconds):
        path.unlink()
        shutil.copy(kept, path)

    monkeypatch.setattr('time.sleep', mended)
    state, lines = Checkpoints(workdir).restore_newest(abstract(STATE), lambda _: None)
    assert int(state['step']) == 7 and not lines


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(workdir):
    """A run would else start anew in it."""
    (workdir / 'checkpoints').rename(workdir / 'elsewhere')
    (workdir / 'checkpoints').symlink_to('checkpoints')
    with pytest.raises(StorageError, match='checkpoints cannot be read: Too many levels'):
        Checkpoints(workdir).restore_newest(abstract(STATE), lambda _: None)


def test_entries_that_are_no_steps(workdir):
    for name in ('²', '07', '7.damaged', '-3', '9' * 30, '٣'):
        (workdir / 'checkpoints' / name).mkdir()
    assert Checkpoints(workdir).steps == [7, 5]
    state, lines = Checkpoints(workdir).restore_newest(abstract(STATE), lambda _: None)
    assert int(state['step']) == 7 and not lines


def test_nothing_whole(workdir):
    for path in workdir.glob('checkpoints/*/state/manifest.ocdbt'):
        path.unlink()
    with pytest.raises(DamagedError, match=r'checkpoint .*7 is damaged \('):
        load_params(str(workdir))
    with pytest.raises(
        RequestError, match=r'no checkpoint in .* is whole: .*7 is damaged.*5 is damaged'
    ):
        Checkpoints(workdir).restore_newest(abstract(STATE), lambda description: None)
    assert Checkpoints(workdir).steps == [7, 5]


def test_checksums():
    """The same on every mesh; another one where an element changes, moves, or has another sign."""
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    expected = checksums({'a': values})
    for shape, spec in (((8, 1), ('x', None)), ((2, 4), ('x', 'y')), ((2, 4), (None, ('x', 'y')))):
        mesh = jax.make_mesh(shape, ('x', 'y'))
        placed = jax.device_put(
            values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        )
        assert checksums({'a': placed}) == expected
    moved, negated = values[:, ::-1], np.where(np.arange(24) == 5, -values, values)
    swapped = values.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert (
        len(
            {
                checksums({'a': array})['a']
                for array in (values, moved, negated, swapped, values.T, np.zeros_like(values))
            }
        )
        == 6
    )
    for dtype in (jnp.bfloat16, jnp.int32, jnp.uint8, bool):
        one = jnp.zeros((3, 5), dtype)
        assert checksums({'a': one}) != checksums({'a': one.at[2, 1].set(jnp.ones((), dtype))})


@pytest.mark.parametrize(
    ('kernel', 'message'),
    [
        (jnp.zeros((3, 6)), r'kernel is float32\[3, 5\], the config wants float32\[3, 6\]'),
        (
            jnp.zeros((3, 5), jnp.bfloat16),
            r'kernel is float32\[3, 5\], the config wants bfloat16\[3, 5\]',
        ),
    ],
)
def test_another_model_is_refused(kernel, message, workdir):
    wanted = STATE | {'params': {'blocks': {'00': {'kernel': kernel}}}}
    with pytest.raises(RequestError, match=message):
        Checkpoints(workdir).restore(7, abstract(wanted))
    with pytest.raises(RequestError, match=r'another model.*blocks/01/kernel is missing'):
        Checkpoints(workdir).restore(
            7,
            abstract(
                STATE
                | {
                    'params': {
                        'blocks': {
                            '00': {'kernel': jnp.zeros((3, 5))},
                            '01': {'kernel': jnp.zeros((3, 5))},
                        }
                    }
                }
            ),
        )
