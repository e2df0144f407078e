"""Convolution for NumPy: `reference.correlate` and its gradients as matrix products of windows, in chunks of images."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minibn.kernels import reference
from minibn.kernels.reference import Pair, output_size, seen, taps
from minibn.kernels.threads import empty, map_chunks

BYTES = 2**21  # of windows in a chunk: enough for fast matrix products, few enough for the cache
FEW = 16  # pixels: of images no larger, one product of all is faster than one of each


def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: Pair, padding: Pair) -> np.ndarray:
    """`reference.correlate`, as `y = Σ_u rows(x)[u] @ W[u]` for each chunk of images: see `kernel_rows`."""
    height, width = output_size(x, w, stride, padding)
    y = empty((len(x), height, width, w.shape[3]), x)

    def convolve(s):
        multiply_rows(kernel_rows(pad(x[s], padding), w.shape[:2], stride, height, width), w, y[s])
        if b is not None:
            y[s] += b

    map_chunks(convolve, len(x), x.itemsize * x.shape[1] * width * w.shape[1] * w.shape[2], BYTES)
    return y


def correlate_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: Pair,
                       padding: Pair) -> tuple[np.ndarray, np.ndarray]:
    """`reference.correlate_backward`, for each chunk of images by one of the two functions below."""
    backward = _backward_by_rows if stride == (1, 1) else _backward_by_patches
    numbers = x.shape[1] * x.shape[2] * w.shape[1] * w.shape[3] if stride == (1, 1) else dy[0, ..., 0].size * w[..., 0].size
    dx = empty(x.shape, dy)
    parts = map_chunks(lambda s: backward(dy[s], x[s], w, stride, padding, dx[s]), len(x), dy.itemsize * numbers, BYTES)
    return dx, sum(parts[1:], start=parts[0])


def _backward_by_rows(dy, x, w, stride, padding, dx):
    """Stride 1: write dx, return dW.

    An input pixel is seen by all outputs around it, so it gets its gradient by a correlation of dy,
    with zeros around it, and W̄, the kernel turned by 180° with its channels exchanged. The same
    rows of dy give dW:
        dx = Σ_u rows(dy)[u] @ W̄[u]        dW̄[u] = rows(dy)[u]ᵀ x
    """
    kh, kw, channels, outputs = w.shape
    n, height, width, _ = x.shape
    around = kh - 1 - padding[0], kw - 1 - padding[1]
    top, left = (max(-a, 0) for a in around)  # outputs before these see zeros alone
    dy = pad(dy[:, top:, left:], (max(around[0], 0), max(around[1], 0)))
    rows = kernel_rows(dy, (kh, kw), stride, height, width)
    multiply_rows(rows, np.ascontiguousarray(w[::-1, ::-1].swapaxes(2, 3)), dx)
    stack = n if height * width > FEW else 1
    products = empty((kh, stack, kw * outputs, channels), x)
    np.matmul(rows.reshape(kh, stack, -1, kw * outputs).swapaxes(2, 3), x.reshape(stack, -1, channels), out=products)
    turned = products.sum(axis=1).reshape(kh, kw, outputs, channels)
    return turned[::-1, ::-1].swapaxes(2, 3)


def _backward_by_patches(dy, x, w, stride, padding, dx):
    """Any stride: write dx, return dW. All pixels that an output saw are a row of one matrix:

        dW = patchesᵀ dy        dx: each number of dy Wᵀ goes back to the pixel it belongs to
    """
    kh, kw, channels, outputs = w.shape
    n, height, width, _ = dy.shape
    x = pad(x, padding)
    rows = kernel_rows(x, (kh, kw), stride, height, width)
    patches = rows.swapaxes(0, 1).swapaxes(1, 2).reshape(n * height * width, -1)
    dy = dy.reshape(-1, outputs)
    spread = (dy @ w.reshape(-1, outputs).T).reshape(n, height, width, kh, kw, channels)
    padded = np.zeros_like(x)
    for u, v in taps(w):
        padded[seen(u, v, stride, height, width)] += spread[:, :, :, u, v]
    top, left = padding
    dx[...] = padded[:, top : top + dx.shape[1], left : left + dx.shape[2]]
    return (patches.T @ dy).reshape(w.shape)


def pad(x: np.ndarray, padding: Pair) -> np.ndarray:
    """`reference.pad`, contiguous; x itself where it is that already."""
    return reference.pad(x, padding) if any(padding) else np.ascontiguousarray(x)


def kernel_rows(x: np.ndarray, kernel: Pair, stride: Pair, height: int, width: int) -> np.ndarray:
    """What each row u of a kernel sees: (kh, N, height·width, kw·C) of contiguous images (N, H, W, C).

    `rows[u, n, (i, j)]` are the pixels x[n, i·s + u, j·s], …, x[n, i·s + u, j·s + kw - 1], side by
    side.
    """
    (kh, kw), (sh, sw), (n, h, _, c) = kernel, stride, x.shape
    windows = x
    if (kw, sw) != (1, 1):
        image, row, pixel, number = x.strides
        windows = empty((n, h, width, kw * c), x)
        windows[...] = as_strided(x, windows.shape, (image, row, sw * pixel, number))
    image, row, pixel, number = windows.strides
    rows = as_strided(windows, (kh, n, height, width, kw * c), (row, image, sh * row, pixel, number))
    return rows.reshape(kh, n, height * width, kw * c)  # a view, unless the stride leaves rows out


def multiply_rows(rows: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
    """`out = Σ_u rows[u] @ W[u]`; rows from `kernel_rows`, W (kh, kw, C, O), out (N, height, width, O)."""
    kh, n, places, size = rows.shape
    w, out = w.reshape(kh, size, -1), out.reshape(n, places, -1)
    np.matmul(rows[0], w[0], out=out)
    for u in range(1, kh):
        out += rows[u] @ w[u]
