"""What a program that JAX has traced consists of, before any compiler: its equations, their
products' arithmetic, its Pallas kernels."""

from collections.abc import Iterator
import math

import jax


def equations(jaxpr, times: int = 1) -> Iterator[tuple]:
    """(equation, how often it runs) for all that have none inside them, and for Pallas kernels; the
    body of a while loop counts once."""
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        kind, params = equation.primitive.name, equation.params
        inner = [] if kind == 'pallas_call' else list(_inside(params.values()))
        if not inner:
            yield equation, times
        for each in inner:
            yield from equations(each, times * params['length'] if kind == 'scan' else times)


def _inside(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _inside(value)
        elif hasattr(getattr(value, 'jaxpr', value), 'eqns'):
            yield value


def product_flops(function, *arguments) -> int:
    """Floating-point operations of the matrix products and convolutions of function(*arguments); a
    multiplication and an addition are two."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return sum(times * _flops(equation) for equation, times in equations(jaxpr))


def _flops(equation) -> int:
    kind, numbers = equation.primitive.name, equation.params.get('dimension_numbers')
    if kind == 'dot_general':
        (contracted, _), _ = numbers
        left = equation.invars[0].aval.shape
        summed = math.prod(left[axis] for axis in contracted)
    elif kind == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        summed = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    else:
        return 0
    return 2 * math.prod(equation.outvars[0].aval.shape) * summed
