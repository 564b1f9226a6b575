"""Two small models, as the official code and transformers have them."""

import pytest

from tests import torch_models
from tests.weights.pytorch.small_models import CLASSIFIER, PRETRAINED


@pytest.fixture(scope='module')
def state():
    """The state dict of the official code's pre-trained model."""
    return torch_models.keep_indices(torch_models.make_timm(**PRETRAINED)).state_dict()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of a classifier of transformers."""
    directory = tmp_path_factory.mktemp('classifier')
    torch_models.make_transformers(**CLASSIFIER).save_pretrained(directory)
    processor = torch_models.transformers.BeitImageProcessorPil(
        size={'height': 80, 'width': 80}, image_mean=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(directory)
    return directory
