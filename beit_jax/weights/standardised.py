"""Heads of regression, whose outputs are (number - mean) / std: what `targets` of an architecture
says, {'mean', 'std'}, a number an output; of one that says nothing the outputs are the numbers."""

import numpy as np


def statistics(architecture: dict) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std), float32 [C]: an output times std, plus mean, is the number."""
    count, targets = architecture['num_classes'], architecture.get('targets', {})
    return (
        np.asarray(targets.get('mean', (0.0,) * count), np.float32),
        np.asarray(targets.get('std', (1.0,) * count), np.float32),
    )


def restandardised(head: dict, architecture: dict, wanted: dict) -> dict:
    """The parameters of a head for the statistics of another architecture: the same numbers."""
    (mean, std), (other_mean, other_std) = statistics(architecture), statistics(wanted)
    if np.array_equal(mean, other_mean) and np.array_equal(std, other_std):
        return head
    kernel, bias = head['classes']['kernel'], head['classes']['bias']
    scale = std / other_std
    offset = (mean - other_mean) / other_std
    return head | {'classes': {'kernel': kernel * scale, 'bias': bias * scale + offset}}


def of_plain_numbers(params: dict, architecture: dict) -> tuple[dict, dict]:
    """(parameters, architecture) of the same model without statistics, as PyTorch's have none."""
    plain = {name: said for name, said in architecture.items() if name != 'targets'}
    return params | {'head': restandardised(params['head'], architecture, plain)}, plain
