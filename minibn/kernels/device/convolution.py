"""Convolution on a GPU: one gather of all that the kernel sees, one matrix product; the gradients likewise."""

from functools import lru_cache

from minibn.backend import Array, Namespace, array_namespace, device
from minibn.kernels.reference import Pair, output_size, pad


def correlate(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair) -> Array:
    """`reference.correlate`, as `y = patches(x) @ W`: see `patches`."""
    height, width = output_size(x, w, stride, padding)
    seen = patches(pad(x, padding) if any(padding) else x, w.shape[:2], stride, height, width)
    xp = array_namespace(x)
    y = seen @ xp.reshape(w, (-1, w.shape[3]))
    return xp.reshape(y if b is None else y + b, (x.shape[0], height, width, w.shape[3]))


def correlate_backward(dy: Array, x: Array, w: Array, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """`reference.correlate_backward`.

    An input pixel gets its gradient by a correlation of dy, spread out, with W̄, the kernel turned by 180° with its
    channels exchanged. The same patches of dy give dW:
        dx = patches(dy) @ W̄        dW̄ = patches(dy)ᵀ x
    """
    xp = array_namespace(dy)
    kh, kw, channels, outputs = w.shape
    _, height, width, _ = x.shape
    seen = patches(spread(dy, x.shape, (kh, kw), stride, padding), (kh, kw), (1, 1), height, width)
    dx = seen @ xp.reshape(turned(w), (-1, channels))
    dw = seen.T @ xp.reshape(x, (-1, channels))
    return xp.reshape(dx, x.shape), turned(xp.reshape(dw, (kh, kw, outputs, channels)))


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
def _pixels(xp: Namespace, where, kernel: Pair, stride: Pair, height: int, width: int, row: int) -> Array:
    """Which pixel of an image with `row` pixels per row is seen at each place by each tap, (height·width·kh·kw,)."""
    def along(size, step, taps):  # (size, taps)
        return xp.arange(size, device=where)[:, None] * step + xp.arange(taps, device=where)[None, :]

    rows, columns = (along(*sizes) for sizes in zip((height, width), stride, kernel, strict=True))
    return xp.reshape(rows[:, None, :, None] * row + columns[None, :, None, :], (-1,))


def spread(dy: Array, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """dy with `stride - 1` zeros between its pixels and as many around them that a correlation gives the input's `shape`."""
    if (kernel, stride, padding) == ((1, 1), (1, 1), (0, 0)):
        return dy
    n, height, width, _ = shape
    sizes = height + kernel[0] - 1, width + kernel[1] - 1
    axes = [_spread(*numbers) for numbers in zip(dy.shape[1:3], sizes, kernel, stride, padding, strict=True)]
    (to_rows, rows), (to_columns, columns) = axes
    out = array_namespace(dy).zeros((n, *sizes, dy.shape[3]), dtype=dy.dtype, device=device(dy))
    out[:, to_rows, to_columns, :] = dy[:, rows, columns, :]
    return out


def _spread(given, size, taps, step, padding):
    """Along one axis: where in `size` places the `given` ones go, every `step`-th, and which of them have a place there."""
    offset = taps - 1 - padding
    first = max(0, -(offset // step))  # those before it see padding only
    start = first * step + offset
    count = max(0, min(given - first, -(-(size - start) // step)))
    return slice(start, start + max(0, count - 1) * step + min(count, 1), step), slice(first, first + count)
