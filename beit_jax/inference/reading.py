"""Pictures of a data set for a model at work: as an evaluation sees them, without the bad ones."""

from collections.abc import Iterator, Sequence

import numpy as np

from beit_jax.data import pipeline
from beit_jax.data.config import DataConfig, View
from beit_jax.data.pictures.load import LeaveOut
from beit_jax.data.sources.source import Source
from beit_jax.errors import RequestError


def readable_batches(
    source: Source, views: Sequence[View], data: DataConfig, batch_size: int, leave_out: LeaveOut
) -> Iterator[dict[str, np.ndarray]]:
    """All pictures of a source in order, at most `batch_size` at a time, as
    `pipeline.evaluate_batches` gives them; `leave_out` is told of those that cannot be read."""
    rows = np.arange(min(batch_size, len(source)))
    for batch in pipeline.evaluate_batches(
        source, len(rows), views, data, rows, data.evaluate_crop
    ):
        for index in np.unique(batch['index'][batch['substituted']]):
            name = source.name(index)
            leave_out(name, RequestError(f'{name} cannot be read.'))
        readable = batch['valid'] > 0
        if readable.any():
            yield {name: values[readable] for name, values in batch.items()}
