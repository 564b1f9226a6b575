"""What a segmentation gets right: its confusion matrix on the device, scores of it on the host.

Classes are 0 .. C - 1; a pixel of any other label (255) is ignored.
"""

import jax.numpy as jnp
import numpy as np


def confusion_matrix(labels, predictions, num_classes: int):
    """Pixels of each class (rows) that are given each class (columns), int32 [C, C].

    Labels and predictions are integers of any one shape. Exact up to 2 ** 31 pixels: add the
    matrices of pictures up in int64.
    """
    labels, predictions = labels.astype(jnp.int32).ravel(), predictions.astype(jnp.int32).ravel()
    counted = (labels >= 0) & (labels < num_classes)
    cells = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
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
    hits_C, there_C, predicted_C = confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0)
    with np.errstate(invalid='ignore'):
        return {
            'iou': hits_C / (there_C + predicted_C - hits_C),
            'accuracy': hits_C / there_C,
            'pixels': there_C,
        }


def summarize_confusion(confusion_CC: np.ndarray) -> dict[str, float]:
    """`miou` and `mean_accuracy`, means of `scores`, and `pixel_accuracy`, over all that count.

    The means are over the classes that have a score; 0 where none has.
    """

    def mean(values_C):
        values = values_C[np.isfinite(values_C)]
        return float(np.mean(values)) if values.size else 0.0

    found, total = scores(confusion_CC), max(1, np.sum(confusion_CC))
    return {
        'miou': mean(found['iou']),
        'mean_accuracy': mean(found['accuracy']),
        'pixel_accuracy': float(np.trace(confusion_CC) / total),
    }
