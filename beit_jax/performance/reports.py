"""What `plan` and the benchmarks found, as text for a person. Each takes the dict that is also
written as JSON."""

import os

SPREAD = ('median', 'min', 'max')


def of_masks(result: dict) -> str:
    device = f'jax {result["jax"]} on {result["device"]}'
    lines = [
        f'{result["machine"]}, {result["cores"]} core; {device}; {result["repeats"]} repeats',
        f'{"masks/s":10}{"median":>10}{"min":>10}{"max":>10}{"share of a step":>18}',
    ]
    for name, speed in result['masks_per_second'].items():
        speeds = ''.join(f'{speed[key]:10,.0f}' for key in SPREAD)
        lines.append(f'{name:10}{speeds}{result["share_of_step"][name]:18.4%}')
    step = f'{result["step_seconds_per_image"]:.2f} s an image'
    lines.append(f'ratio {result["ratio"]:.2f}; BEiT-B forward and backward, float32: {step}')
    return '\n'.join(lines)


def of_input(result: dict) -> str:
    files = f'{result["images"]} files of {result["bytes_per_image"] / 1e3:.0f} KB'
    lines = [
        f'{result["machine"]}, {result["cores"]} core(s); {result["task"]}, views '
        f'{", ".join(result["views"])}; {files}; {result["repeats"]} repeats; the peer works '
        f'{result["peer"]}',
        f'{"milliseconds of a core an image":32}{"median":>8}{"min":>8}{"max":>8}',
    ]
    for name, spread in result['core_milliseconds'].items():
        times = ''.join(f'{spread[key]:8.3f}' for key in SPREAD if key in spread)
        lines.append(f'{name:32}{times}')
    rates = result['images_per_second_and_core']
    for name, ratio in result['ratio'].items():
        ours, theirs = rates[name], rates[f'{name}, its peer']
        lines.append(
            f'{name}: {ours:,.0f} images/s and core, its peer {theirs:,.0f}; ratio {ratio:.2f}'
        )
    errors = result['grey_levels_from_pillow']
    differences = ', '.join(f'{size} pixels {error:.3f}' for size, error in errors.items())
    lines.append(f'mean difference from Pillow, grey levels: {differences}')
    return '\n'.join(lines)


def of_step(result: dict) -> str:
    product = result['product_flops_per_second'] / 1e12
    lines = [
        f'{result["machine"]}, {os.cpu_count()} cores; {result["devices"]} x {result["device"]}; '
        f'jax {result["jax"]}; {result["compute_dtype"]}, the tokenizer in '
        f'{result["tokenizer_precision"]}, batch {result["batch_size"]}; {result["repeats"]} '
        f'repeats; a matrix product makes {product:.3f} TFLOP/s',
        f'{"":54}{"median s":>10}{"min":>8}{"max":>8}{"images/s":>10}{"utilisation":>13}',
    ]
    for row in result['rows']:
        median, least, most = (row['seconds'][key] for key in SPREAD)
        lines.append(
            f'{row["name"] + ": " + row["what"]:54}{median:10.3f}{least:8.3f}{most:8.3f}'
            f'{row["images_per_second"]:10,.1f}{row["utilisation"]:13.1%}'
        )
    for what, ratio in result['ratio'].items():
        lines.append(f'{what}: the best of PyTorch takes {ratio:.2f} times as long')
    compiling = [f'{name} {seconds:.0f}' for name, seconds in result['compile_seconds'].items()]
    memory = [f'{name} {size / 1e9:.2f} GB' for name, size in result['peak_memory'].items() if size]
    lines.append(f'seconds to compile: {", ".join(compiling)}; memory: {", ".join(memory)}')
    return '\n'.join(lines)


def of_plan(result: dict) -> str:
    mesh = ' x '.join(f'{axis} {size}' for axis, size in result['mesh'].items())
    device, chips = result['device'], result['chips']
    lines = [
        f'{result["task"]}, batch {result["batch_size"]} on {result["topology"]}: {chips} '
        f'{device}{"s" * (chips > 1)}, {result["images_per_chip"]} images each; mesh {mesh}; jax '
        f'{result["jax"]}',
        result['figures'],
    ]
    for name, part in result['programs'].items():
        lines += ['', *_of_program(name, part, result['unit'])]
    transfers = (
        f'; transfers between {device}s take {1e3 * result["transfer_seconds"]:.1f} ms of a step '
        f'{result["transfers"]}'
    )
    added = f'{result["workspace"] / 1e9:.2f} GB'
    lines += [
        '',
        f'start: {result["initial_state"] / 1e9:.2f} GB of state, made in '
        f'{result["initial_memory"] / 1e9:.2f} GB' + transfers * (chips > 1),
        *([f"added to what XLA counts: {added} for cuDNN's attention"] * bool(result['workspace'])),
        f'memory {result["memory"] / 1e9:.2f} of {result["memory_limit"] / 1e9:.2f} GB; a step '
        f'{1e3 * result["step_seconds"]:.1f} ms; {result["images_per_second"]:,.0f} images/s; '
        f'utilisation {result["utilisation"]:.1%}',
    ]
    return '\n'.join(lines)


def _of_program(name: str, part: dict, unit: str) -> list[str]:
    cost = part[unit]
    lines = [
        f'{name}: {cost:,} {unit}; {part["flops"] / 1e12:.2f} TFLOP; arguments '
        f'{part["arguments"] / 1e9:.2f} GB, temporaries {part["temporaries"] / 1e9:.2f} GB; '
        f'compiled in {part["compile_seconds"]:.0f} s'
    ]
    for kind, share in part['kinds'].items():
        lines.append(f'  {share / cost:6.1%} {share:>13,.0f}  {part["counts"][kind]:,} x {kind}')
    lines += ['  of which'] * bool(part['kinds'])
    for operation, share in part['operations'].items():
        lines.append(f'  {share / cost:6.1%} {share:>13,.0f}  {operation[-100:]}')
    for kind, size in part['received'].items():
        lines.append(f'  received by {kind}: {size / 1e6:.1f} MB')
    return lines
