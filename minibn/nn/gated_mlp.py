"""GatedMLP: the feed-forward layer of today's transformers."""

from numpy.random import Generator

from minibn import arguments, kernels
from minibn.backend import Array
from minibn.degree import Degree
from minibn.nn.linear import Linear
from minibn.nn.module import Module


class GatedMLP(Module):
    """SwiGLU (Shazeer, 2020): `y = (silu(x W_gate) ⊙ (x W_up)) W_down`, `silu(z) = z / (1 + exp(-z))`.

    Backward, with g = x W_gate, u = x W_up and dh = dy W_downᵀ, then through the two products with
    x:
        du = dh silu(g)        dg = dh u silu'(g)

    Shapes: x, y (N, …, C); W_gate and W_up (C, hidden), W_down (hidden, C); no biases.

    Args:
        num_features: C.
        hidden: the width between the two products. With 8/3 C, the layer has as many weights as a
            plain MLP of 4 C.
        rng: numpy.random.Generator for the weights (`kaiming_normal`).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, …, C), or a size is below 1.
        TypeError: the input's dtype is not the weights'.
        RuntimeError: backward before forward.
    """

    def __init__(self, num_features: int, hidden: int, *, rng: Generator, dtype: str = "float32") -> None:
        num_features, hidden = arguments.sizes("GatedMLP", num_features=num_features, hidden=hidden)
        self.gate, self.up = (Linear(num_features, hidden, bias=False, rng=rng, dtype=dtype) for _ in range(2))
        self.down = Linear(hidden, num_features, bias=False, rng=rng, dtype=dtype)

    def forward(self, x: Array) -> Array:
        """(N, …, C) -> the same shape."""
        gate, up = self.gate(x), self.up(x)
        return self.keep(self.down(kernels.of(x).swiglu(gate, up)), gate, up)

    def backward(self, dy: Array) -> Array:
        """(N, …, C) -> the same shape."""
        gate, up = self.kept(dy)
        kernel = kernels.of(dy)
        dgate, dup = kernel.swiglu_backward(self.down.backward(dy), gate, up)
        return kernel.add(self.gate.backward(dgate), self.up.backward(dup))

    def degree(self, x: Degree) -> Degree:
        """The gate must have degree 0; the product has the degree of `up`."""
        return self.down.degree(self.gate.degree(x).fixed(self, "SiLU").multiplied(self.up.degree(x), self))

    def __repr__(self):
        return f"GatedMLP({self.gate.in_features}, {self.gate.out_features})"
