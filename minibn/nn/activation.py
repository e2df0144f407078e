"""ReLU."""

import math

from minibn.backend import array_namespace, device, map_chunks
from minibn.nn.module import Module


class ReLU(Module):
    """`y = max(x, 0)`; homogeneous: `relu(c x) = c relu(x)` for c > 0.

    Backward: `dx = dy` where x > 0, else 0 (so 0 at x = 0, as in PyTorch). Any shape.
    """

    def forward(self, x):
        """The same shape as x."""
        xp = array_namespace(x)
        y = xp.empty(x.shape, dtype=x.dtype, device=device(x))

        def rectify(s):
            y[s, ...] = xp.maximum(x[s, ...], 0)

        map_chunks(rectify, x, math.prod(x.shape[1:]))
        self._keep(y)
        return y

    def backward(self, dy):
        """The same shape as dy."""
        (y,) = self._take(dy, self._kept and self._kept[0].shape)
        xp = array_namespace(dy)
        dx = xp.empty(dy.shape, dtype=dy.dtype, device=device(dy))

        def differentiate(s):
            dx[s, ...] = dy[s, ...] * xp.astype(y[s, ...] > 0, dy.dtype)

        map_chunks(differentiate, dy, math.prod(dy.shape[1:]))
        return dx

    def degree(self, x):
        """Homogeneous, if biases scale with the rest."""
        return x.settled(self)
