"""Parameters and what is said of them: what to build, and how to show it pictures."""

import dataclasses
from pathlib import Path

import jax

from beit_jax.data.config import PixelFormat, Reading, one_size, sides
from beit_jax.models.architecture import in_words, problem_type
from beit_jax.weights.checkpoint import save_params
from beit_jax.whole_files import local_path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Stored:
    """What a checkpoint, or a file of weights, holds."""

    description: dict  # that of the checkpoint
    params: dict  # a nested dict of arrays
    path: str = ''  # where they were read

    def __repr__(self):
        count = sum(array.size for array in jax.tree.leaves(self.params))
        head, *others = in_words(self.architecture)
        return '\n'.join([f'{count:,} parameters, {head}', *others])

    @property
    def architecture(self) -> dict:
        return self.description['architecture']

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; () where nobody has named them."""
        return tuple(self.description.get('classes') or ())

    @property
    def problem_type(self) -> str:
        """What the outputs of a classifier are: see `models.architecture.PROBLEM_TYPES`."""
        return problem_type(self.architecture)

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed or changed to read it."""
        return tuple(self.description.get('notes', ()))

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of its pictures in pixels; height and width where they are no squares."""
        return one_size(*self.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of its pictures in pixels."""
        return sides(self.architecture['image_size'])

    @property
    def pixels(self) -> PixelFormat:
        """What its pictures are where they are stored, and which channels it reads."""
        stored = self.architecture.get('pixels') or {'channels': self.architecture['channels']}
        return PixelFormat(**stored | {'bands': tuple(stored.get('bands', ()))})

    @property
    def crop(self) -> float:
        """Side of the central square that the model is shown over the shorter side of a picture."""
        return self.architecture['crop']

    @property
    def reading(self) -> Reading:
        """How files become pixels, as in training."""
        given = self.architecture.get('reading', {})
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return Reading(**given, pixels=self.pixels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(self.architecture['grid'])

    def save(self, path: str | Path) -> None:
        """Writes a checkpoint to a new directory: `beit_jax.load`, `config.init` and the tools take
        it.

        Raises:
          RequestError: there is something already.
          StorageError: it cannot be written now.
        """
        save_params(local_path('path', str(path)), self.params, self.description)
