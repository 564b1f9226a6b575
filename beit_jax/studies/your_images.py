"""From a folder of pictures to an encoder: the stages of configs/your_images.py, as commands."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path

from beit_jax.data import layout
from beit_jax.data.config import DataConfig
from beit_jax.data.small_copies import shorter_side
from beit_jax.data.sources.choice import open_source
from beit_jax.errors import check, shown
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from beit_jax.studies.stages import Stage

LARGE = 3  # times image_size: from there on pictures are copied small first
# settings of training; the others say where pictures are and how they are read
_KEPT = 'holdout', 'crop_scale', 'crop_ratio', 'flip', 'evaluate_crop', 'image_ops', 'workers'


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is there to learn from.

    Attributes:
      settings: of `config.data`, besides those of the recipe.
      data: with them.
      count, held_out: how many are trained on and how many are not.
      classes: the names of their folders; () where there are not several, or no folders.
      side: the shorter one of most, in pixels.
      notes: lines for the user.
    """

    settings: Mapping
    data: DataConfig
    count: int
    held_out: int
    classes: tuple[str, ...]
    side: int
    notes: tuple[str, ...] = ()


def look(recipe: str, settings: Mapping) -> Pictures:
    """What lies where the settings of `config.data` say, besides those of the recipe.

    Raises:
      RequestError: wrong settings, no pictures, or too few to hold one out.
    """

    def data_of(settings):
        config = load_recipe(recipe)
        config.data.update(settings)
        return task_config(config).data

    data, notes = data_of(settings), ()
    parts = layout.parts_of_a_set(open_source(data, 'train'), data.path)
    if parts and not data.evaluate_path:
        data = data_of(settings := settings | parts.meant)
        names, held = ', '.join(parts.names), shown(data.evaluate_path) or 'a share of it'
        notes = (
            f'{shown(parts.folder)} holds {shown(names)}, which are parts of a set: '
            f'{shown(data.path)} is trained on, {held} is held out',
        )
    source, held_out = open_source(data, 'train'), open_source(data, 'evaluate')
    check(held_out is not None, f'{shown(data.path)} holds one picture: give a folder of many.')
    classes = source.class_names if len(source.class_names) > 1 else ()
    side = shorter_side(source)
    return Pictures(settings, data, len(source), len(held_out), classes, side, notes)


