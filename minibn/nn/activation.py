"""Activations: ReLU, Square, GELU and SiLU, of any shape and a floating dtype."""

from minibn import kernels
from minibn.backend import Array
from minibn.degree import Degree
from minibn.nn.module import Module


class ReLU(Module):
    """`y = max(x, 0)`; homogeneous: `relu(c x) = c relu(x)` for c > 0.

    Backward: `dx = dy` where x > 0, else 0 (so 0 at x = 0, as in PyTorch). Any shape.
    """

    def forward(self, x: Array) -> Array:
        """The same shape as x."""
        self._check_floating(x)
        y = kernels.of(x).relu(x)
        return self.keep(y, y)

    def backward(self, dy: Array) -> Array:
        """The same shape as dy."""
        (y,) = self.kept(dy)
        return kernels.of(dy).relu_backward(dy, y)

    def degree(self, x: Degree) -> Degree:
        """Homogeneous, if biases scale with the rest."""
        return x.settled(self)


class Square(Module):
    """`y = x²`; after a ReLU it is the ReLU² of So et al., *Primer*, NeurIPS 2021.

    Backward: `dx = 2 x dy`.
    """

    def forward(self, x: Array) -> Array:
        """The same shape as x."""
        self._check_floating(x)
        return self.keep(kernels.of(x).square(x), x)

    def backward(self, dy: Array) -> Array:
        """The same shape as dy."""
        (x,) = self.kept(dy)
        return kernels.of(dy).square_backward(dy, x)

    def degree(self, x: Degree) -> Degree:
        """Twice that of x, if biases scale with the rest."""
        return x.power(2, self)


class GELU(Module):
    """`y = x (1 + tanh u) / 2`, `u = √(2/π) (x + 0.044715 x³)` (Hendrycks & Gimpel, 2016), which is not homogeneous.

    It is the form with tanh that GPT-2 has, PyTorch's `GELU(approximate="tanh")`. The exact one,
    `x Φ(x)` with Φ the normal distribution, needs an error function that the array API standard
    lacks; the two differ by up to 5e-4.

    Backward: `dx = dy ((1 + t) + x (1 - t²) √(2/π) (1 + 0.134145 x²)) / 2`, `t = tanh u`.
    """

    def forward(self, x: Array) -> Array:
        """The same shape as x."""
        self._check_floating(x)
        return self.keep(kernels.of(x).gelu(x), x)

    def backward(self, dy: Array) -> Array:
        """The same shape as dy."""
        (x,) = self.kept(dy)
        return kernels.of(dy).gelu_backward(dy, x)

    def degree(self, x: Degree) -> Degree:
        """0, and x must have it too."""
        return x.fixed(self, "GELU")


class SiLU(Module):
    """`y = x σ(x)`, `σ(x) = 1 / (1 + exp(-x))` (Elfwing, Uchibe & Doya, 2018), which is not homogeneous.

    Backward: `dx = dy σ(x) (1 + x (1 - σ(x)))`.
    """

    def forward(self, x: Array) -> Array:
        """The same shape as x."""
        self._check_floating(x)
        return self.keep(kernels.of(x).silu(x), x)

    def backward(self, dy: Array) -> Array:
        """The same shape as dy."""
        (x,) = self.kept(dy)
        return kernels.of(dy).silu_backward(dy, x)

    def degree(self, x: Degree) -> Degree:
        """0, and x must have it too."""
        return x.fixed(self, "SiLU")
