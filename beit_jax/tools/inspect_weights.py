"""Says what a file of BEiT weights is: dialect, architecture, classes, parameters, number formats,
and anything that is wrong with it."""

from collections.abc import Iterable, Sequence

from beit_jax.tools import arguments

DIALECTS = {'unilm': "the official code's", 'timm': "timm's", 'huggingface': "Hugging Face's"}


def summary(found) -> list[str]:
    """Lines for a person of a `weights.pytorch.importer.Examination`."""
    title = f'{found.source.path}: {DIALECTS[found.dialect]} names'
    lines = _lines(title, found.tensors.values(), found.architecture, found.classes)
    released = found.source.released
    if released:
        classes, top1 = released.num_classes, released.top1
        lines.append(
            f'named as one of the released weights: BEiT{"v2" * released.v2}-{released.size} at '
            f'{released.image_size} pixels'
            + (f', {classes} classes' if classes else ', pre-trained')
            + (f'; published top-1 on ImageNet-1k {top1} %' if top1 else '')
        )
    return lines + [f'note: {note}' for note in found.notes]


def _lines(title: str, arrays: Iterable, architecture: dict, classes: Sequence[str]) -> list[str]:
    from beit_jax.models.architecture import in_words

    arrays = list(arrays)
    count = sum(array.size for array in arrays)
    dtypes = ', '.join(sorted({str(array.dtype) for array in arrays}))
    lines = [f'{title}, {count:,} parameters in {len(arrays)} tensors of {dtypes}']
    if architecture:
        lines += in_words(architecture)
    if classes:
        lines.append(f'classes: {", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""}')
    return lines


def run(options) -> None:
    import jax

    from beit_jax.weights.checkpoint import is_checkpoint
    from beit_jax.weights.hub import local
    from beit_jax.weights.models import load_model
    from beit_jax.weights.pytorch.importer import check_problems, examine

    place = local(options.input)
    if not is_checkpoint(place):
        found = examine(options.input, found=place)
        print('\n'.join(summary(found)))
        check_problems(found)
        return
    model = load_model(options.input)
    title, arrays = f'{options.input}: a checkpoint of this package', jax.tree.leaves(model.params)
    lines = _lines(title, arrays, model.architecture, model.classes)
    print('\n'.join(lines + [f'note: {note}' for note in model.notes]))


def _arguments():
    parser = arguments.parser(
        'inspect_weights',
        __doc__,
        'python -m beit_jax.tools.inspect_weights beit_base_patch16_224_pt22k.pth',
    )
    parser.add_argument(
        'input',
        type=arguments.path,
        metavar='PATH',
        help='a file or folder of weights, a checkpoint, a work directory, OWNER/NAME on the hub',
    )
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
