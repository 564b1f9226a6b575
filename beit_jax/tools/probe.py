"""Does the encoder know what it was never told? Ridge regression from its frozen features to the labels of `shapes`, for every layer,
beside the same probe on an encoder with random weights. (Masked-token accuracy alone proves nothing.)"""
import json
from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.data.shapes import SHAPES, ShapesSource
from beit_jax.images.color import normalize, to_float
from beit_jax.tools import arguments
from beit_jax.tools.reconstruct import load_run
from beit_jax.train.step import initial_params

BATCH = 500


def layer_features(task, params, images: np.ndarray) -> np.ndarray:
    """Mean of the patch representations after every block, float32 [L, B, D]. images: uint8 [B, S, S, 3], B a multiple of 500."""
    data = task.config.data

    @jax.jit
    def features(params, images_BSS3):
        encoder = nnx.merge(task.graphdef, params).encoder
        return jnp.mean(encoder(normalize(to_float(images_BSS3), data.mean, data.std), every_layer=True)[:, :, 1:], axis=2,
                        dtype=jnp.float32)
    parts = [np.asarray(features(params, images[i:i + BATCH])) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts, axis=1)


def ridge_accuracy(train, train_labels, test, test_labels, penalty: float = 1.0) -> float:
    """Accuracy of one-against-all ridge regression on standardised features [B, D]; labels int [B]."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = ((np.c_[(x - mean) / deviation, np.ones(len(x))]).astype(np.float64) for x in (train, test))
    targets = np.eye(len(SHAPES))[train_labels] * 2 - 1
    weights = np.linalg.solve(train.T @ train + penalty * np.eye(train.shape[1]), train.T @ targets)
    return float(np.mean((test @ weights).argmax(1) == test_labels))


def run(options) -> None:
    task, params = load_run(options.workdir)
    size = task.config.data.image_size
    sets = []
    for split, count in (('train', options.train), ('evaluate', options.test)):
        source = ShapesSource(count, size, options.level, split)
        images, _, labels = zip(*(source.draw(i) for i in range(count)))
        sets.append((np.stack(images), np.array(labels)))
    (train, train_labels), (test, test_labels) = sets
    random = initial_params(task, options.seed)
    accuracies = {name: [ridge_accuracy(x, train_labels, y, test_labels) for x, y in zip(layer_features(task, weights, train),
                                                                                         layer_features(task, weights, test))]
                  for name, weights in (('pre-trained', params), ('random', random))}
    accuracy, guessing = _token_accuracy(Path(options.workdir) / 'metrics.jsonl')
    if accuracy:
        print(f'masked-token accuracy on held-out pictures {accuracy:.3f}; always guessing the most frequent token {guessing:.3f} '
              f'({accuracy / guessing:.1f} times)')
    print(f'ridge probe on {options.train} labelled pictures, accuracy on {options.test} others (chance {1 / len(SHAPES):.2f}):')
    for name, values in accuracies.items():
        print(f'  {name:12}' + '  '.join(f'layer {i + 1} {value:.3f}' for i, value in enumerate(values)) + f'  best {max(values):.3f}')
    if options.json:
        Path(options.json).write_text(json.dumps(accuracies | {'token_accuracy': accuracy, 'majority_accuracy': guessing}) + '\n')


def _token_accuracy(metrics: Path) -> tuple[float, float]:
    """(accuracy, that of guessing) of the last evaluation of the run; zeros where there was none."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    evaluations = [(row['eval/token_accuracy'], row['eval/majority_accuracy']) for row in rows if 'eval/token_accuracy' in row]
    return evaluations[-1] if evaluations else (0.0, 0.0)


def _arguments():
    parser = arguments.parser('probe', __doc__, 'python -m beit_jax.tools.probe --workdir runs/quickstart/pretrain')
    parser.add_argument('--workdir', required=True, help='work directory of a pre-training run')
    parser.add_argument('--level', default='easy', help='of the pictures (easy)')
    parser.add_argument('--train', type=int, default=2000, help='labelled pictures, a multiple of 500 (2000)')
    parser.add_argument('--test', type=int, default=2000, help='other pictures, a multiple of 500 (2000)')
    parser.add_argument('--seed', type=int, default=0, help='of the random encoder (0)')
    parser.add_argument('--json', default='', help='also write the figures to this file')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
