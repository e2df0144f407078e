"""Linear: a matrix product and a bias."""

import math

import numpy as np
from numpy.random import Generator

from minibn import kernels
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
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    return (rng.standard_normal(shape) * math.sqrt(2 / fan_in)).astype(dtype)


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
        ValueError: the input is not (N, …, in), or a size is below 1.
        TypeError: the input's dtype is not the weight's.
        RuntimeError: backward before forward.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rng: Generator, dtype: str = "float32") -> None:
        if min(in_features, out_features) < 1:
            raise ValueError(f"Linear needs in_features and out_features above 0, got {in_features} and {out_features}")
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
