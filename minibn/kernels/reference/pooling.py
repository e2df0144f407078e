"""Pooling, in its plainest form."""

from collections.abc import Sequence

from minibn.backend import Array, array_namespace, device
from minibn.kernels.reference.convolution import seen


def global_average_pool(x: Array) -> Array:
    """`y[n, c] = Σ_{h, w} x[n, h, w, c] / (H W)`."""
    return array_namespace(x).mean(x, axis=(1, 2))


def global_average_pool_backward(dy: Array, shape: Sequence[int]) -> Array:
    """`dx[n, h, w, c] = dy[n, c] / (H W)`, of the input's `shape`."""
    xp = array_namespace(dy)
    return dy[:, None, None, :] / (shape[1] * shape[2]) + xp.zeros(shape, dtype=dy.dtype, device=device(dy))


def average_pool(x: Array, k: int) -> Array:
    """Mean of each window of k x k pixels: (N, H, W, C) -> (N, H // k, W // k, C)."""
    return sum(x[place] / (k * k) for place in window(x, k))


def average_pool_backward(dy: Array, shape: Sequence[int], k: int) -> Array:
    """`dy / k²` to each pixel of its window; 0 to pixels in no window. The input's `shape` is (N, H, W, C)."""
    dx = array_namespace(dy).zeros(shape, dtype=dy.dtype, device=device(dy))
    for place in window(dx, k):
        dx[place] = dy / (k * k)
    return dx


def max_pool(x: Array, k: int) -> Array:
    """Largest number of each window of k x k pixels: (N, H, W, C) -> (N, H // k, W // k, C)."""
    first, *others = window(x, k)
    y = x[first]
    for place in others:
        y = array_namespace(x).maximum(y, x[place])
    return y


def max_pool_backward(dy: Array, x: Array, y: Array, k: int) -> Array:
    """dy to the pixel that was largest in its window: the first of them, if several are."""
    xp = array_namespace(dy)
    dx = xp.zeros_like(x)
    found = xp.zeros(y.shape, dtype=xp.bool, device=device(y))
    for place in window(x, k):
        here = (x[place] == y) & ~found
        dx[place] = dy * xp.astype(here, dy.dtype)
        found = found | here
    return dx


def window(x: Array, k: int) -> list[tuple[slice, ...]]:
    """For each place in a window of k x k pixels, in order: the index of the pixels (N, H, W, C) that stand there."""
    places = [(u, v) for u in range(k) for v in range(k)]
    return [seen(u, v, (k, k), x.shape[1] // k, x.shape[2] // k) for u, v in places]
