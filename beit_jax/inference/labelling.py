"""Label maps of pictures, by a segmenter: a PNG each, whose pixels are the classes."""

from pathlib import Path

from flax import nnx
import jax
import numpy as np

from beit_jax.data.pictures.label_pictures import label_png
from beit_jax.data.pictures.load import whole_images
from beit_jax.errors import shown
from beit_jax.images.color import normalize, to_float
from beit_jax.tasks.segment import InferenceConfig
from beit_jax.train.segmentation import PictureLabeller
from beit_jax.weights.models import Model


def label_pictures(
    model: Model, images: str, output: Path, config: InferenceConfig, limit: int | None = None
) -> np.ndarray:
    """Writes the label map of each picture of a folder, a file or a .npy array to the folder
    `output`, by windows of the model's size as in evaluation; at most `limit`.

    Returns:
      how many pixels have each class, int64 [256].
    """
    architecture = model.architecture

    def label_windows(params, windows):
        pixels = normalize(to_float(windows), architecture['mean'], architecture['std'])
        return nnx.merge(model.graphdef, params)(pixels)[0]

    labeller = PictureLabeller(
        label_windows, model.image_size, config, jax.local_devices(), architecture['mean']
    )
    pictures = ((name, pixels) for pixels, name in whole_images(images, limit))
    pixels = np.zeros(256, np.int64)
    for name, image, scores_HVC in labeller(model.params, pictures):
        padded_HV, _ = labeller.classify(image, scores_HVC)
        label_map = np.asarray(padded_HV)[: image.shape[0], : image.shape[1]]
        inside = Path(name).relative_to(shown(images)) if Path(images).is_dir() else Path(name).name
        path = (output / inside).with_suffix('.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        label_png(label_map).save(path)
        pixels += np.bincount(label_map.ravel(), minlength=256)
    return pixels
