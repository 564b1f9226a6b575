"""What `gpu_benchmark` found, as tables in the form of docs/benchmarks.md."""

import statistics

from beit_jax.performance.step_benchmark import GIVEN, WHOLE

_SAME = 'same bits'


def report(result: dict) -> str:
    """The Markdown of `gpu.json`; parts that have not run are named at the end."""
    parts = {name: part['found'] for name, part in result['parts'].items()}
    device = next((found['device'] for found in parts.values() if 'device' in found), 'no device')
    lines = [f'{device}, {result["machine"]}' + '; a rehearsal' * result['rehearsal'], '']
    for name, found in parts.items():
        if 'seconds' in found:
            lines += _race(name, found)
        elif 'errors' in found:
            lines += _numerics(found['errors'])
        elif 'tokenizers' in found:
            lines += _tokenizers(found)
        elif found.get('milliseconds'):
            lines += _profile(found)
    lines += _bits({name: found for name, found in parts.items() if name.startswith(_SAME)})
    for name, part in result['parts'].items():
        ended = 'was ended by its time' if part['status'] is None else f'status {part["status"]}'
        lines += [f'{name}: {ended} after {part["seconds"]} s'] * (not part['whole'])
        left_out = part['found'].get('without a GPU')
        lines += [f'{name}: without a GPU, so without {left_out}'] * bool(left_out)
    return '\n'.join(lines) + '\n'


def _race(name, found):
    product, count = found['product'], found['batch_size']
    lines = [
        f'**{name}**, {count} images, the tokenizer in {found["tokenizer_precision"]}; a matrix '
        f'product makes {product / 1e12:.0f} TFLOP/s',
        '',
        '| | median ms | min | max | images/s | of the product |',
        '|-|-|-|-|-|-|',
    ]
    ours = {name: facts for name, facts in found['facts'].items() if 'flops' in facts}
    flops = next(iter(ours.values()))['flops']
    for what, times in found['seconds'].items():
        median = statistics.median(times)
        told = ' | '.join(f'{1e3 * each:.1f}' for each in (median, min(times), max(times)))
        share = flops[what.rpartition(': ')[2]] / median / product
        lines.append(f'| {what} | {told} | {count / median:,.0f} | {share:.1%} |')
    lines.append('')
    for what in (WHOLE, GIVEN):
        our_times, theirs = (_best(found['seconds'], who, what) for who in ('ours', 'PyTorch'))
        if our_times and theirs:
            pairs = zip(reversed(our_times), reversed(theirs))
            ratio = statistics.median(b / a for a, b in pairs)
            lines.append(
                f"{what}: PyTorch's best takes {ratio:.2f} of our time, in which colours and masks "
                'are drawn besides.'
            )
    for who, facts in ours.items():
        planned, peak = facts['planned'] / 1e9, facts['peak of the process'] / 1e9
        lines.append(
            f'{who}: {planned:.2f} GB by the compiler, {peak:.2f} GB the peak of the process until '
            f'then; compiled in {facts["compile_seconds"]:.0f} s.'
        )
    return [*lines, '']


def _best(seconds, who, what):
    """The times of the fastest, newest last."""
    times = [ts for name, ts in seconds.items() if name.startswith(who) and name.endswith(what)]
    return min(times, key=statistics.median, default=[])


def _tokenizers(found):
    lines = [
        f"**tokenizer**, DALL-E's alone, {found['batch_size']} images, random weights",
        '',
        "| | our median ms | PyTorch's | ours: ids as in float32 |",
        '|-|-|-|-|',
    ]
    for precision, one in found['tokenizers'].items():
        ours, theirs = (1e3 * statistics.median(times) for times in one['seconds'].values())
        lines.append(f'| {precision} | {ours:.1f} | {theirs:.1f} | {one["as in float32"]:.3%} |')
    return [*lines, '']


def _profile(found):
    lines = [f'**profile**, {found["sum"]:.1f} ms a step in all', '', '| operation | ms |', '|-|-|']
    lines += [f'| `{name[:70]}` | {ms:.3f} |' for name, ms in found['milliseconds'].items()]
    return [*lines, '']


def _numerics(all_errors):
    lines = ['**numerics**: the difference from plain float32 over its norm', '']
    for attention, errors in all_errors.items():
        told = ', '.join(f'{part} {error:.2e}' for part, error in errors.items())
        lines.append(f'- {attention}: {told}')
    return [*lines, '']


def _bits(parts):
    """Whether five steps ended in the same bits, within a process and in two."""
    lines = []
    for name in (_SAME, f'{_SAME}, deterministic'):
        one, two = parts.get(name, {}), parts.get(f'{name}, again', {})
        for what, pair in (
            ('twice in a process', (one.get('first'), one.get('second'))),
            ('in two processes', (one.get('first'), two.get('first'))),
        ):
            if all(pair):
                lines.append(f'- {name}, {what}: {"yes" if pair[0] == pair[1] else "no"}')
    return [*lines, ''] if lines else []
