"""From a folder of your pictures to an encoder: trains a tokenizer on them, pre-trains, draws what
becomes of held-out pictures, and probes the encoder where they lie in folders of classes. What is
done is not done again: the same command goes on where it stopped."""

from beit_jax.data.config import DataConfig
from beit_jax.data.recognition import kind_of
from beit_jax.errors import check, one_of
from beit_jax.studies import your_images
from beit_jax.studies.stages import run_stages, typed
from beit_jax.tools import arguments, outputs

SIZES = ('laptop', 'gpu', 'gpu,small')
FEW = 2000  # pictures, with which an encoder learns little


def run(options) -> None:
    one_of('--size', options.size, SIZES)
    settings = {name: getattr(options, f'data.{name}') for name in arguments.DATA}
    settings = {name: value for name, value in settings.items() if value is not None}
    for name, value in settings.items():
        settings[name] = tuple(value) if isinstance(value, list) else value
    what = 'give --data.path=DIR (make your-images DATA=DIR), a folder of pictures.'
    check(bool(settings.get('path')), what)
    if (kind := kind_of(settings['path'], '--data.path')) != DataConfig.name:
        settings.setdefault('name', kind)
    workdir = outputs.folder('--workdir', options.workdir, [settings['path']])
    pictures = your_images.look(options.recipe, settings)
    commands = your_images.Commands(options.recipe, options.size, pictures, workdir)
    print(*pictures.notes, _in_words(pictures), sep='\n')
    workdir.mkdir(parents=True, exist_ok=True)
    run_stages(commands.stages(), workdir)
    if pictures.classes:
        ours, random = (your_images.scores(commands.folder(f'probe{of}')) for of in ('', ',random'))
        for kind, right in ours.items():
            print(f'{kind}: {right:.1%} of held-out pictures; random weights {random[kind]:.1%}')
    print(f'Look at {workdir}/pictures. What you may do next:')
    for what, words in commands.next_steps().items():
        print(f'- {what}:\n  {typed(words)}')


def _in_words(pictures: your_images.Pictures) -> str:
    folders = f' in {len(pictures.classes):,} folders' if pictures.classes else ''
    line = f'{pictures.count:,} pictures{folders} to train on, {pictures.held_out:,} held out'
    few = f'. Fewer than {FEW:,} are a demonstration: they teach an encoder little'
    return line + few * (pictures.count < FEW)


def _arguments():
    parser = arguments.parser(
        'your_images',
        __doc__,
        'python -m beit_jax.tools.your_images --data.path=DIR --workdir=runs/mine',
    )
    parser.add_argument('--workdir', required=True, help='where everything goes')
    parser.add_argument(
        '--size',
        default='laptop',
        help='laptop (64 x 64 pixels, two cores), gpu (BEiT-B at 224) or gpu,small (laptop)',
    )
    parser.add_argument(
        '--recipe',
        default='configs/your_images.py',
        type=arguments.path,
        help='whose stages these are (%(default)s)',
    )
    arguments.add_data(parser)
    # what is not given is as the recipe has it
    parser.set_defaults(**dict.fromkeys(f'data.{name}' for name in arguments.DATA))
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
