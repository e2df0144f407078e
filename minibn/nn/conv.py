"""Conv2d: convolution as matrix products, one for each row of the kernel, in chunks of images that stay in the cache."""

import itertools
from typing import TypeAlias

from numpy.random import Generator

from minibn.backend import Array, array_namespace, device, map_chunks, sum_rows
from minibn.degree import Degree
from minibn.nn.linear import kaiming_normal
from minibn.nn.module import Module, Parameter

Pair: TypeAlias = tuple[int, int]  # of numbers for (height, width), or (before, after) along an axis
CHUNK_BYTES = 2**21  # windows of one chunk: enough for a fast matrix product, few enough for the cache


class Conv2d(Module):
    """Convolution (as everywhere in deep learning: cross-correlation) of channels-last images.

    `y[n, i, j, o] = b[o] + Σ_{u, v, c} x[n, i·s + u - p, j·s + v - p, c] W[u, v, c, o]`, x being 0 outside.

    Shapes: x (N, H, W, C_in), W (kh, kw, C_in, C_out), b (C_out,), y (N, OH, OW, C_out) with
    `OH = (H + 2p - kh) // s + 1`. PyTorch has x as (N, C, H, W) and W as (C_out, C_in, kh, kw).

    Forward: the pixels that row u of the kernel sees, side by side (`windows`), are the rows of a matrix, so
        y = Σ_u windows(x)[rows from u on] @ W[u]
    Backward, stride 1: an input pixel is seen by every output whose patch holds it, so the same windows of dy, padded by
    k - 1 - p, give both gradients. With W̄ the kernel turned by 180°, its channels exchanged:
        dx = Σ_u windows(dy)[rows from u on] @ W̄[u]        dW̄[u] = windows(dy)[rows from u on]ᵀ x        db = Σ_{n, i, j} dy
    Stride s: pixels s apart are seen by the same taps of the kernel; each such phase goes back as with stride 1 (`phases`).

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size, stride, padding: a number, or a pair for (height, width).
        bias: whether to add b, which starts at zero.
        rng: numpy.random.Generator for the weight (`kaiming_normal`).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, H, W, C_in) or smaller than the kernel, or a size is out of range.
        TypeError: the input's dtype is not the weight's.
        RuntimeError: backward before forward.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Pair, stride: int | Pair = 1,
                 padding: int | Pair = 0, bias: bool = False, *, rng: Generator, dtype: str = "float32") -> None:
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = _pair(kernel_size), _pair(stride), _pair(padding)
        if min(in_channels, out_channels, *self.kernel_size, *self.stride) < 1 or min(self.padding) < 0:
            raise ValueError(f"{self}: channels, kernel_size and stride must be at least 1, padding at least 0")
        kh, kw = self.kernel_size
        self.weight = Parameter(kaiming_normal(rng, (kh, kw, in_channels, out_channels), kh * kw * in_channels, dtype))
        self.bias = Parameter(self.weight.data[0, 0, 0] * 0) if bias else None

    def forward(self, x: Array) -> Array:
        """(N, H, W, C_in) -> (N, OH, OW, C_out)."""
        w = self.weight.data
        self._check_input(x, ("N", "H", "W", self.in_channels), w)
        xp = array_namespace(x)
        (_, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        height, width = self._output_shape(x)
        y = xp.empty((x.shape[0], height, width, self.out_channels), dtype=x.dtype, device=device(x))

        def convolve(s):
            seen = windows(pad(x[s, ...], (ph, ph), (pw, pw)), kw)[:, :, ::sw, :]
            out = correlate(seen, w, sh, height)
            if self.bias is not None:
                out += self.bias.data
            y[s, ...] = out

        map_chunks(convolve, x, x.shape[1] * width * kw * self.in_channels, CHUNK_BYTES)
        self._keep(x)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, C_out) -> (N, H, W, C_in)."""
        x = self._kept and self._kept[0]
        self._take(dy, self._kept and (x.shape[0], *self._output_shape(x), self.out_channels))
        xp = array_namespace(dy)
        turned = xp.permute_dims(xp.flip(self.weight.data, axis=(0, 1)), (0, 1, 3, 2))  # W̄: (kh, kw, C_out, C_in)
        dw = xp.zeros_like(turned)
        dx = (xp.empty if self.stride == (1, 1) else xp.zeros)(x.shape, dtype=dy.dtype, device=device(dy))
        down, across = (phases(*sizes) for sizes in zip(x.shape[1:3], dy.shape[1:3], self.kernel_size, self.stride,
                                                        self.padding, strict=True))
        for (i, u, rows), (j, v, columns) in itertools.product(down, across):
            dw[u, v, ...] = phase_gradients(dy, rows, columns, turned[u, v, ...], x[:, i, j, :], dx[:, i, j, :])
        self.weight.grad += xp.flip(xp.permute_dims(dw, (0, 1, 3, 2)), axis=(0, 1))
        if self.bias is not None:
            self.bias.grad += sum_rows(xp.reshape(dy, (-1, self.out_channels)))
        return dx

    def degree(self, x: Degree) -> Degree:
        """Degree d -> d + a_W; padding makes what was one number a channel differ at the border."""
        return (x.settled(self) if max(self.padding) else x).times(self.weight).plus(self.bias)

    def _output_shape(self, x):
        shape = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in
                      zip(x.shape[1:3], self.padding, self.kernel_size, self.stride, strict=True))
        if min(shape) < 1:
            raise ValueError(f"{self} needs images of at least its kernel's size, padding counted; got {x.shape}")
        return shape

    def __repr__(self):
        return (f"Conv2d({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}, padding={self.padding})")


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def pad(x: Array, rows: Pair, columns: Pair) -> Array:
    """Add (before, after) zero `rows` and `columns` to images (N, H, W, C); a negative number takes some away."""
    if rows == columns == (0, 0):
        return x
    xp = array_namespace(x)
    n, height, width, channels = x.shape
    y = xp.zeros((n, height + sum(rows), width + sum(columns), channels), dtype=x.dtype, device=device(x))
    (top, bottom), (left, right) = rows, columns
    inner = x[:, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0), :]
    top, left = max(top, 0), max(left, 0)
    y[:, top : top + inner.shape[1], left : left + inner.shape[2], :] = inner
    return y


