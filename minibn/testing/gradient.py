"""`check_gradient`: a layer's backward pass against central differences of its forward pass."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from minibn import arguments
from minibn.backend import is_floating
from minibn.nn import Module


def distinct(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random float64 numbers between -2 and 2, any two of them (and zero) at least 1 / (their count) apart.

    That is far enough for central differences: none of their steps crosses a kink of ReLU or
    max-pooling, and no set of numbers is so nearly equal that a normalisation divides by rounding
    errors.

    Args:
        rng: numpy.random.Generator.
        shape: of the result.
    """
    count = int(np.prod(shape))
    return ((rng.permutation(count) + 0.5) * 4 / count - 2 + 0.25 / count).reshape(shape)


def check_gradient(module: Module, x: np.ndarray, *, rng: Generator, tolerance: float = 1e-6) -> float:
    """Compare `module.backward` with central differences of `module.forward`, in x and in every parameter.

    For a random dy and L = Σ dy · forward(x), the derivative of L in each single number is measured
    by the five-point rule

        L' ≈ (8 (L(+h) - L(-h)) - (L(+2h) - L(-2h))) / 12 h,    h = 1e-5.

    The error is |measured - backward| / max(|backward|, |dy| / 1000), with norms over an array.
    It is also checked that backward adds to each gradient, and does not replace it.

    Args:
        module: a module of float64 parameters.
        x: float64 input (N, …, C) of NumPy, such as `distinct` makes, or integers, which have no
            gradient. It stays as it is.
        rng: numpy.random.Generator for dy.
        tolerance: of the error.

    Returns:
        The largest error, a float.

    Raises:
        AssertionError: the error is above `tolerance`, or a gradient was replaced; the message
            names the array.
    """
    arguments.of_kind("module", module, Module, "an nn.Module")
    arguments.array("x", x)
    x = x.copy()
    module.zero_grad()
    y = module(x)
    dy = rng.standard_normal(y.shape)
    dx = module.backward(dy)
    arrays = {"the input": (x, dx)} if is_floating(x) else {}
    arrays |= {name: (parameter.data, parameter.grad.copy()) for name, parameter in module.named_parameters()}
    module(x)
    module.backward(dy)
    for name, parameter in module.named_parameters():
        twice = 2 * arrays[name][1]  # up to rounding: a parameter at two places adds in another order
        assert np.allclose(parameter.grad, twice, rtol=0, atol=1e-12 * np.abs(twice).max(initial=0.0)), (
            f"{module}: backward must add to {name}.grad, not replace it")
    worst = 0.0
    for name, (array, gradient) in arrays.items():
        measured = _differences(lambda: float(np.sum(dy * module(x))), array)
        error = np.linalg.norm(measured - gradient) / max(np.linalg.norm(gradient), np.linalg.norm(dy) / 1000)
        assert error <= tolerance, (f"{module}: backward's gradient in {name} is off by {error:.1e} (tolerance "
                                    f"{tolerance:.0e}) from central differences\n{gradient}\ninstead of\n{measured}")
        worst = max(worst, float(error))
    return worst


def _differences(f: Callable[[], float], array: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """Derivative of f() in each number of `array`, which is changed in place and restored."""
    derivative = np.empty_like(array)
    for i in np.ndindex(array.shape):
        old, values = array[i], []
        for offset in (h, -h, 2 * h, -2 * h):
            array[i] = old + offset
            values.append(f())
        array[i] = old
        derivative[i] = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
    return derivative
