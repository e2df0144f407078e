"""ReLU."""

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
        y = kernels.of(x).relu(x)
        return self.keep(y, y)

    def backward(self, dy: Array) -> Array:
        """The same shape as dy."""
        (y,) = self.kept(dy)
        return kernels.of(dy).relu_backward(dy, y)

    def degree(self, x: Degree) -> Degree:
        """Homogeneous, if biases scale with the rest."""
        return x.settled(self)
