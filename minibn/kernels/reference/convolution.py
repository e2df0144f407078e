"""Convolution, in its plainest form: one matrix product for each place of the kernel."""

from typing import TypeAlias

from minibn.backend import Array, array_namespace, device

Pair: TypeAlias = tuple[int, int]  # of numbers for (height, width)


def correlate(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair) -> Array:
    """`y[n, i, j] = b + Σ_{u, v} x[n, i·s + u - p, j·s + v - p] @ W[u, v]`, x being 0 outside.

    Shapes: x (N, H, W, C), W (kh, kw, C, O), b (O,) or None, y (N, OH, OW, O).
    """
    height, width = output_size(x, w, stride, padding)
    x = pad(x, padding)
    y = 0 if b is None else b
    for u, v in taps(w):
        y = y + x[seen(u, v, stride, height, width)] @ w[u, v, ...]
    return y


def correlate_backward(dy: Array, x: Array, w: Array, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """dx and dW: each pixel of dy goes back to the pixels that it was computed from.

    `dx[…] += dy @ W[u, v]ᵀ,  dW[u, v] = Σ_{n, i, j} x[…]ᵀ dy`, where […] are the pixels that tap (u, v) sees.
    """
    xp = array_namespace(dy)
    x = pad(x, padding)
    dx, dw = xp.zeros_like(x), xp.zeros_like(w)
    for u, v in taps(w):
        pixels = seen(u, v, stride, *dy.shape[1:3])
        dx[pixels] += dy @ w[u, v, ...].T
        dw[u, v, ...] = xp.tensordot(x[pixels], dy, axes=((0, 1, 2), (0, 1, 2)))
    top, left = padding
    return dx[:, top : dx.shape[1] - top, left : dx.shape[2] - left, :], dw


def taps(w: Array) -> list[Pair]:
    """Every place (u, v) of a kernel (kh, kw, C, O)."""
    return [(u, v) for u in range(w.shape[0]) for v in range(w.shape[1])]


def seen(u: int, v: int, stride: Pair, height: int, width: int) -> tuple[slice, ...]:
    """Index of the pixels that tap (u, v) sees as the kernel moves over (height, width) places."""
    (sh, sw), every = stride, slice(None)
    return every, slice(u, u + sh * (height - 1) + 1, sh), slice(v, v + sw * (width - 1) + 1, sw), every


def output_size(x: Array, w: Array, stride: Pair, padding: Pair) -> Pair:
    """`(size + 2 p - k) // s + 1` of height and width."""
    height, width = ((size + 2 * p - k) // s + 1
                     for size, p, k, s in zip(x.shape[1:3], padding, w.shape[:2], stride, strict=True))
    return height, width


def pad(x: Array, padding: Pair) -> Array:
    """Images (N, H, W, C) with `padding` rows above and below, and columns left and right, of zeros."""
    top, left = padding
    n, height, width, channels = x.shape
    y = array_namespace(x).zeros((n, height + 2 * top, width + 2 * left, channels), dtype=x.dtype, device=device(x))
    y[:, top : top + height, left : left + width, :] = x
    return y
