"""Where the windows of a sliding-window inference lie, and how their logits become the picture's.

Windows lie on a product of rows and columns, and averaging, bilinear resizing and turning round are
linear in each axis: so the logits of a picture are the sum over its windows of rows @ logits @
columns, with two small matrices a window, made here. Nothing has the picture's shape but the
result. NumPy only.
"""

import numpy as np

from beit_jax.models.resize import bilinear_matrix


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis (mmsegmentation's law).

    Every `stride`, the last one shifted so that it ends with the axis; [0] where the axis is not
    longer than a window.
    """
    steps = -(-max(length - window, 0) // stride)
    return [max(min(i * stride, length - window), 0) for i in range(steps + 1)]


def axis_maps(
    length: int, result: int, window: int, stride: int, logits: int
) -> list[tuple[int, np.ndarray]]:
    """Of each window along an axis: where it starts, and a matrix from its logits to the picture's.

    The matrix, float32 [result, logits], gives the window's share: its logits are brought to its
    size, placed, divided by how many windows cover a pixel, and resized. What lies beyond a picture
    smaller than the window falls away.

    Args:
      length: of the axis of the picture that the windows see, in pixels.
      result: of that of the original.
      window: its length.
      stride: from window to window.
      logits: along a window.
    """
    starts = window_starts(length, window, stride)
    covered = np.zeros(length)
    for start in starts:
        covered[start : start + window] += 1
    resize, enlarge = bilinear_matrix(length, result) / covered, bilinear_matrix(logits, window)
    maps = []
    for start in starts:
        matrix = resize[:, start : start + window] @ enlarge[: length - start]
        maps.append((start, matrix.astype(np.float32)))
    return maps


def fitted_size(height: int, width: int, covered: tuple[int, int], long: float) -> tuple[int, int]:
    """(height, width) to which a picture is brought before it is cut into windows.

    It just covers `covered`, but its longer side becomes `long` at most.
    """
    ratio = max(covered[0] / height, covered[1] / width)
    ratio = min(ratio, long / max(height, width))
    return max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))
