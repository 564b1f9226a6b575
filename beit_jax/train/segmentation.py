"""A class for each pixel of whole pictures of any size, by a model that sees windows of one size;
and what these classes are worth.

Windows of several pictures share a program of one shape; `beit_jax.images.windows` says how their
logits add up. Each host labels pictures of its own on its own devices, which share the rows of a
picture; only the counts are added over hosts. Shape legend: W windows in a program, S their sides
in pixels, h w of their logits, H V of a picture (padded, so that few programs are compiled), C
classes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
import csv
import dataclasses
import math
from pathlib import Path
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from beit_jax.data.config import IGNORED, PixelFormat
from beit_jax.data.pictures.grid import visible
from beit_jax.data.pictures.label_pictures import overview
from beit_jax.data.pictures.load import resize
from beit_jax.images.confusion import confusion_matrix, scores, summarize_confusion
from beit_jax.images.windows import axis_maps, fitted_size
from beit_jax.settings.run import MeshConfig
from beit_jax.tasks.segment import InferenceConfig
from beit_jax.train.sharding import batch_sharding, make_mesh, on_mesh, replicated
from beit_jax.train.workdir.directory import writing

LONG = 4  # times the shorter side that the longer one may have: mmsegmentation's (2048, 512)
_PADDED = 64  # sides of pictures are padded to multiples of it


@dataclasses.dataclass
class _Picture:
    key: Any
    image: np.ndarray
    missing: int  # passes that are still to come
    scores_HVC: Any = 0.0


@dataclasses.dataclass
class _Pass:
    """One look at a picture: at one size, turned round or not."""

    picture: _Picture
    share: float  # of what is said of the picture
    missing: int  # windows that are still to come
    logits_HVC: Any = None


@dataclasses.dataclass(frozen=True)
class _Window:
    owner: _Pass
    pixels: np.ndarray  # of the window's shape, or less at the end of a picture that is smaller
    rows_Hh: np.ndarray
    columns_Vw: np.ndarray


class PictureLabeller:
    """Called with parameters and pictures, gives the scores of their pixels."""

    def __init__(
        self,
        label_windows: Callable,
        shape: tuple[int, int],
        config: InferenceConfig,
        devices: Sequence,
        fill: Sequence[float] = (0, 0, 0),
        pixels: PixelFormat = PixelFormat(),
    ):
        """label_windows: (params, images [W, *shape, channels], as they come) -> logits float32
        [W, h, w, C]; shape: height and width of a window; devices: of this process.

        fill: the colour, in [0, 1] and of as many channels, of a window where a picture is smaller;
        pixels: what the pictures are.
        """
        self._config, self._shape, self._pixels = config, shape, pixels
        self._strides = [config.stride or 2 * side // 3 for side in shape]
        self._fill = np.array(fill)
        self._mesh = make_mesh(MeshConfig(), list(devices))
        self._count = -(-config.windows // len(devices)) * len(devices)
        self._rows, self._whole = batch_sharding(self._mesh), replicated(self._mesh)
        self._label_windows = label_windows
        self._forward = jax.jit(
            on_mesh(self._mesh, label_windows),
            in_shardings=(self._whole, self._rows),
            out_shardings=self._whole,
        )
        self._add = jax.jit(_add_window, donate_argnums=0, out_shardings=self._rows)
        self._average = jax.jit(
            lambda total, logits_HVC, share: total + share * jax.nn.softmax(logits_HVC)
        )
        self._classify = jax.jit(_classify, out_shardings=self._whole)

    def __call__(
        self, params, pictures: Iterable[tuple[Any, np.ndarray]]
    ) -> Iterator[tuple[Any, np.ndarray, jax.Array]]:
        """(key, image [., ., channels] of any size) -> (key, image, scores float32 [H, V, C]), in
        order; the picture's own pixels lie in the upper left corner. Images are all of one type:
        uint8, uint16, or float32 in [0, 1].

        Scores are the windows' logits, averaged and resized to the picture; of several looks, the
        mean of their probabilities. A picture that is smaller than a window is filled up on the
        right and at the bottom, and what is said of that is dropped.
        """
        params, waiting = jax.device_put(params, self._whole), []
        window = (self._count, *self._shape, len(self._fill))
        windows = jax.ShapeDtypeStruct(window, jnp.uint8)
        *sides, num_classes = jax.eval_shape(self._label_windows, params, windows).shape[1:]
        for key, image in pictures:
            waiting += self._windows(key, image, sides)
            while len(waiting) >= self._count:
                yield from self._take(params, waiting[: self._count], num_classes)
                del waiting[: self._count]
        if waiting:
            yield from self._take(params, waiting, num_classes)

    def classify(self, image: np.ndarray, scores_HVC, label_map: np.ndarray | None = None):
        """(uint8 [H, V], the best class of each pixel; int32 [C, C], the confusion with
        `label_map`, uint8 of the image's size) of a picture."""
        labels = np.full(self._padded(image), IGNORED, np.uint8)
        if label_map is not None:
            labels[: label_map.shape[0], : label_map.shape[1]] = label_map
        return self._classify(scores_HVC, labels)

    def _padded(self, image):
        multiple = math.lcm(_PADDED, self._mesh.size)
        return tuple(-(-side // multiple) * multiple for side in image.shape[:2])

    def _windows(self, key, image, sides) -> Iterator[_Window]:
        """All looks at a picture. `sides`: h and w."""
        config, shape = self._config, self._shape
        (height, width), (H, V) = image.shape[:2], self._padded(image)
        flips, sizes_seen = (False, True) if config.flip else (False,), self._sizes(height, width)
        picture = _Picture(key, image, len(sizes_seen) * len(flips))
        for size, scales in sizes_seen.items():
            resized, share = (
                _resized(image, size, self._pixels),
                scales / len(config.scales) / len(flips),
            )
            rows = axis_maps(resized.shape[0], height, shape[0], self._strides[0], sides[0])
            columns = axis_maps(resized.shape[1], width, shape[1], self._strides[1], sides[1])
            for flip in flips:
                owner = _Pass(picture, share, len(rows) * len(columns))
                turned = resized[:, ::-1] if flip else resized
                padded = [(left, _pad(map_[::-1] if flip else map_, V)) for left, map_ in columns]
                for top, map_ in rows:
                    rows_Hh = _pad(map_, H)
                    for left, columns_Vw in padded:
                        pixels = turned[top : top + shape[0], left : left + shape[1]]
                        yield _Window(owner, pixels, rows_Hh, columns_Vw)

    def _sizes(self, height: int, width: int) -> Counter:
        """At which sizes windows are cut out of a picture, and for how many of the scales each."""
        shape, scales, longer = self._shape, self._config.scales, max(self._shape)
        if self._config.mode == 'whole':
            return Counter([shape])
        if len(scales) == 1:
            covered = tuple(int(scales[0] * side) for side in shape)
            return Counter([fitted_size(height, width, covered, int(scales[0] * longer * LONG))])
        # as the official SETR_Resize: not smaller than a window, however long
        larger = [tuple(max(side, int(scale * side)) for side in shape) for scale in scales]
        return Counter(fitted_size(height, width, covered, math.inf) for covered in larger)

    def _take(
        self, params, windows: list[_Window], num_classes: int
    ) -> Iterator[tuple[Any, np.ndarray, jax.Array]]:
        """Labels the windows of a program, and gives the pictures that this completes."""
        fill, dtype = self._fill, windows[0].pixels.dtype
        if dtype.kind == 'u':
            fill = np.rint(fill * np.iinfo(dtype).max)
        images_WSS3 = np.empty((self._count, *self._shape, len(fill)), dtype)
        images_WSS3[:] = fill
        for image_SS3, window in zip(images_WSS3, windows):
            image_SS3[: window.pixels.shape[0], : window.pixels.shape[1]] = window.pixels
        logits_WhwC = self._forward(params, images_WSS3)
        for number, window in enumerate(windows):
            owner, picture = window.owner, window.owner.picture
            if owner.logits_HVC is None:
                whole = (*self._padded(picture.image), num_classes)
                owner.logits_HVC = jnp.zeros(whole, device=self._rows)
            owner.logits_HVC = self._add(
                owner.logits_HVC, logits_WhwC, number, window.rows_Hh, window.columns_Vw
            )
            owner.missing -= 1
            if owner.missing:
                continue
            if owner.share == 1:
                picture.scores_HVC = owner.logits_HVC
            else:
                picture.scores_HVC = self._average(
                    picture.scores_HVC, owner.logits_HVC, owner.share
                )
            picture.missing -= 1
            if not picture.missing:
                yield picture.key, picture.image, picture.scores_HVC


def _resized(image: np.ndarray, size: tuple[int, int], pixels: PixelFormat) -> np.ndarray:
    return image if size == image.shape[:2] else resize(image, size, 'bilinear', None, pixels)


def _pad(map_, rows: int) -> np.ndarray:
    return np.pad(map_, ((0, rows - len(map_)), (0, 0)))


def _add_window(logits_HVC, logits_WhwC, number, rows_Hh, columns_Vw):
    return logits_HVC + jnp.einsum(
        'Hh,Vw,hwc->HVc', rows_Hh, columns_Vw, logits_WhwC[number], precision='highest'
    )


def _classify(scores_HVC, labels_HV):
    classes_HV = jnp.argmax(scores_HVC, axis=-1).astype(jnp.uint8)
    return classes_HV, confusion_matrix(labels_HV, classes_HV, scores_HVC.shape[-1])


def evaluate_pictures(
    labeller: PictureLabeller,
    params,
    examples: Iterable[tuple[int, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    workdir: Path,
    pictures: int,
    interrupted: Callable[[int], bool],
    most: int = 0,
) -> dict | None:
    """Metrics of label maps over the examples of all hosts, each counted once; None where
    `interrupted(number of a picture)` says so.

    Writes `WORKDIR/classes.csv`, and the first `pictures` of process 0 with their truth to
    `WORKDIR/images`.

    examples: (index, image [., ., channels], label map uint8 of its size) of this host. most: the
    most that a host has; each asks as often whether it is interrupted.
    """
    began, seen, counted = time.perf_counter(), 0, []
    total_CC = np.zeros((len(class_names),) * 2, np.int64)
    drawn = pictures if jax.process_index() == 0 else 0
    looks = labeller(params, (((index, label_map), image) for index, image, label_map in examples))
    for seen, ((index, label_map), image, scores_HVC) in enumerate(looks, 1):
        if interrupted(seen - 1):
            return None
        classes_HV, confusion_CC = labeller.classify(image, scores_HVC, label_map)
        counted.append(confusion_CC)
        # one late, so that the devices have the next picture while the host waits
        if len(counted) > 1:
            total_CC += np.asarray(counted.pop(0))
        if seen <= drawn:
            found = np.asarray(classes_HV)[: image.shape[0], : image.shape[1]]
            with writing(workdir / 'images'):
                overview(
                    visible(image), {'truth': label_map, 'prediction': found}, class_names
                ).save(workdir / 'images' / f'{index:05}.png')
    if any(interrupted(number) for number in range(seen, most)):
        return None
    total_CC += sum(map(np.asarray, counted))
    total_CC, images = _over_hosts(total_CC), int(_over_hosts(np.array([seen]))[0])
    summary = summarize_confusion(total_CC)
    if jax.process_index() == 0:
        _write_table(workdir / 'classes.csv', class_names, scores(total_CC))
        if 'miou' not in summary:
            there = [name for name, pixels in zip(class_names, total_CC.sum(1)) if pixels]
            print(
                f'warning: the held-out annotations have {len(there)} class'
                f'{"" if len(there) == 1 else "es"}{"".join(f" ({name})" for name in there)}: no '
                'eval/miou and no eval/mean_accuracy, which would be of that class alone',
                flush=True,
            )
    return summary | {
        'images': images,
        'images_per_second': images / (time.perf_counter() - began),
    }


def _over_hosts(counts: np.ndarray) -> np.ndarray:
    """The exact sum over all processes of int64 counts below 2 ** 62, which arrays of JAX do not
    hold."""
    if jax.process_count() == 1:
        return counts
    halves = multihost_utils.process_allgather(
        np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
    ).astype(np.int64)
    return np.sum((halves[:, 0] << 31) + halves[:, 1], axis=0)


def _write_table(path: Path, class_names: Sequence[str], found: dict[str, np.ndarray]) -> None:
    with writing(path.parent), path.open('w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['class', 'iou', 'accuracy', 'pixels'])
        for name, iou, accuracy, pixels in zip(
            class_names, found['iou'], found['accuracy'], found['pixels'], strict=True
        ):
            table.writerow(
                [
                    name,
                    *('' if math.isnan(value) else f'{value:.6f}' for value in (iou, accuracy)),
                    int(pixels),
                ]
            )
