"""What a segmentation gets right, from the confusion matrix: counts on the device, scores of them
on the host.

Classes are 0 .. C - 1; a pixel of any other label (255) is ignored.
"""

import jax.numpy as jnp
import numpy as np


def confusion_matrix(labels, predictions, num_classes: int):
    """Pixels of each class (rows) that are given each class (columns), int32 [C, C]; labels and
    predictions: integers of any one shape.

    Exact up to 2 ** 31 pixels: add the matrices of pictures up in int64.
    """
    labels, predictions = labels.astype(jnp.int32).ravel(), predictions.astype(jnp.int32).ravel()
    cells = jnp.where(
        (labels >= 0) & (labels < num_classes), labels * num_classes + predictions, num_classes**2
    )
    counts = jnp.zeros(num_classes**2, jnp.int32).at[cells].add(1, mode='drop')
    return counts.reshape(num_classes, num_classes)


def scores(confusion_CC: np.ndarray) -> dict[str, np.ndarray]:
    """Of each class: `iou`, `accuracy` (its share of pixels that is found), `pixels`; float64 [C],
    from exact counts.

    As mmsegmentation has it, what is 0 / 0 is not a number and left out of means: IoU of a class
    that is neither there nor predicted, and accuracy of one that is not there. A class that is
    absent but predicted has IoU 0 and counts.
    """
    confusion_CC = np.asarray(confusion_CC, np.float64)
    hits_C, there_C, predicted_C = (
        np.diagonal(confusion_CC),
        confusion_CC.sum(1),
        confusion_CC.sum(0),
    )
    with np.errstate(invalid='ignore'):
        return {
            'iou': hits_C / (there_C + predicted_C - hits_C),
            'accuracy': hits_C / there_C,
            'pixels': there_C,
        }


def summarize_confusion(confusion_CC: np.ndarray) -> dict[str, float]:
    """`miou`, `mean_accuracy`: means of `scores` over the classes that have one; `pixel_accuracy`:
    over all pixels that count."""
    found, total = scores(confusion_CC), max(1, np.sum(confusion_CC))
    means = {
        name: np.mean(found[key][np.isfinite(found[key])]) if np.isfinite(found[key]).any() else 0.0
        for name, key in (('miou', 'iou'), ('mean_accuracy', 'accuracy'))
    }
    return {
        name: float(value)
        for name, value in (means | {'pixel_accuracy': np.trace(confusion_CC) / total}).items()
    }
