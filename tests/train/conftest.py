import jax
import pytest

from beit_jax.train import run, sharding


@pytest.fixture(scope='module')
def one_device():
    """Compiling for eight is most of what a run would take; test_resume.py does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run, 'make_mesh', lambda config: sharding.make_mesh(config, jax.devices()[:1])
        )
        yield
