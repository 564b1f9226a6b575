"""Writes the tokens of a whole data set, or of some images: a .npy file, uint16, one row an image,
and beside it a .json that says of what. Killed and started again, it goes on; several hosts write a
file each."""

import hashlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from beit_jax import whole_files
from beit_jax.data.config import View
from beit_jax.data.pictures.load import load_images
from beit_jax.data.sources.choice import open_source
from beit_jax.data.sources.subset import Subset
from beit_jax.errors import RequestError, check
from beit_jax.images.color import to_float
from beit_jax.models.tokenizers import PRECISIONS
from beit_jax.settings.run import MeshConfig
from beit_jax.tools import arguments
from beit_jax.train import distributed
from beit_jax.train.sharding import batch_sharding, make_mesh, replicated
from beit_jax.weights import tokenizer as weights


class Export:
    """A file of tokens that grows: `OUTPUT.partial` and its progress, until all rows are there."""

    def __init__(self, path: Path, description: dict, rows: int, tokens: int):
        self.path, self.description = path, description | {'images': rows, 'tokens': tokens}
        self._json, self._partial, self._progress = (
            path.with_name(path.name + suffix) for suffix in ('.json', '.partial', '.progress')
        )
        self.complete = path.exists()
        if self.complete:
            self._refuse_other(self._json)
        elif self._progress.exists() and self._partial.exists():
            saved = self._refuse_other(self._progress)
            try:
                self.done, self.bad = int(saved['done']), list(saved['bad'])
                self._ids = np.lib.format.open_memmap(self._partial, 'r+')
            except (ValueError, KeyError, TypeError) as error:
                raise RequestError(
                    f'{self._partial} or {self._progress} is damaged: remove both.'
                ) from error
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._progress.unlink(missing_ok=True)  # never a record of rows that are gone
            self.done, self.bad = 0, []
            self._ids = np.lib.format.open_memmap(self._partial, 'w+', np.uint16, (rows, tokens))

    def _refuse_other(self, file: Path) -> dict:
        try:
            saved = dict(json.loads(file.read_text())) if file.exists() else {}
        except (ValueError, TypeError) as error:
            raise RequestError(f'{file} is damaged: remove it and what it is of.') from error
        differing = whole_files.differences(saved, self.description)
        check(
            not differing,
            f'{self.path} holds tokens of something else ({"; ".join(differing[:3])}): give '
            'another --output, or remove it.',
        )
        return saved

    def write(self, ids_RP: np.ndarray, bad: list[int]) -> None:
        """The next rows; `bad`: which of all rows are of images that could not be read (their
        tokens are 0)."""
        self._ids[self.done : self.done + len(ids_RP)] = ids_RP
        self.done, self.bad = self.done + len(ids_RP), self.bad + bad
        self._ids.flush()
        whole_files.write(self._progress, self.description | {'done': self.done, 'bad': self.bad})

    def finish(self) -> None:
        whole_files.write(self._json, self.description | {'bad': self.bad})
        os.replace(self._partial, self.path)
        self._progress.unlink(missing_ok=True)


