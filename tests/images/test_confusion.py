"""Segmentation's metrics against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from beit_jax.images import confusion


@pytest.fixture(scope='module')
def pixels():
    """Labels and predictions of 7 classes.

    2 is absent and predicted, 4 is there and never predicted, 5 is neither; 255 is ignored.
    """
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 3, 4, 6, 255], (3, 41, 53)).astype(np.uint8)
    predictions = random.choice([0, 1, 2, 3, 6], (3, 41, 53)).astype(np.uint8)
    right = random.random(labels.shape) < 0.5
    return labels, np.where(right & ~np.isin(labels, (4, 255)), labels, predictions)


def test_as_scikit_learn(pixels):
    labels, predictions = pixels
    count = jax.jit(confusion.confusion_matrix, static_argnums=2)
    found = np.asarray(count(labels, predictions, 7))
    seen = labels != 255
    labels, predictions = labels[seen], predictions[seen]
    np.testing.assert_array_equal(found, confusion_matrix(labels, predictions, labels=range(7)))
    assert 0 < found.trace() < found.sum() == len(labels)

    each, metrics = confusion.scores(found), confusion.summarize_confusion(found)
    there, counted = [0, 1, 3, 4, 6], [0, 1, 2, 3, 4, 6]
    iou = jaccard_score(labels, predictions, labels=range(7), average=None, zero_division=0)
    np.testing.assert_allclose(each['iou'][counted], iou[counted], atol=1e-12)
    assert np.isnan(each['iou'][5]) and each['iou'][2] == each['iou'][4] == 0 < each['iou'][0]
    recall = recall_score(labels, predictions, labels=there, average=None)
    np.testing.assert_allclose(each['accuracy'][there], recall, atol=1e-12)
    expected = {
        'miou': iou[counted].mean(),
        'pixel_accuracy': accuracy_score(labels, predictions),
        'mean_accuracy': recall_score(labels, predictions, labels=there, average='macro'),
    }
    assert metrics == pytest.approx(expected)


@pytest.mark.parametrize(
    ('labels', 'accuracy'), [([255, 255, 255], 0), ([0, 255, 0], 1), ([1, 255, 1], 0)]
)
def test_one_class_is_no_score(labels, accuracy):
    """Masks of 0 and 255 have one class, which a model that says nothing else finds."""
    labels, zeros = np.array(labels, np.uint8), np.zeros(3, np.uint8)
    found = np.asarray(confusion.confusion_matrix(labels, zeros, 3))
    assert found.sum() == np.sum(labels != 255)
    assert confusion.summarize_confusion(found) == {'pixel_accuracy': accuracy}
