"""Says what a file of BEiT weights is: dialect, architecture, classes, parameters, number formats, and anything that is wrong with it."""
from collections import Counter

import jax

from beit_jax.config import check
from beit_jax.models.architecture import in_words
from beit_jax.tools import arguments
from beit_jax.weights.checkpoint import is_checkpoint
from beit_jax.weights.models import load_model
from beit_jax.weights.torch_models import Examination, examine

DIALECTS = {'unilm': "the official code's", 'timm': "timm's", 'huggingface': "Hugging Face's"}


def summary(found: Examination) -> list[str]:
    """Lines for a person."""
    kinds = Counter(str(array.dtype) for array in found.tensors.values())
    count = sum(array.size for array in found.tensors.values())
    released = found.source.released
    lines = [f'{found.source.path}: {DIALECTS[found.dialect]} names, {count:,} parameters in {len(found.tensors)} tensors of '
             f'{", ".join(sorted(kinds))}']
    lines += in_words(found.architecture) if found.architecture else []
    if found.classes:
        lines.append(f'classes: {", ".join(found.classes[:5])}{", ..." if len(found.classes) > 5 else ""}')
    if released:
        lines.append(f'named as one of the released weights: BEiT-{released.size} at {released.image_size} pixels'
                     + (f', {released.num_classes} classes' if released.num_classes else ', pre-trained')
                     + (f'; published top-1 on ImageNet-1k {released.top1} %' if released.top1 else ''))
    return lines + [f'note: {note}' for note in found.notes]


def run(options) -> None:
    if is_checkpoint(options.input):
        model = load_model(options.input)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        print('\n'.join([f'{options.input}: a checkpoint of this package, {count:,} parameters', *in_words(model.architecture)]))
        return
    found = examine(options.input)
    print('\n'.join(summary(found)))
    check(not found.problems, f'{len(found.problems)} things are wrong with it:\n  ' + '\n  '.join(found.problems))


def _arguments():
    parser = arguments.parser('inspect_weights', __doc__, 'python -m beit_jax.tools.inspect_weights beit_base_patch16_224_pt22k.pth')
    parser.add_argument('input', metavar='PATH', help='a file or folder of weights, a checkpoint or a work directory')
    return parser


if __name__ == '__main__':
    arguments.main(run, _arguments())
