"""Checks for people who write a layer: `check_layer` is all of them in one call.

A new layer needs three methods to be trained, converted and moved to a GPU like the layers of
`minibn.nn`:

    >>> from minibn import nn
    >>> from minibn.backend import array_namespace
    >>> class Scale(nn.Module):
    ...     '''`y = a x`, one factor per channel; backward: `da = Σ dy x`, `dx = a dy`.'''
    ...
    ...     def __init__(self, channels):
    ...         self.weight = nn.Parameter(np.ones(channels))
    ...
    ...     def forward(self, x):
    ...         return self.keep(x * self.weight.data, x)
    ...
    ...     def backward(self, dy):
    ...         (x,) = self.kept(dy)
    ...         axes = tuple(range(x.ndim - 1))
    ...         self.weight.grad += array_namespace(x).sum(dy * x, axis=axes)
    ...         return dy * self.weight.data
    ...
    ...     def degree(self, x):
    ...         return x.times(self.weight)
    >>> rng = np.random.default_rng(0)
    >>> check_layer(Scale(3), distinct(rng, (4, 5, 5, 3)), rng=rng) < 1e-9
    True

To run on every array library, a layer uses functions of its input's library, such as
`array_namespace(x).sum` and not `np.sum`, and only functions of the array API standard.
"""

import numpy as np
from numpy.random import Generator

from minibn.nn import Module
from minibn.testing.degree import check_degree
from minibn.testing.gradient import check_gradient, distinct
from minibn.testing.libraries import check_libraries

__all__ = ["check_degree", "check_gradient", "check_layer", "check_libraries", "distinct"]


def check_layer(module: Module, x: np.ndarray, *, rng: Generator, tolerance: float = 1e-6) -> float:
    """`check_gradient`, `check_degree` and `check_libraries`.

    Args:
        module: a module of float64 parameters.
        x: float64 input (N, …, C) of NumPy, such as `distinct` makes; or integers, as an
            `Embedding` takes.
        rng: numpy.random.Generator for what the checks draw.
        tolerance: of the gradient.

    Returns:
        The largest error of a gradient, a float.

    Raises:
        AssertionError: a check failed; the message says what is wrong.
        TypeError: the module does not define `degree`.
    """
    worst = check_gradient(module, x, rng=rng, tolerance=tolerance)
    check_degree(module, x, rng=rng)
    check_libraries(module, x, rng=rng)
    return worst