def phases(size: int, out_size: int, kernel_size: int, stride: int, padding: int) -> list[tuple[slice, slice, Pair]]:
    """How an axis of a strided convolution is walked back: pixels `stride` apart are seen by the same taps of the kernel.

    Returns:
        list of (inputs, taps, (before, after)): a slice of the input's pixels, the slice of the turned kernel's taps that see
        them, and the padding of dy with which those taps, at stride 1, give their gradient.
    """
    found = []
    for first in range(min(stride, size)):
        tap = (first + padding) % stride
        taps = len(range(tap, kernel_size, stride))
        count = len(range(first, size, stride))
        before = taps - 1 - (first + padding) // stride
        if taps:
            last = kernel_size - 1 - tap  # the turned kernel's
            found.append((slice(first, None, stride), slice(last % stride, None, stride),
                          (before, count + taps - 1 - before - out_size)))
    return found


def phase_gradients(dy: Array, rows: Pair, columns: Pair, taps: Array, x: Array, dx: Array) -> Array:
    """Backward at stride 1, for one of the `phases` of each axis: write dx, return the gradient of the turned taps.

    Shapes: dy (N, OH, OW, C_out), padded by `rows` and `columns`; taps (kh, kw, C_out, C_in); x and dx (N, H, W, C_in).
    """
    kh, kw, channels = taps.shape[:3]

    def differentiate(s):
        seen = windows(pad(dy[s, ...], rows, columns), kw)
        dx[s, ...] = correlate(seen, taps, 1, x.shape[1])
        return correlation_gradient(seen, x[s, ...], kh)

    chunks = map_chunks(differentiate, dy, (x.shape[1] + kh) * x.shape[2] * kw * channels, CHUNK_BYTES)
    return array_namespace(dy).reshape(sum(chunks[1:], start=chunks[0]), taps.shape)


def windows(x: Array, width: int) -> Array:
    """Each `width` neighbouring pixels of a row side by side: (N, H, W, C) -> (N, H, W - width + 1, width·C).

    Windows that do not overlap, every `width`-th one, are a mere reshape of the row: so `width` copies of long runs make them.
    """
    if width == 1:
        return x
    xp = array_namespace(x)
    n, height, length, channels = x.shape
    positions = length - width + 1
    seen = xp.empty((n, height, positions, width * channels), dtype=x.dtype, device=device(x))
    for first in range(min(width, positions)):
        count = len(range(first, positions, width))
        runs = x[:, :, first : first + width * count, :]
        seen[:, :, first::width, :] = xp.reshape(runs, (n, height, count, width * channels))
    return seen


def correlate(seen: Array, w: Array, stride: int, height: int) -> Array:
    """`y[n, i, j, o] = Σ_{u, k} seen[n, i·stride + u, j, k] w[u, k, o]`: one matrix product for each row u of the kernel.

    Shapes: seen (N, H, OW, kw·C), as from `windows`; w (kh, kw, C, O); y (N, height, OW, O).
    """
    xp = array_namespace(seen)
    n, _, width, size = seen.shape
    products = (xp.reshape(_rows(seen, u, stride, height), (n, height * width, size)) @ xp.reshape(w[u, ...], (size, -1))
                for u in range(w.shape[0]))
    y = next(products)
    for product in products:
        y += product
    return xp.reshape(y, (n, height, width, -1))


def correlation_gradient(seen: Array, x: Array, kernel_height: int) -> Array:
    """`dw[u, k, c] = Σ_{n, i, j} seen[n, i + u, j, k] x[n, i, j, c]`, the gradient of w in `correlate` with stride 1.

    Shapes: seen (N, H, OW, K), x (N, height, OW, C), dw (kernel_height, K, C).
    """
    xp = array_namespace(seen)
    n, height, width, channels = x.shape
    x = xp.reshape(x, (n, height * width, channels))
    parts = [xp.reshape(_rows(seen, u, 1, height), (n, height * width, -1)) for u in range(kernel_height)]
    return xp.stack([xp.sum(xp.matrix_transpose(rows) @ x, axis=0) for rows in parts])


def _rows(seen, first, stride, count):
    return seen[:, first : first + stride * (count - 1) + 1 : stride, ...]
