"""RMSNorm: each position divided by its root mean square."""

import numpy as np

from minibn import arguments, kernels
from minibn.backend import Array
from minibn.degree import Degree
from minibn.nn.module import Module, Parameter


class RMSNorm(Module):
    """Divide each row by its root mean square (Zhang & Sennrich, 2019): over the last axis, without subtracting a mean.

        x̂ = x / √(Σ x² / C + ε)        y = g x̂
        dg = Σ dy x̂                    dx = (dx̂ - x̂ Σ dx̂ x̂ / C) / √(Σ x² / C + ε),   dx̂ = g dy

    where the sum of dg runs over all rows, the others over the C numbers of a row. ε = 0 is legal,
    and makes it exactly scale-invariant. A row of zeros then gives 0. In float32, the root may lie
    between about 1e-19 and 1e19.

    Shapes: x, y (N, …, C); weight g (C,).

    Args:
        num_features: C.
        eps: ε, at least 0.
        affine: whether to have the gain g, which starts at 1.
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, …, C), or a number is out of range.
        TypeError: the input's dtype is not the gain's.
        RuntimeError: backward before forward.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, *, dtype: str = "float32") -> None:
        self.num_features, self.eps = arguments.of_norm("RMSNorm", num_features, eps, affine, dtype)
        self.weight = Parameter(np.ones(self.num_features, dtype)) if affine else None

    def forward(self, x: Array) -> Array:
        """(N, …, C) -> the same shape."""
        gain = None if self.weight is None else self.weight.data
        self._check_input(x, ("N", *("…",) * (x.ndim - 2), self.num_features), gain)
        y, inverse = kernels.of(x).rms_normalise(x, gain, self.eps)
        return self.keep(y, x, inverse)

    def backward(self, dy: Array) -> Array:
        """(N, …, C) -> the same shape."""
        x, inverse = self.kept(dy)
        dx, dgain = kernels.of(dy).rms_normalise_backward(dy, x, inverse, None if self.weight is None else self.weight.data)
        if self.weight is not None:
            self.weight.grad += dgain
        return dx

    def degree(self, x: Degree) -> Degree:
        """0, whatever it was, if biases scale with the rest; then g."""
        return x.normalised(self, mean=False).times(self.weight)

    def __repr__(self):
        return f"RMSNorm({self.num_features}, eps={self.eps}, affine={self.weight is not None})"
