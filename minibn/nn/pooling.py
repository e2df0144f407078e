"""Pooling over windows of pixels, and Flatten."""

from minibn.backend import array_namespace, device
from minibn.nn.module import Module


class Flatten(Module):
    """(N, …) -> (N, product of the rest)."""

    def forward(self, x):
        """Reshape; no numbers change."""
        self._keep(x.shape)
        return array_namespace(x).reshape(x, (x.shape[0], -1))

    def backward(self, dy):
        """Reshape back."""
        (shape,) = self._take(dy)
        return array_namespace(dy).reshape(dy, shape)

    def degree(self, x):
        """Unchanged."""
        return x


class GlobalAvgPool(Module):
    """Mean over all positions: `y[n, c] = Σ_{h, w} x[n, h, w, c] / (H W)`; (N, H, W, C) -> (N, C).

    Backward: `dx[n, h, w, c] = dy[n, c] / (H W)`.
    """

    def forward(self, x):
        """(N, H, W, C) -> (N, C)."""
        self._check_input(x, ("N", "H", "W", "C"))
        self._keep(x.shape)
        return array_namespace(x).mean(x, axis=(1, 2))

    def backward(self, dy):
        """(N, C) -> (N, H, W, C)."""
        n, height, width, channels = self._kept[0] if self._kept else (None,) * 4
        self._take(dy, (n, channels))
        xp = array_namespace(dy)
        return xp.broadcast_to(dy[:, None, None, :] / (height * width), (n, height, width, channels))

    def degree(self, x):
        """Unchanged."""
        return x


class _WindowPool(Module):
    """Windows of k x k pixels, side by side; rows and columns left over at the end are ignored, as in PyTorch."""

    def __init__(self, kernel_size):
        if kernel_size < 1:
            raise ValueError(f"{type(self).__name__}: kernel_size must be at least 1, got {kernel_size}")
        self.kernel_size = kernel_size

    def _windows(self, x):
        """(N, H, W, C) -> (N, H/k, W/k, k·k, C)."""
        self._check_input(x, ("N", "H", "W", "C"))
        xp, k = array_namespace(x), self.kernel_size
        n, height, width, channels = x.shape
        if min(height, width) < k:
            raise ValueError(f"{self} needs images of at least {k} x {k} pixels, got {x.shape}")
        h, w = height // k, width // k
        blocks = xp.reshape(x[:, : h * k, : w * k, :], (n, h, k, w, k, channels))
        return xp.reshape(xp.permute_dims(blocks, (0, 1, 3, 2, 4, 5)), (n, h, w, k * k, channels))

    def _images(self, windows, shape):
        """The inverse of `_windows`, with zeros in what was left over."""
        xp, k = array_namespace(windows), self.kernel_size
        n, h, w, _, channels = windows.shape
        blocks = xp.permute_dims(xp.reshape(windows, (n, h, w, k, k, channels)), (0, 1, 3, 2, 4, 5))
        x = xp.zeros(shape, dtype=windows.dtype, device=device(windows))
        x[:, : h * k, : w * k, :] = xp.reshape(blocks, (n, h * k, w * k, channels))
        return x

    def _take_windows(self, dy):
        shape = None
        if self._kept:
            (n, height, width, channels), k = self._kept[0], self.kernel_size
            shape = (n, height // k, width // k, channels)
        return self._take(dy, shape)

    def degree(self, x):
        """Unchanged."""
        return x

    def __repr__(self):
        return f"{type(self).__name__}({self.kernel_size})"


class AvgPool2d(_WindowPool):
    """Mean of each k x k window: (N, H, W, C) -> (N, H // k, W // k, C). Backward: `dy / k²` to each of its pixels.

    Raises:
        ValueError: the input is not (N, H, W, C), or smaller than a window.
        RuntimeError: backward before forward.
    """

    def forward(self, x):
        """(N, H, W, C) -> (N, H // k, W // k, C)."""
        windows = self._windows(x)
        self._keep(x.shape)
        return array_namespace(x).mean(windows, axis=3)

    def backward(self, dy):
        """(N, H // k, W // k, C) -> (N, H, W, C)."""
        (shape,) = self._take_windows(dy)
        xp, k = array_namespace(dy), self.kernel_size
        n, h, w, channels = dy.shape
        return self._images(xp.broadcast_to((dy / k**2)[:, :, :, None, :], (n, h, w, k * k, channels)), shape)


class MaxPool2d(_WindowPool):
    """Largest number of each k x k window: (N, H, W, C) -> (N, H // k, W // k, C).

    Backward: dy to the pixel that was largest, the first of them if several are, as in PyTorch.

    Raises:
        ValueError: the input is not (N, H, W, C), or smaller than a window.
        RuntimeError: backward before forward.
    """

    def forward(self, x):
        """(N, H, W, C) -> (N, H // k, W // k, C)."""
        xp = array_namespace(x)
        windows = self._windows(x)
        self._keep(x.shape, xp.argmax(windows, axis=3, keepdims=True))
        return xp.max(windows, axis=3)

    def backward(self, dy):
        """(N, H // k, W // k, C) -> (N, H, W, C)."""
        shape, largest = self._take_windows(dy)
        xp = array_namespace(dy)
        position = xp.arange(self.kernel_size**2, dtype=largest.dtype, device=device(dy))
        chosen = xp.astype(largest == position[:, None], dy.dtype)
        return self._images(dy[:, :, :, None, :] * chosen, shape)
