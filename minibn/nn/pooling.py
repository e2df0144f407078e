"""Pooling over windows of pixels, and Flatten."""

from minibn import arguments, kernels
from minibn.backend import Array, array_namespace
from minibn.degree import Degree
from minibn.nn.module import Module


class Flatten(Module):
    """(N, …) -> (N, product of the rest)."""

    def forward(self, x: Array) -> Array:
        """Reshape; no numbers change."""
        if x.ndim == 0 or 0 in x.shape:
            raise ValueError(f"{self} needs input of shape (N, …), of which no axis is empty, got {tuple(x.shape)}")
        y = array_namespace(x).reshape(x, (x.shape[0], -1))
        return self.keep(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """Reshape back."""
        (shape,) = self.kept(dy)
        return array_namespace(dy).reshape(dy, shape)

    def degree(self, x: Degree) -> Degree:
        """Unchanged."""
        return x


class GlobalAvgPool(Module):
    """Mean over all positions: `y[n, c] = Σ_{h, w} x[n, h, w, c] / (H W)`; (N, H, W, C) -> (N, C).

    Backward: `dx[n, h, w, c] = dy[n, c] / (H W)`.
    """

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, C)."""
        self._check_input(x, ("N", "H", "W", "C"))
        y = kernels.of(x).global_average_pool(x)
        return self.keep(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """(N, C) -> (N, H, W, C)."""
        (shape,) = self.kept(dy)
        return kernels.of(dy).global_average_pool_backward(dy, shape)

    def degree(self, x: Degree) -> Degree:
        """Unchanged."""
        return x


class _WindowPool(Module):
    """Windows of k x k pixels, side by side; rows and columns left over at the end are ignored, as in PyTorch."""

    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        self.kernel_size = arguments.whole(f"{type(self).__name__}: kernel_size", kernel_size, 1)
        if stride is not None and stride != self.kernel_size:
            raise ValueError(f"{type(self).__name__}: stride must be kernel_size, or None: windows lie side by side here; got "
                             f"kernel_size={self.kernel_size}, stride={stride!r}")

    def _check(self, x):
        self._check_input(x, ("N", "H", "W", "C"))
        k = self.kernel_size
        if min(x.shape[1:3]) < k:
            raise ValueError(f"{self} needs images of at least {k} x {k} pixels, got {tuple(x.shape)}")

    def degree(self, x: Degree) -> Degree:
        """Unchanged."""
        return x

    def __repr__(self):
        return f"{type(self).__name__}({self.kernel_size})"


class AvgPool2d(_WindowPool):
    """Mean of each k x k window: (N, H, W, C) -> (N, H // k, W // k, C). Backward: `dy / k²` to each of its pixels.

    Args:
        kernel_size: k.
        stride: k or None, for PyTorch's `(2, 2)`.

    Raises:
        ValueError: the input is not (N, H, W, C), or smaller than a window; or another stride.
        RuntimeError: backward before forward.
    """

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, H // k, W // k, C)."""
        self._check(x)
        y = kernels.of(x).average_pool(x, self.kernel_size)
        return self.keep(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """(N, H // k, W // k, C) -> (N, H, W, C)."""
        (shape,) = self.kept(dy)
        return kernels.of(dy).average_pool_backward(dy, shape, self.kernel_size)


class MaxPool2d(_WindowPool):
    """Largest number of each k x k window: (N, H, W, C) -> (N, H // k, W // k, C).

    Backward: dy to the pixel that was largest, the first of them if several are, as in PyTorch.

    Args:
        kernel_size: k.
        stride: k or None, for PyTorch's `(2, 2)`.

    Raises:
        ValueError: the input is not (N, H, W, C), or smaller than a window; or another stride.
        RuntimeError: backward before forward.
    """

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, H // k, W // k, C)."""
        self._check(x)
        y = kernels.of(x).max_pool(x, self.kernel_size)
        return self.keep(y, x, y)

    def backward(self, dy: Array) -> Array:
        """(N, H // k, W // k, C) -> (N, H, W, C)."""
        x, y = self.kept(dy)
        return kernels.of(dy).max_pool_backward(dy, x, y, self.kernel_size)
