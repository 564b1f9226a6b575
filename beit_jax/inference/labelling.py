"""Label maps of pictures, by a segmenter: a PNG each, whose pixels are the classes."""

from collections import Counter
from collections.abc import Callable
import os
from pathlib import Path

from flax import nnx
import jax
import numpy as np
from tqdm import tqdm

from beit_jax.data.config import Reading
from beit_jax.data.pictures.label_pictures import label_png
from beit_jax.data.pictures.load import LeaveOut, image_files, whole_images
from beit_jax.errors import check, shown
from beit_jax.images.color import normalize, to_float
from beit_jax.tasks.segment import InferenceConfig
from beit_jax.train.segmentation import PictureLabeller
from beit_jax.weights.models import Model


def label_pictures(
    model: Model,
    images: str,
    output: Path,
    config: InferenceConfig,
    limit: int | None = None,
    leave_out: LeaveOut | None = None,
) -> np.ndarray:
    """Writes the label map of each picture of a folder, a file or a .npy array to the folder
    `output`, by windows of the model's size as in evaluation; at most `limit`; `leave_out` as of
    `image_batches`.

    Returns:
      how many pixels have each class, int64 [256].

    Raises:
      RequestError: also where a file would be written over a picture, or two into one.
    """
    architecture, file_of = model.architecture, _files(images, output, model.reading)

    def label_windows(params, windows):
        pixels = normalize(to_float(windows), architecture['mean'], architecture['std'])
        return nnx.merge(model.graphdef, params)(pixels)[0]

    labeller = PictureLabeller(
        label_windows, model.shape, config, jax.local_devices(), architecture['mean'], model.pixels
    )
    found = whole_images(images, limit, leave_out, model.reading)
    pictures = ((name, picture) for picture, name in found)
    pixels = np.zeros(256, np.int64)
    labelled = labeller(model.params, pictures)
    for name, image, scores_HVC in tqdm(labelled, unit='image', disable=None, dynamic_ncols=True):
        padded_HV, _ = labeller.classify(image, scores_HVC)
        label_map = np.asarray(padded_HV)[: image.shape[0], : image.shape[1]]
        path = file_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        label_png(label_map).save(path)
        pixels += np.bincount(label_map.ravel(), minlength=256)
    return pixels


def _files(images: str, output: Path, reading: Reading) -> Callable[[str], Path]:
    """From a picture's name to the PNG of its label map, a file each: `name.png` for `name.jpg`,
    and `name.jpg.png` where several pictures of a folder are called `name`."""
    if Path(images).suffix == '.npy':
        stem = shown(Path(images).stem)
        return lambda name: output / f'{stem}-{int(name[name.rindex("[") + 1 : -1]):05}.png'
    files = list(image_files(images, reading))
    root = Path(images) if Path(images).is_dir() else Path(images).parent
    inside = [Path(shown(str(Path(file).relative_to(root)))) for file in files]
    alike = Counter(name.with_suffix('') for name in inside)
    paths = [
        output / (name.with_name(name.name + '.png') if alike[bare] > 1 else f'{bare}.png')
        for name, bare in ((name, name.with_suffix('')) for name in inside)
    ]
    read, made = set(map(os.path.realpath, files)), Counter(paths)
    for file, path in zip(files, paths):
        check(
            made[path] == 1 and os.path.realpath(path) not in read,
            f'--output={output}: the label map of {shown(file)} would be written to {path}, which '
            'is another picture, or that of one: give another folder, or rename it.',
        )
    return dict(zip(map(shown, files), paths)).__getitem__
