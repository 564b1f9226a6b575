"""k-NN: the class that the nearest training images of an image vote for.

Shape legend: N images of the bank, B queries, D width, K neighbours, C classes.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.models.layers import unit
from beit_jax.settings.intervals import Count, Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """k-NN by cosine similarity: each of the nearest training images votes with exp(similarity /
    temperature)."""

    count: Count = 20  # neighbours that vote
    # below, float32 has no number for a vote
    temperature: Annotated[float, Interval(0.02, 1000)] = 0.07
    images: int = 20_000  # training images that may be neighbours, spread over all; 0: no k-NN
    queries: Count = 10_000  # held-out images that are classified so, spread over all


def nearest(bank_ND, queries_BD, count: int) -> tuple[jax.Array, jax.Array]:
    """(cosine similarities float32, rows of the bank int32), [B, K], of the `count` nearest of each
    query, the nearest first; features float [N, D] and [B, D], of any length."""
    bank_ND, queries_BD = (unit(jnp.asarray(x, jnp.float32)) for x in (bank_ND, queries_BD))
    return _nearest(bank_ND, queries_BD, min(count, len(bank_ND)))


def nearest_neighbours(
    bank_ND, labels_N, queries_BD, num_classes: int, config: NeighboursConfig, chunk: int = 1000
) -> np.ndarray:
    """The class that the nearest images of the bank vote for, int [B]; features float [N, D] and
    [B, D], of any length."""
    bank_ND, labels_N = unit(jnp.asarray(bank_ND, jnp.float32)), jnp.asarray(labels_N)
    count = min(config.count, len(bank_ND))
    classes = []
    for start in range(0, len(queries_BD), chunk):
        some_BD = jnp.asarray(queries_BD[start : start + chunk], jnp.float32)
        classes.append(_vote(bank_ND, labels_N, some_BD, count, num_classes, config.temperature))
    return np.concatenate(classes)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _vote(bank_ND, labels_N, queries_BD, count, num_classes, temperature):
    nearest_BK, index_BK = _nearest(bank_ND, unit(queries_BD), count)
    rows_B1 = jnp.arange(len(queries_BD))[:, None]
    votes_BC = jnp.zeros((len(queries_BD), num_classes))
    votes_BC = votes_BC.at[rows_B1, labels_N[index_BK]].add(jnp.exp(nearest_BK / temperature))
    return jnp.argmax(votes_BC, axis=-1)


def _nearest(bank_ND, queries_BD, count):
    similarity_BN = jnp.matmul(queries_BD, bank_ND.T, precision='highest')
    return jax.lax.top_k(similarity_BN, count)
