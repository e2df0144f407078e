"""Losses: a number forward, the gradient in the scores backward.

The number is a 0-d array where the scores are (of NumPy: a float), so that a step of training waits for no GPU. Labels in main
memory are checked at once. On a GPU that would be such a wait: there one wrong label makes loss and gradient NaN; `check`, which
`training.fit` calls with all labels at its first step, waits and says what is wrong.
"""

import math
from typing import Protocol

from minibn import backend
from minibn.backend import Array, array_namespace, device
from minibn.nn.module import Module


class Loss(Protocol):
    """What training asks of a loss. If it has `check(scores, labels)` too, that is called once, with all labels."""

    def __call__(self, scores: Array, labels: Array, /) -> Array:
        """The loss, a 0-d array."""

    def backward(self) -> Array:
        """Its gradient in the scores."""


class CrossEntropy(Module):
    """Mean cross-entropy of softmax probabilities:

        L = 1/N Σ_n (log Σ_k exp z_nk - z_{n, y_n})        dL/dz = (softmax(z) - onehot(y)) / N

    The largest logit of each row is taken out of the logarithm first, so no exponential overflows.

    Shapes: logits z (N, K) of a floating dtype, labels y (N,) integers from 0 to K - 1.

    Raises:
        ValueError: a wrong shape, an empty batch, or a label out of range.
        TypeError: labels are not integers.
        RuntimeError: backward before the loss was computed.
    """

    def __call__(self, logits: Array, labels: Array) -> Array:
        return self.forward(logits, labels)

    def forward(self, logits: Array, labels: Array) -> Array:
        """The loss, a 0-d array."""
        xp = array_namespace(logits, labels)
        self._check_input(logits, ("N", "K"))
        n, k = logits.shape
        if tuple(labels.shape) != (n,):
            raise ValueError(f"CrossEntropy needs one label for each of the {n} rows of logits, got {tuple(labels.shape)}")
        if backend.is_on_host(labels):
            self.check(logits, labels)
        labels = self._integers(labels)
        z = logits - xp.max(logits, axis=1, keepdims=True)
        exponentials = xp.exp(z)
        total = xp.sum(exponentials, axis=1, keepdims=True)
        valid = (labels >= 0) & (labels < k)
        total = xp.where(valid[:, None], total, xp.full_like(total, math.nan))
        onehot = labels[:, None] == xp.arange(k, dtype=labels.dtype, device=device(labels))
        self._keep(exponentials / total, xp.astype(onehot, logits.dtype))
        right = xp.sum(xp.where(onehot, z, xp.zeros_like(z)), axis=1)
        return xp.mean(xp.log(total[:, 0]) - right)

    def check(self, logits: Array, labels: Array) -> None:
        """Raise, as above, unless `labels`, any number of them, are integers from 0 to K - 1; reads them."""
        labels, k = self._integers(labels), logits.shape[1]
        xp = array_namespace(labels)
        low, high = backend.read([xp.min(labels), xp.max(labels)])
        if low < 0 or high >= k:
            raise ValueError(f"CrossEntropy needs labels from 0 to {k - 1} for {k} classes, got {low:.0f} to {high:.0f}")

    def _integers(self, labels):
        """The labels as int64, which holds every class number, as uint8 does not."""
        xp = array_namespace(labels)
        if not xp.isdtype(labels.dtype, "integral"):
            raise TypeError(f"CrossEntropy needs integer labels, got {labels.dtype}")
        return xp.astype(labels, xp.int64, copy=False)

    def backward(self) -> Array:
        """dL/dlogits, (N, K)."""
        probabilities, onehot = self._take(None)
        return (probabilities - onehot) / probabilities.shape[0]


class Logistic(Module):
    """Mean logistic loss for labels -1 and +1:

        L = 1/N Σ_n log(1 + exp(-y_n s_n))        dL/ds_n = -y_n / (1 + exp(y_n s_n)) / N

    Both written with `logaddexp(0, ·)`, so no exponential overflows.

    Shapes: scores s (N,), labels y (N,) of the values -1 and +1.

    Raises:
        ValueError: a wrong shape, an empty batch, or a label that is not -1 or +1.
        RuntimeError: backward before the loss was computed.
    """

    def __call__(self, scores: Array, labels: Array) -> Array:
        return self.forward(scores, labels)

    def forward(self, scores: Array, labels: Array) -> Array:
        """The loss, a 0-d array."""
        xp = array_namespace(scores, labels)
        self._check_input(scores, ("N",))
        if labels.shape != scores.shape:
            raise ValueError(f"Logistic needs labels of the scores' shape {tuple(scores.shape)}, got {tuple(labels.shape)}")
        if backend.is_on_host(labels):
            self.check(scores, labels)
        y = xp.astype(labels, scores.dtype)
        y = xp.where(y * y == 1, y, xp.full_like(y, math.nan))
        margin = y * scores
        self._keep(y, margin)
        return xp.mean(xp.logaddexp(xp.zeros_like(margin), -margin))

    def check(self, scores: Array, labels: Array) -> None:
        """Raise, as above, unless `labels`, any number of them, are -1 and +1; reads them."""
        if not array_namespace(labels).all((labels == 1) | (labels == -1)):
            raise ValueError("Logistic needs labels -1 and +1; turn labels 0 and 1 into 2 * labels - 1")

    def backward(self) -> Array:
        """dL/dscores, (N,)."""
        y, margin = self._take(None)
        xp = array_namespace(margin)
        return -y * xp.exp(-xp.logaddexp(xp.zeros_like(margin), margin)) / margin.shape[0]
