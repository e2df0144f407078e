"""Linear maps and sums, in their plainest form."""

from collections.abc import Sequence

from minibn.backend import Array, array_namespace


def affine(x: Array, w: Array, b: Array | None) -> Array:
    """`y = x W + b`; x (N, in), W (in, out), b (out,) or None, y (N, out)."""
    return x @ w if b is None else x @ w + b


def affine_backward(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """`dx = dy Wᵀ,  dW = xᵀ dy,  db = Σ_n dy_n`."""
    return dy @ w.T, x.T @ dy, sum_rows(dy)


def sum_rows(x: Array) -> Array:
    """Sum over all axes but the last: (…, C) -> (C,)."""
    return array_namespace(x).sum(x, axis=tuple(range(x.ndim - 1)))


def add(x: Array, y: Array) -> Array:
    """`x + y`, of one shape."""
    return x + y


def norm(arrays: Sequence[Array]) -> Array:
    """`√(Σ x²)` over all numbers of a list of arrays: a 0-d float64 array where they are (for NumPy, a float).

    Squares are taken in float64, so that float32 weights of 1e38 do not overflow. Arrays 2^k times
    as large have a norm of exactly 2^k times. Of no arrays it is 0.
    """
    squares = []
    for x in arrays:
        xp = array_namespace(x)
        wide = xp.astype(xp.reshape(x, (-1,)), xp.float64)
        squares.append(wide @ wide)
    return xp.sqrt(sum(squares[1:], start=squares[0])) if squares else 0.0
