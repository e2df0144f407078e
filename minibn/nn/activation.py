"""ReLU."""

from minibn.backend import Array, array_namespace, elementwise, into
from minibn.degree import Degree
from minibn.nn.module import Module


class ReLU(Module):
    """`y = max(x, 0)`; homogeneous: `relu(c x) = c relu(x)` for c > 0.

    Backward: `dx = dy` where x > 0, else 0 (so 0 at x = 0, as in PyTorch). Any shape.
    """

    def forward(self, x: Array) -> Array:
        """The same shape as x."""
        xp = array_namespace(x)
        y = elementwise(lambda out, x: into(out, xp.maximum, x, xp.zeros_like(x)), x)
        self._keep(y)
        return y

    def backward(self, dy: Array) -> Array:
        """The same shape as dy."""
        (y,) = self._take(dy, self._kept and self._kept[0].shape)
        xp = array_namespace(dy)
        return elementwise(lambda out, dy, y: into(out, xp.multiply, dy, xp.astype(y > 0, dy.dtype)), dy, y)

    def degree(self, x: Degree) -> Degree:
        """Homogeneous, if biases scale with the rest."""
        return x.settled(self)
