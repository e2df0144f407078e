"""Rows of a table, chosen by integers, in their plainest form."""

import math

from minibn.backend import Array, array_namespace, device


def embed(indices: Array, table: Array) -> Array:
    """`y[…] = W[indices[…]]`; NaN where an index is not from 0 to V - 1.

    Shapes: indices (…) integers, table W (V, C), y (…, C).
    """
    xp = array_namespace(indices, table)
    flat = xp.reshape(indices, (-1,))
    known = (flat >= 0) & (flat < table.shape[0])
    y = xp.take(table, xp.where(known, flat, xp.zeros_like(flat)), axis=0)
    nan = xp.full((), math.nan, dtype=table.dtype, device=device(table))
    return xp.reshape(xp.where(known[:, None], y, nan), (*indices.shape, table.shape[1]))


def embed_backward(dy: Array, indices: Array, rows: int) -> Array:
    """`dW = onehot(indices)ᵀ dy`: row v is the sum of dy over the places whose index is v. W has `rows` = V rows.

    A product with zeros and ones, rather than additions in any order, so the result is the same in
    every run. It needs an array of (number of indices) x V.
    """
    xp = array_namespace(dy, indices)
    every = xp.arange(rows, dtype=indices.dtype, device=device(indices))
    onehot = xp.astype(every[:, None] == xp.reshape(indices, (1, -1)), dy.dtype)
    return onehot @ xp.reshape(dy, (-1, dy.shape[-1]))
