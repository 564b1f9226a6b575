"""Where the windows of a sliding-window inference lie, and how their logits become those of the
picture.

Windows lie on a product of rows and columns, and averaging, bilinear resizing and turning round are
linear in each axis: so the logits of a picture are the sum over its windows of rows @ logits @
columns, with two small matrices a window, made here. Nothing has the picture's shape but the
result. NumPy only.
"""

import numpy as np

from beit_jax.models.upernet import bilinear_matrix


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis: every `stride`, the last one shifted so that it
    ends with the axis (mmsegmentation's law).

    [0] where the axis is not longer than a window.
    """
    steps = -(-max(length - window, 0) // stride)
    return [max(min(i * stride, length - window), 0) for i in range(steps + 1)]


def axis_maps(
    length: int, result: int, window: int, stride: int, logits: int
) -> list[tuple[int, np.ndarray]]:
    """Of each window along an axis: where it starts, and the matrix float32 [result, logits] from
    its logits to its share of the picture's.

    The logits are brought to the window's size, placed, divided by how many windows cover a pixel,
    and resized: what lies beyond a picture smaller than the window falls away.

    Args:
      length: of the axis of the picture that the windows see; result: of that of the original;
        window, stride: in pixels;
      logits: along a window.
    """
    starts = window_starts(length, window, stride)
    covered = np.zeros(length)
    for start in starts:
        covered[start : start + window] += 1
    resize, enlarge = bilinear_matrix(length, result) / covered, bilinear_matrix(logits, window)
    return [
        (start, (resize[:, start : start + window] @ enlarge[: length - start]).astype(np.float32))
        for start in starts
    ]


def fitted_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """The size to which a picture is brought before it is cut into windows: its shorter side
    `short`, but the longer one `long` at most."""
    ratio = min(short / min(height, width), long / max(height, width))
    return max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))
