"""What a source is: a numbered list of images with labels. Nothing in this folder but `tfrecords`
needs TensorFlow."""

import typing

import numpy as np

from beit_jax.errors import check


class Example(typing.NamedTuple):
    image: bytes | np.ndarray  # an encoded file, or uint8 [H, W, 3]
    # the class; float32 [C], those that it has or numbers; or the class of each pixel: an
    # annotation as `label_maps.decode` takes it
    label: int | bytes | np.ndarray


class Source(typing.Protocol):
    """A list of examples; `read` and `name` are called from many threads."""

    class_names: tuple[str, ...]  # label -> name; () where there are no classes
    # sha256 of what the list holds: resuming on another list would not be resuming
    fingerprint: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where example `index` is stored, for messages."""

    def read(self, index: int) -> Example:
        """Example `index`. Raises OSError where it cannot be read."""

    def label(self, index: int) -> int | np.ndarray:
        """That of example `index`, at less cost than `read` if possible; no label map."""

    def read_many(self, start: int, stop: int) -> list[Example | OSError]:
        """Examples `start` .. `stop` - 1, with an OSError in the place of each that cannot be read:
        for stored data, read in one go."""


def check_label(source: Source, index: int, label: int) -> None:
    """Raises RequestError where example `index` has a label that no class has.

    Without classes every label is 0.
    """
    count = len(source.class_names)
    check(
        0 <= label < max(1, count),
        f'{source.name(index)} has the label {label}, but there are {count} classes, 0 to '
        f'{count - 1}: repair the data set.',
    )


def label_shape(source: Source) -> tuple[int, ...]:
    """() where an example has one class, (C,) where it has some of C, or C numbers."""
    return getattr(source, 'label_shape', ())


def together(source: Source) -> int:
    """How many examples are read for the sake of one, where they are not read in order."""
    return getattr(source, 'together', 1)


def or_error(read, *arguments) -> Example | OSError:
    """What `read` gives, or the OSError that it raises."""
    try:
        return read(*arguments)
    except OSError as error:
        return error
