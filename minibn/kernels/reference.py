"""Every operation in its plainest form: whole arrays, no chunks, no threads; the equation is the code.

This is the file to read, and to step through inside `minibn.plain()`. The other implementations compute the same
numbers faster and are tested against it. It uses names of the array API standard only, so it runs on every library.

`f_backward` is given dy, the gradient of the loss with respect to the output of `f`, and returns the gradients with
respect to the inputs of `f`. Arrays are channels last; sizes that come in pairs are (height, width).
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from minibn.backend import Array, array_namespace, device

Pair: TypeAlias = tuple[int, int]


def affine(x: Array, w: Array, b: Array | None) -> Array:
    """`y = x W + b`; x (N, in), W (in, out), b (out,) or None, y (N, out)."""
    return x @ w if b is None else x @ w + b


def affine_backward(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """`dx = dy Wᵀ,  dW = xᵀ dy,  db = Σ_n dy_n`."""
    return dy @ w.T, x.T @ dy, sum_rows(dy)


def sum_rows(x: Array) -> Array:
    """Sum over all axes but the last: (…, C) -> (C,)."""
    return array_namespace(x).sum(x, axis=tuple(range(x.ndim - 1)))


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


def moments(x: Array) -> tuple[Array, Array]:
    """`μ = Σ x / M,  σ² = Σ (x - μ)² / M` of each set of M numbers.

    Shapes: x (B, R, G, S): B blocks of R rows, G groups of S channels; a set is all rows of one block and all channels
    of one group. μ and σ² (B, 1, G, 1).
    """
    xp = array_namespace(x)
    mean = xp.mean(x, axis=(1, 3), keepdims=True)
    centred = x - mean
    rest = xp.mean(centred, axis=(1, 3), keepdims=True)  # rounding of the mean: 0 in exact arithmetic
    return mean + rest, xp.mean((centred - rest) * (centred - rest), axis=(1, 3), keepdims=True)


def inverse_std(mean: Array, var: Array, eps: float) -> Array:
    """`1 / √(σ² + ε)`; 0 where √(σ² + ε) is rounding error, at most 4 ulps of μ: there the set is constant.

    NaN where σ² has left float range, so that a loss shows it.
    """
    xp = array_namespace(var)
    std = xp.sqrt(var + eps)
    constant = std <= 4 * xp.finfo(var.dtype).eps * xp.abs(mean)
    inverse = 1 / xp.where(constant, xp.ones_like(std), std)
    inverse = xp.where(xp.isinf(std), xp.full_like(std, math.nan), inverse)
    return xp.where(constant, xp.zeros_like(std), inverse)


def normalise(x: Array, mean: Array, inverse: Array, gamma: Array | None, beta: Array | None) -> Array:
    """`x̂ = (x - μ) / √(σ² + ε),  y = γ x̂ + β`.

    Shapes: x, y (B, R, G, S); μ and the inverse of √(σ² + ε) (B, 1, G, 1); γ and β (G, S) or None.
    """
    y = (x - mean) * inverse
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def normalise_backward(dy: Array, x: Array, mean: Array, inverse: Array, gamma: Array | None,
                       fixed: bool) -> tuple[Array, Array, Array]:
    """`dx = (dx̂ - Σ dx̂ / M - x̂ Σ dx̂ x̂ / M) / √(σ² + ε),  dγ = Σ dy x̂,  dβ = Σ dy`, with `dx̂ = γ dy`.

    The sums with M run over a set, those of dγ and dβ over everything that shares a channel. `fixed`: μ and σ were
    constants, as in evaluation mode, so that `dx = dx̂ / √(σ² + ε)`. Shapes as in `normalise`.
    """
    xp = array_namespace(dy)
    xhat = (x - mean) * inverse
    dgamma, dbeta = xp.sum(dy * xhat, axis=(0, 1)), xp.sum(dy, axis=(0, 1))
    dxhat = dy if gamma is None else dy * gamma
    if not fixed:
        along = xp.mean(dxhat * xhat, axis=(1, 3), keepdims=True)
        dxhat = dxhat - xp.mean(dxhat, axis=(1, 3), keepdims=True) - xhat * along
    return dxhat * inverse, dgamma, dbeta


def relu(x: Array) -> Array:
    """`y = max(x, 0)`."""
    return array_namespace(x).maximum(x, _zero(x))


def relu_backward(dy: Array, y: Array) -> Array:
    """`dx = dy where y > 0, else 0`."""
    return dy * array_namespace(y).astype(y > 0, dy.dtype)


def add(x: Array, y: Array) -> Array:
    """`x + y`, of one shape."""
    return x + y


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


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """`L = 1/N Σ_n (log Σ_k exp z_nk - z_{n, y_n})` and `dL/dz = (softmax(z) - onehot(y)) / N`.

    The largest logit of each row is subtracted first, so no exponential overflows. A label that is not from 0 to K - 1
    makes the loss and its row of the gradient NaN.

    Shapes: logits z (N, K), labels y (N,) integers; L 0-d, dL/dz (N, K).
    """
    xp = array_namespace(logits, labels)
    n, k = logits.shape
    onehot = xp.astype(labels[:, None] == xp.arange(k, dtype=labels.dtype, device=device(labels)), logits.dtype)
    onehot = xp.where(xp.any(onehot > 0, axis=1, keepdims=True), onehot, xp.full_like(onehot, math.nan))
    z = logits - xp.max(logits, axis=1, keepdims=True)
    total = xp.sum(xp.exp(z), axis=1)
    right = xp.sum(xp.where(onehot == 0, _zero(z), onehot * z), axis=1)
    return xp.mean(xp.log(total) - right), (xp.exp(z) / total[:, None] - onehot) / n


def logistic(scores: Array, labels: Array) -> tuple[Array, Array]:
    """`L = 1/N Σ_n log(1 + exp(-y_n s_n))` and `dL/ds_n = -y_n / (1 + exp(y_n s_n)) / N`.

    Both are written with `logaddexp(0, ·)`, so no exponential overflows. A label that is not -1 or +1 gives NaN.

    Shapes: scores s (N,), labels y (N,) of the scores' dtype.
    """
    xp = array_namespace(scores)
    y = xp.where(labels * labels == 1, labels, xp.full_like(labels, math.nan))
    margin, zero = y * scores, xp.zeros_like(scores)
    return xp.mean(xp.logaddexp(zero, -margin)), -y * xp.exp(-xp.logaddexp(zero, margin)) / scores.shape[0]


def norm(arrays: Sequence[Array]) -> Array:
    """`√(Σ x²)` over all numbers of a list of arrays: a 0-d float64 array where they are (for NumPy, a float).

    Squares are taken in float64, so that float32 weights of 1e38 do not overflow. Arrays 2^k times as large have a norm
    of exactly 2^k times. Of no arrays it is 0.
    """
    squares = []
    for x in arrays:
        xp = array_namespace(x)
        wide = xp.astype(xp.reshape(x, (-1,)), xp.float64)
        squares.append(xp.vecdot(wide, wide))
    return xp.sqrt(sum(squares[1:], start=squares[0])) if squares else 0.0


def joined(arrays: Sequence[Array]) -> list[Array]:
    """The same numbers in as few arrays as suits the library; here, the list itself."""
    return list(arrays)


def zeros_like(arrays: Sequence[Array]) -> list[Array]:
    """Zeros of the shape, dtype and device of each array."""
    return [array_namespace(x).zeros_like(x) for x in arrays]


def each(function: Callable[..., tuple[Array, ...]], *lists: Sequence[Array]) -> list[list[Array]]:
    """`function` of the first array of every list, of the second, …; the results as lists likewise.

    The function must be elementwise: a number of its results depends on the numbers at that place only. Then it makes
    no difference whether it is given array by array, or many at once as one long array.
    """
    found = [function(*arrays) for arrays in zip(*lists, strict=True)]
    return [list(results) for results in zip(*found, strict=True)]


def _zero(x: Array) -> Array:
    return array_namespace(x).zeros((), dtype=x.dtype, device=device(x))
