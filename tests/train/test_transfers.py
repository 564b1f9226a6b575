"""Steps run ahead of the host: between the steps that are logged, nothing is read from the device
but whether the step before was skipped, and nothing but batches is put there."""

import jax
import jax.numpy as jnp
import pytest

from beit_jax.settings.mapping import task_config
from beit_jax.train import loop
from beit_jax.train import step as steps
from beit_jax.train.stepping import Stepper
from tests import tiny


@pytest.fixture
def reads(monkeypatch):
    """How often values of arrays were wanted on the host; on a CPU JAX's own guard does not see
    these."""
    found, array = [], type(jnp.zeros(3))
    value = array._value
    monkeypatch.setattr(
        array, '_value', property(lambda self: found.append(self.shape) or value.fget(self))
    )
    return found


def test_only_logged_steps_are_read(tokenizer_dir, tmp_path, monkeypatch, reads):
    taken, written = [], []
    take, write = Stepper.take, Stepper._write

    def guarded_take(stepper, state, batch, number):
        # the first compiles, and puts constants on the device; at the second the programs of the
        # host's own are compiled
        if number < 3:
            return take(stepper, state, batch, number)
        before = len(reads)
        with jax.transfer_guard('disallow_explicit'):
            state = take(stepper, state, batch, number)
        taken.append((number, len(reads) - before))
        return state

    def noted_write(stepper, step, metrics):
        before = len(reads)
        with jax.transfer_guard('allow'):
            write(stepper, step, metrics)
        written.append(step)
        del reads[before:]  # those of a line of the log do not count

    monkeypatch.setattr(Stepper, 'take', guarded_take)
    monkeypatch.setattr(Stepper, '_write', noted_write)
    config = tiny.settings(
        tokenizer_dir, total_steps=9, log_every=4, save_every=100, evaluate_every=0
    )
    assert loop.train(task_config(config), tmp_path) == 0
    assert written == [4, 8, 9]
    assert taken == [(number, 1) for number in range(3, 10)]


def test_evaluation_is_read_one_batch_late(tokenizer_dir, tmp_path, monkeypatch, reads):
    """When a batch starts, what came of the one before it has not been waited for."""
    read_before, make = [], steps.make_evaluate_step

    def make_noted(task, mesh, shardings):
        step = make(task, mesh, shardings)

        def noted(params, batch, number):
            read_before.append((number, list(reads)))
            reads.clear()
            return step(params, batch, number)

        return noted

    monkeypatch.setattr(steps, 'make_evaluate_step', make_noted)
    config = tiny.settings(
        tokenizer_dir,
        total_steps=2,
        log_every=9,
        evaluate_every=2,
        data={'num_evaluate_examples': 29},
    )
    assert loop.train(task_config(config), tmp_path) == 0
    assert [number for number, _ in read_before] == [0, 1, 2, 3]
    # the sums are scalars
    assert [() in shapes for _, shapes in read_before][1:] == [False, True, True]


def test_what_is_counted(reads):
    float(jnp.arange(5).sum())
    assert len(reads) == 1
    with (
        pytest.raises(Exception, match='Disallowed host-to-device transfer'),
        jax.transfer_guard('disallow_explicit'),
    ):
        jax.device_put(3.0)
