"""A picture of what a pre-trained model has learned: original, masked, what the tokenizer
alone keeps (if there is one), what the model predicts."""

from collections.abc import Sequence
import os
from pathlib import Path

import numpy as np
from PIL import Image

from beit_jax.data.config import DataConfig, View
from beit_jax.data.pictures.grid import grid_picture, visible
from beit_jax.data.pictures.load import square, whole_images
from beit_jax.errors import check
from beit_jax.settings.mapping import task_config
from beit_jax.tools import arguments, images_option, outputs, pixels_option
from beit_jax.whole_files import read_json


def load_run(workdir: str, tokenizer: str = ''):
    """(task, parameters) of a pre-training work directory. tokenizer: where that has moved."""
    from beit_jax.tasks import make_task
    from beit_jax.train.state import abstract_params
    from beit_jax.weights.hub import repository
    from beit_jax.weights.load import load_weights
    from beit_jax.weights.trees import check_params

    path = Path(workdir) / 'config.json'
    check(path.is_file(), f'--workdir={workdir}: there is no config.json; give that of a run.')
    config = read_json(path, 'remove it, and start main.py with the config of the run once more')
    check(
        config.get('task') == 'pretrain' and isinstance(config.get('tokenizer'), dict),
        f'--workdir={workdir} is a {config.get("task")} run: give that of a pre-training run.',
    )
    path = config['tokenizer']['path'] = str(tokenizer or config['tokenizer'].get('path', ''))
    on_hub = (tokenizer or '@' in path) and repository(path)  # a run keeps it with its commit
    check(
        not path or on_hub or Path(path).is_dir(),
        f'--workdir={workdir}: the tokenizer of this run is not at {path}: give --tokenizer=DIR.',
    )
    task = make_task(task_config(config))
    params, description = load_weights(workdir)
    params, _, _ = task.adapt(params, description, (), workdir)
    check_params(abstract_params(task), params, workdir)
    return task, params


def read_views(
    options, views: Sequence[View], data: DataConfig, left_out: images_option.LeftOut
) -> list[np.ndarray]:
    """The pictures of --images as each view has them, [B, height, width, channels]."""
    pixels, images, limit = data.pixels, options.images, options.limit
    if images == images_option.HELD_OUT:
        made, _ = images_option.held_out(data, views, limit, left_out)
        return [made[view.name] for view in views]
    if images != 'shapes':
        whole = [picture for picture, _ in whole_images(images, limit, left_out, data.reading)]
        show = lambda size: np.stack([square(picture, size, 1.0, pixels) for picture in whole])
        return [show(view.size) for view in views]
    drawn = images_option.built_in_pictures(limit, views[0].size, data.level, pixels)
    drawn, method = list(map(Image.fromarray, drawn)), Image.Resampling.LANCZOS
    show = lambda shape: np.stack([picture.resize(shape[::-1], method) for picture in drawn])
    return [show(view.sides) for view in views]


def run(options) -> None:
    import jax

    from beit_jax.images.color import to_float
    from beit_jax.tasks.reconstruction import predict_pictures
    from beit_jax.weights.tokenizer import check_draws, load_tokenizer

    # the pictures are not jittered: a person wants to see the image that was given
    check(options.limit > 0, f'--limit is {options.limit}: use at least 1.')
    output = outputs.file('--output', options.output, [options.images], outputs.PICTURE)
    task, params = load_run(options.workdir, options.tokenizer)
    path = task.config.tokenizer.path
    tokenizer_params = load_tokenizer(path, decoder=True)[1] if task.tokenizer else {}
    if task.tokenizer:
        check_draws(task.tokenizer, tokenizer_params, path)
    pixels_option.check_bands(options, task.config.model.channels)
    views, left_out = task.views + task.prepare_views, images_option.LeftOut(options)
    image, *token_image = map(to_float, read_views(options, views, task.config.data, left_out))
    predict = jax.jit(lambda *inputs: predict_pictures(task, *inputs, seed=options.seed))
    pictures = predict(tokenizer_params, params, image, *token_image)
    columns = ('original', 'masked', *(['tokenizer'] if task.tokenizer else []), 'model')
    output.parent.mkdir(parents=True, exist_ok=True)
    shown = [visible(np.asarray(each), options.bands) for each in (image, *pictures)]
    grid_picture(shown, columns).save(output)
    print(f'{len(image)} images{left_out} -> {output}')


def _arguments():
    parser = arguments.parser(
        'reconstruct',
        __doc__,
        'python -m beit_jax.tools.reconstruct --workdir runs/quickstart/pretrain '
        '--images shapes --output reconstructions.png',
    )
    parser.add_argument(
        '--workdir', required=True, type=arguments.path, help='that of a pre-training run'
    )
    images_option.add(parser, ', `shapes` (built-in) or `held_out` (of the run)', required=True)
    pixels_option.add_bands(parser)
    parser.add_argument('--output', required=True, help='the PNG to write')
    parser.add_argument('--limit', type=int, default=8, help='at most so many images (8)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (0)')
    parser.add_argument(
        '--tokenizer',
        default='',
        type=os.path.expanduser,
        help='directory of the tokenizer, where it has moved since the run',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
