"""Linear: a matrix product and a bias."""

import math

import numpy as np
from numpy.random import Generator

from minibn import arguments, kernels
from minibn.backend import Array, array_namespace
from minibn.degree import Degree
from minibn.nn.module import Module, Parameter


def kaiming_normal(rng: Generator, shape: tuple[int, ...], fan_in: int, dtype: str) -> np.ndarray:
    """Weights from `N(0, 2 / fan_in)`, which keeps the mean square of ReLU networks' activations from layer to layer.

    He et al., *Delving Deep into Rectifiers*, ICCV 2015, equation 10. Drawn in float64 whatever the
    dtype, so one seed gives the same start in float32 and float64.

    Args:
        rng: numpy.random.Generator.
        shape: shape of the weight.
        fan_in: number of inputs that one output sums over.
        dtype: "float32" or "float64".

    Raises:
        TypeError: rng is no numpy.random.Generator.
        ValueError: another dtype.
    """
    return (normal(rng, shape, dtype) * math.sqrt(2 / fan_in)).astype(dtype)


def normal(rng: Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers from N(0, 1), in float64. Arguments and errors are those of `kaiming_normal`; `dtype` is only checked."""
    arguments.generator(rng)
    arguments.dtype(dtype)
    return rng.standard_normal(shape)


class Linear(Module):
    """Affine map `y = x W + b`.

    Shapes: x (N, …, in), W (in, out), b (out,), y (N, …, out). PyTorch keeps W transposed, as
    (out, in).

    Backward, with dy the gradient of the loss with respect to y:
        dW = xᵀ dy        db = Σ_n dy_n        dx = dy Wᵀ
    where all rows x (in,), such as the positions of sequences (N, T, in), count as one batch.

    Args:
        in_features, out_features: sizes of an input and an output row.
        bias: whether to add b, which starts at zero.
        rng: numpy.random.Generator for the weight (`kaiming_normal`).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, …, in), or an argument is out of range.
        TypeError: the input's dtype is not the weight's, or rng is no generator.
        RuntimeError: backward before forward.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rng: Generator, dtype: str = "float32") -> None:
        in_features, out_features = arguments.sizes("Linear", in_features=in_features, out_features=out_features)
        arguments.yes_or_no(bias=bias)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(kaiming_normal(rng, (in_features, out_features), in_features, dtype))
        self.bias = Parameter(self.weight.data[0] * 0) if bias else None

    def forward(self, x: Array) -> Array:
        """(N, …, in) -> (N, …, out)."""
        self._check_input(x, ("N", *("…",) * (x.ndim - 2), self.in_features), self.weight.data)
        xp = array_namespace(x)
        rows = xp.reshape(x, (-1, self.in_features))
        y = kernels.of(x).affine(rows, self.weight.data, None if self.bias is None else self.bias.data)
        return self.keep(xp.reshape(y, (*x.shape[:-1], self.out_features)), rows)

    def backward(self, dy: Array) -> Array:
        """(N, …, out) -> (N, …, in)."""
        (rows,) = self.kept(dy)
        xp = array_namespace(dy)
        dx, dw, db = kernels.of(dy).affine_backward(xp.reshape(dy, (-1, self.out_features)), rows, self.weight.data)
        self.weight.grad += dw
        if self.bias is not None:
            self.bias.grad += db
        return xp.reshape(dx, (*dy.shape[:-1], self.in_features))

    def degree(self, x: Degree) -> Degree:
        """Degree d -> d + a_W, the bias having a degree of its own."""
        return x.times(self.weight).plus(self.bias)

    def __repr__(self):
        return f"Linear({self.in_features}, {self.out_features}, bias={self.bias is not None})"
