"""Pooling over windows of pixels, and Flatten."""

import math

from minibn.backend import Array, array_namespace, device, into, map_chunks
from minibn.degree import Degree
from minibn.nn.module import Module


class Flatten(Module):
    """(N, …) -> (N, product of the rest)."""

    def forward(self, x: Array) -> Array:
        """Reshape; no numbers change."""
        self._keep(x.shape)
        return array_namespace(x).reshape(x, (x.shape[0], -1))

    def backward(self, dy: Array) -> Array:
        """Reshape back."""
        (shape,) = self._take(dy)
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
        self._keep(x.shape)
        return array_namespace(x).mean(x, axis=(1, 2))

    def backward(self, dy: Array) -> Array:
        """(N, C) -> (N, H, W, C)."""
        n, height, width, channels = self._kept[0] if self._kept else (0,) * 4
        self._take(dy, (n, channels))
        xp = array_namespace(dy)
        return xp.broadcast_to(dy[:, None, None, :] / (height * width), (n, height, width, channels))

    def degree(self, x: Degree) -> Degree:
        """Unchanged."""
        return x


class _WindowPool(Module):
    """Windows of k x k pixels, side by side; rows and columns left over at the end are ignored, as in PyTorch."""

    def __init__(self, kernel_size: int) -> None:
        if kernel_size < 1:
            raise ValueError(f"{type(self).__name__}: kernel_size must be at least 1, got {kernel_size}")
        self.kernel_size = kernel_size

    def _pool(self, x, write):
        """(N, H, W, C) -> (N, H // k, W // k, C): `write(out, pixels)` with, for each place in a window, its pixels."""
        self._check_input(x, ("N", "H", "W", "C"))
        k, (height, width) = self.kernel_size, x.shape[1:3]
        if min(height, width) < k:
            raise ValueError(f"{self} needs images of at least {k} x {k} pixels, got {x.shape}")
        y = array_namespace(x).empty((x.shape[0], height // k, width // k, x.shape[3]), dtype=x.dtype, device=device(x))
        places = self._places(y)
        map_chunks(lambda s: write(y[s, ...], [x[s, ...][place] for place in places]), x, math.prod(x.shape[1:]))
        return y

    def _places(self, y):
        """For each place in a window, in order: the index of the images' pixels that stand there, as many as y has."""
        k, (height, width) = self.kernel_size, y.shape[1:3]
        last_row, last_column = k * (height - 1), k * (width - 1)
        return [(slice(None), slice(i, i + last_row + 1, k), slice(j, j + last_column + 1, k), slice(None))
                for i in range(k) for j in range(k)]

    def degree(self, x: Degree) -> Degree:
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

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, H // k, W // k, C)."""
        def average(out, pixels):
            out[...] = pixels[0] / len(pixels)
            for pixel in pixels[1:]:
                out += pixel / len(pixels)

        y = self._pool(x, average)
        self._keep(x.shape, y.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, H // k, W // k, C) -> (N, H, W, C)."""
        shape, _ = self._take(dy, self._kept and self._kept[1])
        places = self._places(dy)
        dx = array_namespace(dy).zeros(shape, dtype=dy.dtype, device=device(dy))

        def spread(s):
            images, part = dx[s, ...], dy[s, ...] / len(places)
            for place in places:
                images[place] = part

        map_chunks(spread, dy, math.prod(shape[1:]))
        return dx


class MaxPool2d(_WindowPool):
    """Largest number of each k x k window: (N, H, W, C) -> (N, H // k, W // k, C).

    Backward: dy to the pixel that was largest, the first of them if several are, as in PyTorch.

    Raises:
        ValueError: the input is not (N, H, W, C), or smaller than a window.
        RuntimeError: backward before forward.
    """

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, H // k, W // k, C)."""
        def largest(out, pixels):
            out[...] = pixels[0]
            for pixel in pixels[1:]:
                into(out, array_namespace(x).maximum, out, pixel)

        y = self._pool(x, largest)
        self._keep(x, y)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, H // k, W // k, C) -> (N, H, W, C)."""
        x, y = self._take(dy, self._kept and self._kept[1].shape)
        places = self._places(y)
        xp = array_namespace(dy)
        dx = xp.zeros(x.shape, dtype=dy.dtype, device=device(dy))

        def differentiate(s):
            images, gradient = x[s, ...], dx[s, ...]
            met = xp.zeros(y[s, ...].shape, dtype=xp.bool, device=device(dy))  # windows whose largest number was seen already
            for place in places:
                here = (images[place] == y[s, ...]) & ~met
                gradient[place] = dy[s, ...] * xp.astype(here, dy.dtype)
                met |= here

        map_chunks(differentiate, dy, math.prod(x.shape[1:]))
        return dx
