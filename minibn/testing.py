"""Checks for people who write a layer: is its backward pass the derivative of its forward pass?"""

import numpy as np


def distinct(rng, shape):
    """Random float64 numbers between -2 and 2, any two of them (and zero) at least 1 / (their count) apart.

    Far enough from each other for central differences: none of ReLU's and max-pooling's kinks, nor a set of nearly equal
    numbers for a normalisation, lies within a step of them.
    """
    count = int(np.prod(shape))
    return ((rng.permutation(count) + 0.5) * 4 / count - 2 + 0.25 / count).reshape(shape)


def check_layer(module, x, *, rng, tolerance=1e-6):
    """Compare `module.backward` with central differences of `module.forward`, in x and in every parameter, and check that it
    adds to gradients.

    For a random dy and L = Σ dy · forward(x), the derivative of L in each single number is measured by the five-point rule
        L' ≈ (8 (L(+h) - L(-h)) - (L(+2h) - L(-2h))) / 12 h,    h = 1e-5.
    The error is |measured - backward| / max(|backward|, |dy| / 1000), norms over an array.

    Args:
        module: a module of float64 parameters.
        x: float64 input of NumPy, such as `distinct` makes.
        rng: numpy.random.Generator for dy.

    Returns:
        The largest error, a float.

    Raises:
        AssertionError: the error is above `tolerance`, or a gradient was replaced; the message names the array.
    """
    x = x.copy()
    module.zero_grad()
    y = module(x)
    dy = rng.standard_normal(y.shape)
    arrays = {"the input": (x, module.backward(dy))}
    arrays |= {name: (parameter.data, parameter.grad.copy()) for name, parameter in module.named_parameters()}
    module(x)
    module.backward(dy)
    for name, parameter in module.named_parameters():
        assert np.array_equal(parameter.grad, 2 * arrays[name][1]), f"{module}: backward must add to {name}.grad, not replace it"
    worst = 0.0
    for name, (array, gradient) in arrays.items():
        measured = _differences(lambda: float(np.sum(dy * module(x))), array)
        error = np.linalg.norm(measured - gradient) / max(np.linalg.norm(gradient), np.linalg.norm(dy) / 1000)
        assert error <= tolerance, (f"{module}: backward's gradient in {name} is off by {error:.1e} (tolerance "
                                    f"{tolerance:.0e}) from central differences\n{gradient}\ninstead of\n{measured}")
        worst = max(worst, error)
    return worst


def _differences(f, array, h=1e-5):
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
