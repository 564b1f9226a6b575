"""Says what a file of BEiT weights is: dialect, architecture, classes, parameters, number formats,
and anything that is wrong with it."""

import jax

from beit_jax.models.architecture import in_words
from beit_jax.tools import arguments
from beit_jax.weights.checkpoint import is_checkpoint
from beit_jax.weights.models import load_model
from beit_jax.weights.torch_models import Examination, check_problems, examine

DIALECTS = {'unilm': "the official code's", 'timm': "timm's", 'huggingface': "Hugging Face's"}


def summary(found: Examination) -> list[str]:
    """Lines for a person."""
    released = found.source.released
    lines = _lines(
        f'{found.source.path}: {DIALECTS[found.dialect]} names',
        found.tensors.values(),
        found.architecture,
        found.classes,
    )
    if released:
        lines.append(
            f'named as one of the released weights: BEiT-{released.size} at {released.image_size} '
            'pixels'
            + (f', {released.num_classes} classes' if released.num_classes else ', pre-trained')
            + (f'; published top-1 on ImageNet-1k {released.top1} %' if released.top1 else '')
        )
    return lines + [f'note: {note}' for note in found.notes]


def _lines(title: str, arrays, architecture: dict, classes) -> list[str]:
    arrays = list(arrays)
    lines = [
        f'{title}, {sum(array.size for array in arrays):,} parameters in {len(arrays)} tensors of '
        + ', '.join(sorted({str(array.dtype) for array in arrays}))
    ]
    lines += in_words(architecture) if architecture else []
    return lines + (
        [f'classes: {", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""}']
        if classes
        else []
    )


def run(options) -> None:
    if is_checkpoint(options.input):
        model = load_model(options.input)
        lines = _lines(
            f'{options.input}: a checkpoint of this package',
            jax.tree.leaves(model.params),
            model.architecture,
            model.classes,
        )
        print('\n'.join([*lines, *(f'note: {note}' for note in model.notes)]))
        return
    found = examine(options.input)
    print('\n'.join(summary(found)))
    check_problems(found)


def _arguments():
    parser = arguments.parser(
        'inspect_weights',
        __doc__,
        'python -m beit_jax.tools.inspect_weights beit_base_patch16_224_pt22k.pth',
    )
    parser.add_argument(
        'input',
        metavar='PATH',
        help='a file or folder of weights, a checkpoint or a work directory',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
