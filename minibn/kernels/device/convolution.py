"""Convolution on a GPU: one gather of all that the kernel sees, and one matrix product, for the output and for each gradient."""

from functools import lru_cache
from typing import Any

from minibn.backend import Array, Namespace, array_namespace, device
from minibn.kernels.device.fusion import fused
from minibn.kernels.reference import Pair, output_size, pad, seen, taps


def correlate(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair) -> Array:
    """`reference.correlate`, as `y = patches(x) @ W`; with stride 1 by the function below. See `patches`."""
    xp = array_namespace(x)
    size = output_size(x, w, stride, padding)
    x = pad(x, padding) if any(padding) else x
    if stride == (1, 1) and w.shape[0] > 1:
        y = _correlate_by_rows(x, w, *size)
    else:
        y = xp.reshape(patches(x, w.shape[:2], stride, *size) @ xp.reshape(w, (-1, w.shape[3])), (x.shape[0], *size, w.shape[3]))
    return y if b is None else y + b


def _correlate_by_rows(x, w, height, width):
    """Stride 1: each row of the kernel with each row of the image, and then the sum of those that
    belong together,

        z[r, u] = patches(x[r]) @ W[u]        y[i] = Σ_u z[i + u, u]

    where patches are one row high, so that they are kh times fewer numbers.
    """
    xp = array_namespace(x)
    kh, kw, _, outputs = w.shape
    n, rows, _, _ = x.shape
    by_column = xp.reshape(xp.permute_dims(w, (1, 2, 0, 3)), (-1, kh * outputs))
    z = xp.reshape(patches(x, (1, kw), (1, 1), rows, width) @ by_column, (n, rows, width, kh, outputs))
    return _sum(*(z[:, u : u + height, :, u, :] for u in range(kh)))


@fused
def _sum(xp, first, *others):
    return sum(others, start=first)


def correlate_backward(dy: Array, x: Array, w: Array, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """`reference.correlate_backward`, by one of the two functions below."""
    return (_backward_by_dy if stride == (1, 1) else _backward_by_x)(dy, x, w, stride, padding)


def _backward_by_dy(dy, x, w, stride, padding):
    """Stride 1: an input pixel gets its gradient by a correlation of dy, with zeros around it, and
    W̄, the kernel turned by 180° with its channels exchanged. The same patches of dy give dW:

        dx = patches(dy) @ W̄        dW̄ = patches(dy)ᵀ x
    """
    xp = array_namespace(dy)
    kh, kw, channels, outputs = w.shape
    _, height, width, _ = x.shape
    around = kh - 1 - padding[0], kw - 1 - padding[1]
    down, across = (slice(max(-a, 0), size - max(-a, 0)) for a, size in zip(around, dy.shape[1:3], strict=True))
    around = max(around[0], 0), max(around[1], 0)
    dy = dy[:, down, across, :]
    around_each = patches(pad(dy, around) if any(around) else dy, (kh, kw), stride, height, width)
    dx = around_each @ xp.reshape(turned(w), (-1, channels))
    dw = around_each.T @ xp.reshape(x, (-1, channels))
    return xp.reshape(dx, x.shape), turned(xp.reshape(dw, (kh, kw, outputs, channels)))


def _backward_by_x(dy, x, w, stride, padding):
    """Any stride: with the patches of x that `correlate` used,

        dW = patchesᵀ dy        dx: each number of dy Wᵀ goes back to the pixel it belongs to
    """
    xp = array_namespace(dy)
    kh, kw, channels, outputs = w.shape
    n, height, width, _ = dy.shape
    padded = pad(x, padding) if any(padding) else x
    flat = xp.reshape(dy, (-1, outputs))
    dw = patches(padded, (kh, kw), stride, height, width).T @ flat
    spread = xp.reshape(flat @ xp.reshape(w, (-1, outputs)).T, (n, height, width, kh, kw, channels))
    dx = xp.zeros_like(padded)
    for u, v in taps(w):
        dx[seen(u, v, stride, height, width)] += spread[:, :, :, u, v, :]
    top, left = padding
    return dx[:, top : top + x.shape[1], left : left + x.shape[2], :], xp.reshape(dw, w.shape)


def turned(w: Array) -> Array:
    """A kernel turned by 180°, its channels exchanged: (kh, kw, C, O) -> (kh, kw, O, C)."""
    xp = array_namespace(w)
    return xp.permute_dims(xp.flip(w, axis=(0, 1)) if w.shape[:2] != (1, 1) else w, (0, 1, 3, 2))


def patches(x: Array, kernel: Pair, stride: Pair, height: int, width: int) -> Array:
    """All that a kernel sees at each place: (N, H, W, C) -> (N·height·width, kh·kw·C)."""
    xp = array_namespace(x)
    n, h, w, channels = x.shape
    if (kernel, stride) != ((1, 1), (1, 1)):
        pixels = _pixels(xp, device(x), kernel, stride, height, width, w)
        x = xp.take(xp.reshape(x, (n, h * w, channels)), pixels, axis=1)
    return xp.reshape(x, (n * height * width, -1))


@lru_cache(maxsize=256)
def _pixels(xp: Namespace, where: Any, kernel: Pair, stride: Pair, height: int, width: int, row: int) -> Array:
    """Which pixel of an image with `row` pixels per row is seen at each place by each tap, (height·width·kh·kw,)."""
    def along(size, step, taps):  # (size, taps)
        return xp.arange(size, device=where)[:, None] * step + xp.arange(taps, device=where)[None, :]

    rows, columns = (along(*sizes) for sizes in zip((height, width), stride, kernel, strict=True))
    return xp.reshape(rows[:, None, :, None] * row + columns[None, :, None, :], (-1,))
