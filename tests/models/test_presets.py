"""The released weights, against timm and docs/weights.md."""

from beit_jax.models.presets import RELEASED, find_released
from tests import tiny, torch_models


def test_released_weights():
    """The table of docs/weights.md is that of the package, and its names are those of timm."""
    page = (tiny.REPOSITORY / 'docs' / 'weights.md').read_text()
    for name, released in RELEASED.items():
        row = next(line for line in page.splitlines() if line.startswith(f'| `{name}`'))
        assert f'| {released.image_size} |' in row and released.hub in row
        top5 = f' / {released.top5}' if released.top5 else ''  # some have none
        assert (f'| {released.top1}{top5} |' in row) == bool(released.top1)
        if released.timm:
            config = torch_models.timm.models.get_pretrained_cfg(released.timm)
            assert config.num_classes == released.num_classes
            assert config.input_size[1] == released.image_size
            assert (tuple(config.mean) == (0.5, 0.5, 0.5)) != released.v2
        hub = released.hub.partition('/')[2] or name
        assert find_released(name) == find_released(hub) == released
    assert find_released('beit') is None
