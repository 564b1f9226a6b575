"""Which pictures an encoder finds alike: those whose features are nearest to a picture's own.

Shape legend: N pictures that may be neighbours, B pictures that are asked about, D width, K
neighbours.
"""

from collections.abc import Sequence

import numpy as np

from beit_jax.data.config import DataConfig
from beit_jax.data.pictures.load import LeaveOut
from beit_jax.data.sources.source import Source
from beit_jax.data.sources.subset import Subset
from beit_jax.errors import check
from beit_jax.inference.reading import readable_batches
from beit_jax.tasks.neighbours import nearest

BATCH = 64


def alike(
    model,
    layer: int,
    asked: np.ndarray,
    names: Sequence[str],
    bank: Source,
    data: DataConfig,
    count: int,
    leave_out: LeaveOut,
) -> np.ndarray:
    """The `count` pictures of a source that are nearest to each asked one by the mean of the
    patches after a layer, standardised over the source as the probe does: most of it is the same in
    every picture.

    Args:
      model: see `beit_jax.weights.models.Model`.
      layer: from 1, or from the last one, -1.
      asked: pictures as the model takes them, [B, height, width, C].
      names: of these; a picture is not its own neighbour.
      bank: what is looked among; `data`: how it is read.
      leave_out: told of pictures of it that cannot be read.

    Returns:
      [K, B, height, width, C], the nearest first.

    Raises:
      RequestError: there is no other picture.
    """
    views = (data.view('image'),)
    features = lambda images: np.asarray(model.features(images, [layer])['mean'][0])
    known, indices = [], []
    for batch in readable_batches(bank, views, data, BATCH, leave_out):
        known.append(features(batch['image']))
        indices += batch['index'].tolist()
    check(len(indices) > 1, f'{len(indices)} pictures are too few to look for neighbours among.')
    known_ND = np.concatenate(known)
    mean_D, deviation_D = known_ND.mean(0), known_ND.std(0) + 1e-6
    standard = lambda x_ND: (x_ND - mean_D) / deviation_D
    count = min(count, len(indices) - 1)
    _, rows_BK = nearest(standard(known_ND), standard(features(asked)), count + 1)
    chosen_BK = []
    for name, rows_K in zip(names, np.asarray(rows_BK), strict=True):
        others = (indices[row] for row in rows_K)
        chosen_BK.append([index for index in others if bank.name(index) != name][:count])
    chosen = Subset(bank, np.ravel(np.transpose(chosen_BK)))
    shown = [batch['image'] for batch in readable_batches(chosen, views, data, BATCH, leave_out)]
    return np.concatenate(shown).reshape(count, *asked.shape)