def run(options) -> None:
    check(options.batch > 0, f'--batch is {options.batch}: use at least 1.')
    distributed.start(options.coordinator, options.num_processes, options.process_id)
    tokenizer, params = weights.load_tokenizer(options.tokenizer, options.precision)
    size = arguments.picture_size(options, tokenizer)
    tokens = (size // tokenizer.factor) ** 2
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    batch = -(-options.batch // mesh.size) * mesh.size
    process, processes = jax.process_index(), jax.process_count()
    source, description, read = _images(options, size) if options.images else _data(options, size)
    first, last = (len(source) * p // processes for p in (process, process + 1))
    description |= {
        'tokenizer': weights.fingerprint(tokenizer, params),
        'vocabulary': tokenizer.vocabulary,
        'precision': options.precision,
        'image_size': size,
        'batch': batch,
        'first': first,
    }
    output = Path(options.output)
    if processes > 1:
        output = output.with_name(f'{output.stem}-{process:05}-of-{processes:05}{output.suffix}')
    export = Export(output, description, last - first, tokens)
    if export.complete:
        print(f'{output} is complete already: {last - first:,} images')
        return
    encode = jax.jit(
        lambda params, pixels: tokenizer.encode(params, to_float(pixels)).astype(jnp.uint16),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
    )
    params = jax.device_put(params, replicated(mesh))
    progress = tqdm(
        total=last - first, initial=export.done, unit='image', disable=None, dynamic_ncols=True
    )
    for pixels, valid in read(np.arange(first + export.done, last), batch):
        ids = np.asarray(encode(params, pixels))[: min(batch, last - first - export.done)]
        bad = [export.done + int(row) for row in np.flatnonzero(valid[: len(ids)] == 0)]
        for row in bad:
            print(f'warning: image {first + row} cannot be read; its tokens are 0', flush=True)
        export.write(np.where(valid[: len(ids), None] > 0, ids, 0), bad)
        progress.update(len(ids))
    progress.close()
    export.finish()
    print(f'{last - first:,} images x {tokens} tokens, uint16 -> {output}')


def _images(options, size: int):
    """(images, description, reader) of --images."""
    images, _ = load_images(options.images, size)

    def read(indices, batch):
        for start in range(0, len(indices), batch):
            pixels = images[indices[start : start + batch]]
            yield np.pad(pixels, ((0, batch - len(pixels)), (0, 0), (0, 0), (0, 0))), np.ones(batch)

    return images, {'data': hashlib.sha256(images.tobytes()).hexdigest()}, read


def _data(options, size: int):
    """(source, description, reader) of --data; the central square of each image."""
    from beit_jax.data import pipeline

    data = arguments.data_config(options, image_size=size)
    source = open_source(data, options.part)
    check(
        source is not None,
        'there are no held-out images: set --data.evaluate_path, --data.evaluate_split or '
        '--data.holdout.',
    )
    pipeline.check_source(source, data)

    def read(indices, batch):
        for made in pipeline.evaluate_batches(
            Subset(source, indices),
            batch,
            (View('image', size, 'lanczos3'),),
            data,
            np.arange(batch),
            data.evaluate_crop,
        ):
            yield made['image'], made['valid']

    return source, {'data': source.fingerprint, 'crop': data.evaluate_crop}, read


def _arguments():
    parser = arguments.parser(
        'tokenize',
        __doc__,
        'python -m beit_jax.tools.tokenize --tokenizer tokenizers/dalle --data.name tfds '
        '--data.path /tfds/imagenet2012/5.1.0 --output ids.npy',
    )
    parser.add_argument('--tokenizer', required=True, metavar='DIR')
    parser.add_argument(
        '--output',
        required=True,
        metavar='NPY',
        help='the file to write; several hosts add -PROCESS-of-PROCESSES to its name',
    )
    parser.add_argument(
        '--images',
        default='',
        help='folder, image file or .npy array [B, H, W, 3], instead of --data',
    )
    parser.add_argument(
        '--part',
        choices=('train', 'evaluate'),
        default='train',
        help='of --data: the training or the held-out images (train)',
    )
    parser.add_argument('--precision', choices=PRECISIONS, default='float32')
    parser.add_argument('--batch', type=int, default=64, help='images a call on each host (64)')
    parser.add_argument(
        '--image_size',
        type=int,
        default=0,
        help='side in pixels of what the tokenizer is shown (what it was made for)',
    )
    parser.add_argument(
        '--coordinator',
        default='',
        help='host:port of process 0, to start several processes by hand',
    )
    parser.add_argument('--num_processes', type=int, default=1)
    parser.add_argument('--process_id', type=int, default=0)
    arguments.add_data(parser)
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
