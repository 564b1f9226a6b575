"""Every metric of a run over its steps, as one figure."""

from collections.abc import Sequence
import math
from pathlib import Path
import sys
import typing

from beit_jax.whole_files import metric_lines

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

# the last three are other units of images_per_second
LEFT_OUT = (
    'step',
    'bad_records',
    'skipped_steps',
    'skipped_in_a_row',
    'step_seconds',
    'images_per_second_per_device',
    'tflops_per_second_per_device',
)
Series = dict[str, tuple[list[int], list[float]]]


def read_metrics(path: Path) -> Series:
    """{metric: (steps, values)} of a metrics.jsonl."""
    series = {}
    rows, others = metric_lines(path)
    if others:
        print(f'{path}: {len(others)} lines are damaged and left out', file=sys.stderr)
    for row in rows:
        for name in row.keys() - set(LEFT_OUT):
            steps, values = series.setdefault(name, ([], []))
            not_finite = row[name] is None
            steps.append(row['step'])
            values.append(math.nan if not_finite else row[name])
    return series


def names_of(series: Series) -> list[str]:
    """The metrics, those of training and of held-out images once."""
    return sorted({name.removeprefix('eval/') for name in series})


def draw(series: Series, reference: Series, names: Sequence[str], columns: int) -> 'Figure':
    """An axes for each name, evaluations as dots, the reference's curves beside them."""
    from matplotlib.figure import Figure  # here and not above: --help answers without it

    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout='constrained')
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, number)
        if name in reference:
            axes.plot(*reference[name], color='lightgrey', linewidth=3, label='reference')
        if name in series:
            axes.plot(*series[name], color='C0')
        if f'eval/{name}' in series:
            axes.plot(*series[f'eval/{name}'], 'o', color='C1', label='held out')
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
        axes.set_title(name.replace('_', ' '))
        axes.set_xlabel('step')
        axes.grid(alpha=0.3)
    return figure
