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
    """`miou` and `mean_accuracy`, means of `scores` over the classes that have one, and
    `pixel_accuracy`, over all pixels that count.

    Where fewer than two classes are there, there is nothing to tell apart, and no mean.
    """
    found, total = scores(confusion_CC), max(1, np.sum(confusion_CC))
    summary = {'pixel_accuracy': float(np.trace(confusion_CC) / total)}
    if np.count_nonzero(found['pixels']) < 2:
        return summary
    for name, values_C in (('mean_accuracy', found['accuracy']), ('miou', found['iou'])):
        summary = {name: float(np.mean(values_C[np.isfinite(values_C)]))} | summary
    return summary
