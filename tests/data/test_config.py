"""Settings that exclude each other, or have no meaning."""

import pytest

from beit_jax.data.config import DataConfig, SegmentDataConfig
from beit_jax.errors import RequestError
from beit_jax.settings.mapping import from_mapping

LABELLED = ('webdataset', 'parquet', 'class_tars')  # one class a picture


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'lanes': 2}, 'lanes=2 is for chunks'),
        ({'chunk': -1}, 'chunk is -1'),
        ({'chunk': 5, 'window': 0}, 'window is 0'),
        ({'chunk': 5, 'repeat_views': 3}, 'chunk excludes'),
        ({'chunk': 5, 'repeated_augmentation': 3}, 'chunk excludes'),
        ({'chunk': 5, 'name': 'shapes'}, 'chunk is for stored images'),
        ({'index': 'gs://bucket'}, 'index=.* is not local'),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(RequestError, match=rf'config.data.{words}'):
        from_mapping(DataConfig, settings, 'data.')


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'segment_scale': (2.0, 1.0)}, 'segment_scale is'),
        ({'labels_per_class': 3}, 'labels_per_class and labels are'),
        *(({'name': name}, 'name=.* has no label maps') for name in LABELLED),
    ],
)
def test_bad_settings_of_label_maps(settings, words):
    with pytest.raises(RequestError, match=rf'config.data.{words}'):
        from_mapping(SegmentDataConfig, settings, 'data.')