@dataclasses.dataclass(frozen=True)
class Commands:
    """What is typed for these pictures in this work directory; size: of the recipe."""

    recipe: str
    size: str
    pictures: Pictures
    workdir: Path

    def stages(self) -> list[Stage]:
        """In their order; the probe where there are classes."""
        tokenizer, pretrained = self.workdir / 'tokenizer', self.workdir / 'pretrain'
        stages = [
            *self._copy(),
            self._train('a tokenizer of these pictures', 'tokenizer', 'tokenizer'),
            self._draw('its curves', 'tokenizer_curves', 'curves', workdir=tokenizer),
            self._train(
                'pre-training: predict the tokens of hidden patches',
                'pretrain',
                'checkpoints',
                f'--config.tokenizer.path={tokenizer}/tokenizer',
            ),
            self._draw('its curves', 'pretrain_curves', 'curves', workdir=pretrained),
            self._draw(
                'held-out pictures, and what it makes of patches that are hidden from it',
                'reconstructions',
                'reconstruct',
                workdir=pretrained,
                images='held_out',
            ),
            self._draw(
                'held-out pictures, and those that it finds most like them',
                'neighbours',
                'neighbours',
                checkpoint=pretrained,
            ),
        ]
        if count := len(self.pictures.classes):
            title = f'does it know from which of the {count} folders a held-out picture is?'
            encoder = f'--config.encoder={pretrained}'
            stages += [
                self._train(title, 'probe', 'probe.json', encoder),
                self._train('do random weights?', 'probe,random', 'probe.json'),
            ]
        return stages

    def next_steps(self) -> dict[str, tuple[str, ...]]:
        """What people do with an encoder -> words of the command."""
        pretrained, pictures = self.workdir / 'pretrain', self.pictures
        export = {'input': pretrained, 'format': 'timm', 'output': self.workdir / 'exported'}
        embed = {'checkpoint': pretrained, 'images': pictures.data.path, 'what': 'features'}
        labelled, title = self, 'fine-tune it'
        if not pictures.classes:
            title += ' on LABELLED, pictures in a folder a class'
            others = dataclasses.replace(pictures, settings={'path': 'LABELLED'}, side=0)
            labelled = dataclasses.replace(self, pictures=others)
        steps = {
            title: labelled._main('finetune', f'--config.init={pretrained}'),
            'give its weights to PyTorch': _tool('export_weights', **export),
        }
        if pictures.data.name == 'folder':
            words = _tool('predict', **embed, output=self.workdir / 'features.npz')
            steps['embed pictures: features of every layer'] = words
        return steps

    def folder(self, stage: str) -> Path:
        return self.workdir / stage.replace(',', '_')

    @property
    def _size(self) -> int:
        """The side that the encoder sees."""
        return load_recipe(self.recipe, f'pretrain,{self.size}').data.image_size

    @property
    def _copied(self) -> dict[str, dict]:
        """{setting: what it is of the pictures that are copied}; {} where none are."""
        settings, data = dict(self.pictures.settings), self.pictures.data
        if self.pictures.side < LARGE * self._size or data.evaluate_split:
            return {}
        held_out = settings.pop('evaluate_path', '')
        parts = {'path': settings, 'evaluate_path': settings | {'path': held_out}}
        return {name: part for name, part in parts.items() if part['path']}

    def _copy(self) -> list[Stage]:
        stages = []
        for name, settings in self._copied.items():
            output, size = self.workdir / 'copies' / name, 2 * self._size
            read = {'exif': True} | {k: each for k, each in settings.items() if k not in _KEPT}
            data = {f'data.{key}': value for key, value in read.items()}
            words = _tool('shrink', **data, size=size, output=output)
            title = f'small copies of {shown(settings["path"])}, {size} pixels high or wide'
            stages.append(Stage(title, words, output))
        return stages

    def _train(self, title: str, stage: str, leaves: str, *more: str) -> Stage:
        return Stage(title, self._main(stage, *more), self.folder(stage) / leaves)

    def _main(self, stage: str, *more: str) -> tuple[str, ...]:
        pictures = self.pictures
        config = f'--config={self.recipe}:{stage},{self.size},pictures={pictures.count}'
        settings = pictures.settings
        if copied := self._copied:
            settings = {name: value for name, value in settings.items() if name in _KEPT}
            settings |= {name: self.workdir / 'copies' / name for name in copied}
        data = (f'--config.data.{name}={value}' for name, value in settings.items())
        program = ('main.py',) if Path('main.py').is_file() else ('-m', 'beit_jax', 'train')
        return *program, config, f'--workdir={self.folder(stage)}', *data, *more

    def _draw(self, title: str, name: str, tool: str, **options) -> Stage:
        output = self.workdir / 'pictures' / f'{name}.png'
        return Stage(title, _tool(tool, **options, output=output), output)


def _tool(name: str, **options) -> tuple[str, ...]:
    words = []
    for option, value in options.items():
        several = isinstance(value, tuple)
        words += [f'--{option}', *map(str, value)] if several else [f'--{option}={value}']
    return '-m', f'beit_jax.tools.{name}', *words


def scores(probe: Path) -> dict[str, float]:
    """The best accuracy of a linear head and of k-NN in the work directory of a probe."""
    table = json.loads((probe / 'probe.json').read_text())
    return {
        kind: max(max(values) for name, values in table.items() if name.startswith(kind))
        for kind in ('linear', 'k-NN')
    }
