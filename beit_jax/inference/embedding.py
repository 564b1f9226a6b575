"""Embeddings of any number of pictures, what a layer makes of each, into a folder of parts.

Shape legend: B pictures at a time, R of a part, N tokens, D width.
"""

from collections.abc import Callable
import json

from flax import nnx
import jax
import numpy as np
from tqdm import tqdm

from beit_jax.errors import check
from beit_jax.images.color import normalize, to_float
from beit_jax.inference.parts import UNREADABLE, Array, Tables
from beit_jax.inference.pictures import Pictures
from beit_jax.models.heads import pool
from beit_jax.train.sharding import batch_sharding, on_mesh, replicated
from beit_jax.weights.models import Model
from beit_jax.weights.trees import digest

STORED = ('float32', 'float16')  # neither NumPy nor Parquet has a bfloat16 of its own


def fingerprint(model: Model) -> str:
    """sha256 of the architecture and of all parameters."""
    return digest(model.params, json.dumps(model.architecture, sort_keys=True))


def embedder(model: Model, layer: int, pooling: str, mesh) -> Callable:
    """images [B, H, W, channels], B a multiple of the devices -> float32 [B, D], computed on all
    devices of the mesh.

    layer: from 1; those behind it are not run. pooling: see `models.heads.pool`.
    """
    mean, std = model.architecture['mean'], model.architecture['std']

    def embed(params, images):
        encoder = nnx.merge(model.graphdef, params).encoder
        (x_BND,) = encoder.taps(normalize(to_float(images), mean, std), [layer - 1])
        return pool(x_BND, pooling)

    shardings = replicated(mesh), batch_sharding(mesh)
    compiled = jax.jit(on_mesh(mesh, embed), in_shardings=shardings)
    params = jax.device_put(model.params, replicated(mesh))
    return lambda images: np.asarray(compiled(params, images))


def fill(
    folder: Array | Tables,
    parts: range,
    pictures: Pictures,
    embed: Callable,
    batch: int,
    stored: str,
    strict: bool = False,
) -> int:
    """Writes those of some parts that are missing. Names on stderr the pictures that cannot be
    read, whose rows are NaN.

    Returns:
      how many these are.

    Raises:
      RequestError: there is one, and it is `strict`; a number that `stored` cannot hold.
    """
    missing, bad = folder.missing(parts), 0
    spans = [folder.span(part) for part in missing]
    total = sum(stop - first for first, stop in spans)
    with tqdm(total=total, unit='image', disable=None, dynamic_ncols=True) as progress:
        for part, (first, stop) in zip(missing, spans):
            rows_RD, labels_R, done = [], [], first
            for made in pictures.read(np.arange(first, stop), batch):
                count = min(batch, stop - done)
                rows_BD, labels_B = embed(made['image'])[:count], made['label'][:count].copy()
                unreadable_B = made['valid'][:count] == 0
                for index in done + np.flatnonzero(unreadable_B):
                    pictures.tell_unreadable(int(index), 'its row is NaN', strict)
                rows_BD = np.where(unreadable_B[:, None], np.float32(np.nan), rows_BD)
                labels_B[unreadable_B] = UNREADABLE
                rows_RD.append(_narrowed(rows_BD, stored, pictures, done))
                labels_R.append(labels_B)
                done, bad = done + count, bad + int(unreadable_B.sum())
                progress.update(count)
            names = [pictures.name(index) for index in range(first, stop)]
            folder.write(part, np.concatenate(rows_RD), names, np.concatenate(labels_R))
    return bad


def _narrowed(rows_BD, stored, pictures, first):
    with np.errstate(over='ignore'):
        narrow_BD = rows_BD.astype(stored)
    overflowed = np.flatnonzero((np.isinf(narrow_BD) & np.isfinite(rows_BD)).any(axis=1))
    check(
        not len(overflowed),
        f'{stored} ends at {np.finfo(stored).max:,.0f}, and the embedding of '
        f'{pictures.name(first + int(overflowed[0])) if len(overflowed) else ""} goes beyond: '
        'give --stored float32 and a new --output.',
    )
    return narrow_BD
