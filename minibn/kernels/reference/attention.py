"""Causal attention and rotary positions, in their plainest form."""

import math

from minibn.backend import Array, array_namespace, device


def causal_attention(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Attention of each position to itself and to the positions before it.

    In each head, with rows q, k, v (T, D),

        S = q kᵀ / √D        A_ij = exp S_ij / Σ_{l ≤ i} exp S_il for j ≤ i, else 0        y = A v

    Returns y, and A for `causal_attention_backward`. Query heads h R, …, h R + R - 1 share head h
    of k and v, R = H / G.

    Shapes: q, y (N, T, H, D), k and v (N, T, G, D), A (N, G, R, T, T).
    """
    xp = array_namespace(q)
    n, length, heads, size = q.shape
    rows, keys, values = by_head(q, k.shape[2]), by_head(k, k.shape[2]), by_head(v, k.shape[2])
    place = xp.arange(length, device=device(q))
    seen = place[:, None] >= place[None, :]
    never = xp.full((), -math.inf, dtype=q.dtype, device=device(q))
    scores = xp.where(seen, rows @ xp.matrix_transpose(keys) / math.sqrt(size), never)
    a = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    a = a / xp.sum(a, axis=-1, keepdims=True)
    return by_place(a @ values), a


def causal_attention_backward(dy: Array, q: Array, k: Array, v: Array, a: Array) -> tuple[Array, Array, Array]:
    """The gradients dq, dk and dv. In each head,

        dv = Aᵀ dy      dA = dy vᵀ      dS_ij = A_ij (dA_ij - Σ_l dA_il A_il)      dq = dS k / √D      dk = dSᵀ q / √D

    where query heads that share a head of k and v add to its gradient. Shapes as in
    `causal_attention`.
    """
    xp = array_namespace(dy)
    rows, keys, values, d = by_head(q, k.shape[2]), by_head(k, k.shape[2]), by_head(v, k.shape[2]), by_head(dy, k.shape[2])
    da = d @ xp.matrix_transpose(values)
    ds = a * (da - xp.sum(da * a, axis=-1, keepdims=True)) / math.sqrt(q.shape[3])
    dk = xp.sum(xp.matrix_transpose(ds) @ rows, axis=2, keepdims=True)
    dv = xp.sum(xp.matrix_transpose(a) @ d, axis=2, keepdims=True)
    return by_place(ds @ keys), by_place(dk), by_place(dv)


def by_head(x: Array, groups: int) -> Array:
    """(N, T, H, D) -> (N, G, H / G, T, D): matrices (T, D), one per head."""
    n, length, heads, size = x.shape
    return array_namespace(x).permute_dims(array_namespace(x).reshape(x, (n, length, groups, -1, size)), (0, 2, 3, 1, 4))


def by_place(x: Array) -> Array:
    """(N, G, R, T, D) -> (N, T, G R, D): the inverse of `by_head`."""
    n, groups, shared, length, size = x.shape
    return array_namespace(x).reshape(array_namespace(x).permute_dims(x, (0, 3, 1, 2, 4)), (n, length, groups * shared, size))


def rotate(x: Array, base: float) -> Array:
    """Rotary positions: at place t, the pair of channels (i, i + D/2) is turned by the angle `φ = t base^(-2 i / D)`:

        y_i = x_i cos φ - x_{i + D/2} sin φ        y_{i + D/2} = x_i sin φ + x_{i + D/2} cos φ

    Shapes: x, y (N, T, H, D), D even.
    """
    return _turn(x, base, 1)


def rotate_backward(dy: Array, base: float) -> Array:
    """A rotation's derivative is the rotation back: `rotate` by -φ."""
    return _turn(dy, base, -1)


def _turn(x, base, sign):
    xp, half = array_namespace(x), x.shape[3] // 2
    place = xp.arange(x.shape[1], dtype=xp.float64, device=device(x))
    channel = xp.arange(half, dtype=xp.float64, device=device(x))
    angle = place[:, None, None] * xp.exp(channel * (-math.log(base) / half))
    cos, sin = (xp.astype(f(angle), x.dtype) for f in (xp.cos, xp.sin))  # (T, 1, D/2)
    one, two = x[..., :half], x[..., half:]
    return xp.concat([one * cos - sign * two * sin, two * cos + sign * one * sin], axis=-1)
