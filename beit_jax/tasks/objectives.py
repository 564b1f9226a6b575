"""What the outputs of a classifier are held against: one class of each image (softmax), any number
of them (a sigmoid each), or numbers (regression). `DataConfig.labels` says which.

Shape legend: B images of a batch, N of the whole evaluation, C classes or numbers, T best classes.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

TOP = 5
REGRESSION_LOSSES = ('mse', 'l1', 'huber')


@dataclasses.dataclass(frozen=True)
class Objective:
    """One of what there is.

    Attributes:
      smooths: whether a share of each target may be spread over all classes.
      measure: see `Task`.
    """

    num_classes: int

    smooths: ClassVar[bool] = True
    measure: ClassVar[Callable[[dict, Sequence[str]], dict] | None] = None

    def targets(self, labels) -> jax.Array:
        """float32 [B, C], of the labels of a batch: what the loss takes, and may be mixed."""
        return labels

    def losses(self, logits_BC, targets_BC) -> jax.Array:
        """float32 [B]."""
        raise NotImplementedError

    def sums(self, logits_BC, targets_BC, valid_B) -> dict:
        """What is added up of training images besides the loss."""
        return {}

    def evaluated(self, logits_BC, labels, valid_B) -> tuple[dict, dict]:
        """(what is added up of held-out images besides the loss, what is told of each)."""
        raise NotImplementedError

    def summarize(self, sums: dict) -> dict:
        """The metrics of what is added up, but for the loss."""
        return {'images': sums['weight']} if 'images' in sums else {}


class OneClass(Objective):
    """Softmax cross-entropy; labels int32 [B]. `accuracy` is top-1; in training it is that of the
    label with the larger share of a mixed picture."""

    def targets(self, labels_B):
        return jax.nn.one_hot(labels_B, self.num_classes)

    def losses(self, logits_BC, targets_BC):
        return optax.softmax_cross_entropy(logits_BC, targets_BC)

    def sums(self, logits_BC, targets_BC, valid_B):
        return self._top1(logits_BC, jnp.argmax(targets_BC, axis=-1), valid_B)

    def _top1(self, logits_BC, labels_B, valid_B):
        return {'top1': jnp.sum((jnp.argmax(logits_BC, axis=-1) == labels_B) * valid_B)}

    def evaluated(self, logits_BC, labels_B, valid_B):
        sums = self._top1(logits_BC, labels_B, valid_B)
        best = _best(jax.nn.softmax(logits_BC))
        sums['top5'] = jnp.sum((best['classes'] == labels_B[:, None]) * valid_B[:, None])
        return sums, best

    def summarize(self, sums):
        metrics = {'accuracy': sums['top1'] / sums['weight']}
        if 'top5' in sums:
            metrics['top5_accuracy'] = sums['top5'] / sums['weight']
            metrics['images'] = sums['weight']
        return metrics


class SeveralClasses(Objective):
    """Binary cross-entropy of a sigmoid for each class, their mean (torch's BCEWithLogitsLoss);
    labels float32 [B, C] of 0 and 1. `map` is the mean over classes of the average precision."""

    def losses(self, logits_BC, targets_BC):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC), axis=-1)

    def evaluated(self, logits_BC, labels_BC, valid_B):
        told = _best(jax.nn.sigmoid(logits_BC))
        # ranked by what no sigmoid has rounded to the same
        return {'images': jnp.sum(valid_B)}, told | {'logits': logits_BC}

    def measure(self, rows, names):
        """`map`, over the `classes` that some image has."""
        found_C = average_precisions(rows['label'], rows['logits'])
        known_C = found_C[~np.isnan(found_C)]
        mean = float(np.mean(known_C)) if len(known_C) else float('nan')
        return {'map': mean, 'classes': len(known_C)}


@dataclasses.dataclass(frozen=True)
class Numbers(Objective):
    """Regression on numbers that are standardised: (label - mean) / std, of each of the C; labels
    float32 [B, C]. The loss is the mean over them; `mae`, `rmse` and `r2` are in units of the
    labels."""

    loss: str  # of REGRESSION_LOSSES
    mean: tuple[float, ...]
    std: tuple[float, ...]

    smooths: ClassVar[bool] = False

    def targets(self, labels_BC):
        return (labels_BC - jnp.array(self.mean)) / jnp.array(self.std)

    def losses(self, logits_BC, targets_BC):
        """Squares (torch's MSELoss), absolute values (L1Loss), or Huber's of delta 1
        (HuberLoss)."""
        errors_BC = logits_BC - targets_BC
        if self.loss == 'mse':
            return jnp.mean(jnp.square(errors_BC), axis=-1)
        if self.loss == 'l1':
            return jnp.mean(jnp.abs(errors_BC), axis=-1)
        return jnp.mean(optax.huber_loss(logits_BC, targets_BC), axis=-1)

    def evaluated(self, logits_BC, labels_BC, valid_B):
        values_BC = logits_BC * jnp.array(self.std) + jnp.array(self.mean)
        return {'images': jnp.sum(valid_B)}, {'values': values_BC}

    def measure(self, rows, names):
        """`mae`, `rmse` and `r2`; of several numbers NAME/mae and so on, and `r2` is the mean."""
        found = regression_scores(rows['label'], rows['values'])
        if len(self.mean) == 1:
            return {name: float(values_C[0]) for name, values_C in found.items()}
        each = {
            f'{name}/{score}': float(value)
            for score, values_C in found.items()
            for name, value in zip(names, values_C, strict=True)
        }
        return each | {'r2': float(np.mean(found['r2']))}


def _best(probabilities_BC) -> dict:
    """The best classes and their probabilities, [B, T]."""
    top = min(TOP, probabilities_BC.shape[-1])
    probabilities_BT, classes_BT = jax.lax.top_k(probabilities_BC, top)
    return {'classes': classes_BT, 'probabilities': probabilities_BT}


def average_precisions(labels_NC: np.ndarray, scores_NC: np.ndarray) -> np.ndarray:
    """The area under the steps of precision over recall of each class, float64 [C]; NaN of one that
    no image has. Images of one score count at the same time, whatever their order."""
    found_C = np.full(labels_NC.shape[1], np.nan)
    for place, (labels_N, scores_N) in enumerate(zip(labels_NC.T, scores_NC.T)):
        if not labels_N.any():
            continue
        order = np.argsort(-scores_N, kind='stable')
        hits_N, sorted_N = np.cumsum(labels_N[order] > 0), scores_N[order]
        last = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))  # of equal scores
        steps = np.diff(hits_N[last], prepend=0) / hits_N[-1]
        found_C[place] = np.sum(steps * hits_N[last] / (last + 1))
    return found_C


def regression_scores(labels_NC: np.ndarray, values_NC: np.ndarray) -> dict[str, np.ndarray]:
    """{'mae', 'rmse', 'r2': float64 [C]}; NaN is the R2 of labels that are all the same."""
    labels_NC = labels_NC.astype(np.float64)
    errors_NC = values_NC - labels_NC
    squares_C, spread_C = np.mean(errors_NC**2, axis=0), np.var(labels_NC, axis=0)
    explained_C = 1 - np.divide(
        squares_C, spread_C, out=np.full(len(spread_C), np.nan), where=spread_C > 0
    )
    return {'mae': np.mean(np.abs(errors_NC), axis=0), 'rmse': squares_C**0.5, 'r2': explained_C}
