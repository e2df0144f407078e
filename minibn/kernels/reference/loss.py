"""Losses and their gradients, in their plainest form."""

import math

from minibn.backend import Array, array_namespace, device
from minibn.kernels.reference.activation import zero


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """`L = 1/N Σ_n (log Σ_k exp z_nk - z_{n, y_n})` and `dL/dz = (softmax(z) - onehot(y)) / N`.

    The largest logit of each row is subtracted first, so no exponential overflows. A label that is
    not from 0 to K - 1 makes the loss and its row of the gradient NaN.

    Shapes: logits z (N, K), labels y (N,) integers; L 0-d, dL/dz (N, K).
    """
    xp = array_namespace(logits, labels)
    n, k = logits.shape
    onehot = xp.astype(labels[:, None] == xp.arange(k, dtype=labels.dtype, device=device(labels)), logits.dtype)
    onehot = xp.where(xp.any(onehot > 0, axis=1, keepdims=True), onehot, xp.full_like(onehot, math.nan))
    z = logits - xp.max(logits, axis=1, keepdims=True)
    total = xp.sum(xp.exp(z), axis=1)
    right = xp.sum(onehot * xp.where(onehot == 0, zero(z), z), axis=1)  # a logit of another class may be -inf
    return xp.mean(xp.log(total) - right), (xp.exp(z) / total[:, None] - onehot) / n


def logistic(scores: Array, labels: Array) -> tuple[Array, Array]:
    """`L = 1/N Σ_n log(1 + exp(-y_n s_n))` and `dL/ds_n = -y_n / (1 + exp(y_n s_n)) / N`.

    Both are written with `logaddexp(0, ·)`, so no exponential overflows. A label that is not -1 or
    +1 gives NaN.

    Shapes: scores s (N,), labels y (N,) of the scores' dtype.
    """
    xp = array_namespace(scores)
    y = xp.where(labels * labels == 1, labels, xp.full_like(labels, math.nan))
    margin, zero = y * scores, xp.zeros_like(scores)
    return xp.mean(xp.logaddexp(zero, -margin)), -y * xp.exp(-xp.logaddexp(zero, margin)) / scores.shape[0]
