"""Convolution for NumPy: `reference.correlate` and its gradients as matrix products of windows, in chunks of images."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minibn.kernels.reference import Pair, output_size, seen, taps
from minibn.kernels.threads import empty, map_chunks

BYTES = 2**21  # of windows in a chunk: enough for fast matrix products, few enough for the cache
FEW = 16  # pixels: of images no larger, one product of all is faster than one of each


def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: Pair, padding: Pair) -> np.ndarray:
    """`reference.correlate`, as `y = Σ_u rows(x)[u] @ W[u]` for each chunk of images: see `kernel_rows`."""
    height, width = output_size(x, w, stride, padding)
    y = empty((len(x), height, width, w.shape[3]), x)

    def convolve(s):
        multiply_rows(kernel_rows(x[s], w.shape[:2], stride, padding, height, width), w, y[s])
        if b is not None:
            y[s] += b

    map_chunks(convolve, len(x), x.itemsize * x.shape[1] * width * w.shape[1] * w.shape[2], BYTES)
    return y


def correlate_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: Pair,
                       padding: Pair) -> tuple[np.ndarray, np.ndarray]:
    """`reference.correlate_backward`, for each chunk of images by one of the two functions below."""
    backward = _backward_by_rows if stride == (1, 1) else _backward_by_patches
    if stride == (1, 1):
        numbers = x.shape[1] * x.shape[2] * w.shape[1] * w.shape[3]
    else:
        numbers = max(dy[0, ..., 0].size * w[..., 0].size, x[0].size)  # a large stride leaves more pixels out than it sees
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
    around = max(around[0], 0), max(around[1], 0)
    rows = kernel_rows(dy[:, top:, left:], (kh, kw), stride, around, height, width)
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
    rows = kernel_rows(x, (kh, kw), stride, padding, height, width)
    patches = rows.swapaxes(0, 1).swapaxes(1, 2).reshape(n * height * width, -1)
    dy = dy.reshape(-1, outputs)
    spread = (dy @ w.reshape(-1, outputs).T).reshape(n, height, width, kh, kw, channels)
    top, left = padding
    padded = np.zeros((n, x.shape[1] + 2 * top, x.shape[2] + 2 * left, channels), x.dtype)
    for u, v in taps(w):
        padded[seen(u, v, stride, height, width)] += spread[:, :, :, u, v]
    dx[...] = padded[:, top : top + dx.shape[1], left : left + dx.shape[2]]
    return (patches.T @ dy).reshape(w.shape)


def kernel_rows(x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, height: int, width: int) -> np.ndarray:
    """What each row u of a kernel sees: (kh, N, height·width, kw·C), of images (N, H, W, C) with zeros around them.

    `rows[u, n, (i, j)]` is window j of row i·s + u: see `windows_of_rows`.
    """
    (kh, kw), (sh, sw) = kernel, stride
    windows = windows_of_rows(np.ascontiguousarray(x), kw, sw, padding, width)
    image, row, window, number = windows.strides
    rows = as_strided(windows, (kh, len(x), height, *windows.shape[2:]), (row, image, sh * row, window, number))
    return rows.reshape(kh, len(x), height * width, -1)  # a view, unless the stride leaves rows out


def windows_of_rows(x: np.ndarray, kw: int, stride: int, padding: Pair, width: int) -> np.ndarray:
    """In each row of the padded images the first `width` windows of kw pixels: (N, H + 2·top, width, kw·C).

    Window j begins at pixel j·stride, counted from the padding on. Most windows see no padding, so
    one copy fills them all; the few at the borders are filled pixel by pixel.
    """
    (n, h, w, c), (top, left) = x.shape, padding
    if kw == stride == 1 and not any(padding):
        return x[:, :, :width]
    windows = empty((n, h + 2 * top, width, kw * c), x)
    windows[:, :top] = windows[:, top + h :] = 0
    inside = windows[:, top : top + h]
    first = min(-(-left // stride), width)  # windows first to end - 1 see no padding
    end = max((w + left - kw) // stride + 1, first)
    image, row, pixel, number = x.strides
    whole = inside[:, :, first:end]
    whole[...] = as_strided(x[:, :, first * stride - left :], whole.shape, (image, row, stride * pixel, number))
    for j in (*range(first), *range(end, width)):
        for v in range(kw):
            pixel = j * stride + v - left
            inside[:, :, j, v * c : (v + 1) * c] = x[:, :, pixel] if 0 <= pixel < w else 0
    return windows


def multiply_rows(rows: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
    """`out = Σ_u rows[u] @ W[u]`; rows from `kernel_rows`, W (kh, kw, C, O), out (N, height, width, O)."""
    kh, n, places, size = rows.shape
    w, out = w.reshape(kh, size, -1), out.reshape(n, places, -1)
    np.matmul(rows[0], w[0], out=out)
    for u in range(1, kh):
        out += rows[u] @ w[u]
