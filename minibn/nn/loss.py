"""Losses: a number forward, the gradient in the scores backward.

The number is a 0-d array on the device of the scores (for NumPy, a float), so that a step of
training waits for no GPU. Labels in main memory are checked at once. On a GPU the check would have
to wait. There, one wrong label makes the loss and its gradient NaN. `training.fit` calls `check`
with all labels at its first step, which waits and says what is wrong.
"""

import math
from typing import Any, Protocol

from minibn import arguments, backend, kernels
from minibn.backend import Array, array_namespace, is_floating


class Loss(Protocol):
    """What training requires of a loss. If it also has `check(scores, labels)`, this is called once, with all labels."""

    def __call__(self, scores: Array, labels: Array, /) -> Array:
        """The loss, a 0-d array."""

    def backward(self) -> Array:
        """Its gradient in the scores."""


class _Loss:
    """`loss(scores, labels)`, then `loss.backward()`; each backward uses up one forward."""

    _gradient: Any = None

    def __call__(self, scores: Array, labels: Array) -> Array:
        arguments.array("scores", scores)
        arguments.array("labels", labels)
        arguments.same_library(type(self).__name__, "scores", arguments.library_of(scores), "the labels", labels)
        return self.forward(scores, labels)

    def forward(self, scores: Array, labels: Array) -> Array:
        """The loss, a 0-d array."""
        raise TypeError(f"{type(self).__name__} must define forward(scores, labels)")

    def backward(self) -> Array:
        """The gradient in the scores, of their shape."""
        if self._gradient is None:
            raise RuntimeError(f"{type(self).__name__}().backward was called before the loss was computed: every backward "
                               "needs a loss of its own")
        gradient, self._gradient = self._gradient, None
        return gradient

    def _check_scores(self, scores, dimensions):
        shape = tuple(scores.shape)
        if len(shape) != len(dimensions) or 0 in shape:
            raise ValueError(f"{type(self).__name__} needs scores of shape ({', '.join(dimensions)}), got {shape}; no axis "
                             "may be empty")
        if not is_floating(scores):
            raise TypeError(f"{type(self).__name__} needs scores of floating dtype, got {backend.dtype_name(scores)}")


class CrossEntropy(_Loss):
    """Mean cross-entropy of softmax probabilities:

        L = 1/N Σ_n (log Σ_k exp z_nk - z_{n, y_n})        dL/dz = (softmax(z) - onehot(y)) / N

    Shapes: logits z (N, K) of a floating dtype, labels y (N,) integers from 0 to K - 1. Sequences,
    with logits (N, T, K) and labels (N, T), count as N T rows.

    Raises:
        ValueError: a wrong shape, an empty batch, or a label out of range.
        TypeError: labels are not integers.
        RuntimeError: backward before the loss was computed.
    """

    def forward(self, logits: Array, labels: Array) -> Array:
        """The loss, a 0-d array."""
        self._check_scores(logits, ("N", *("…",) * (logits.ndim - 2), "K"))
        if tuple(labels.shape) != tuple(logits.shape[:-1]):
            raise ValueError(f"CrossEntropy needs one label for each of the {math.prod(logits.shape[:-1])} rows of logits, "
                             f"got {tuple(labels.shape)} for logits {tuple(logits.shape)}")
        if backend.is_on_host(labels):
            self.check(logits, labels)
        xp = array_namespace(logits, labels)
        rows = xp.reshape(logits, (-1, logits.shape[-1]))
        value, gradient = kernels.of(logits).cross_entropy(rows, xp.reshape(_integers(labels), (-1,)))
        self._gradient = xp.reshape(gradient, logits.shape)
        return value

    def check(self, logits: Array, labels: Array) -> None:
        """Raise, as above, unless `labels`, any number of them, are integers from 0 to K - 1; reads them."""
        labels, k = _integers(labels), logits.shape[-1]
        xp = array_namespace(labels)
        low, high = backend.read([xp.min(labels), xp.max(labels)])
        if low < 0 or high >= k:
            raise ValueError(f"CrossEntropy needs labels from 0 to {k - 1} for {k} classes, got {low:.0f} to {high:.0f}")


class Logistic(_Loss):
    """Mean logistic loss for labels -1 and +1:

        L = 1/N Σ_n log(1 + exp(-y_n s_n))        dL/ds_n = -y_n / (1 + exp(y_n s_n)) / N

    Shapes: scores s (N,), labels y (N,) of the values -1 and +1.

    Raises:
        ValueError: a wrong shape, an empty batch, or a label that is not -1 or +1.
        RuntimeError: backward before the loss was computed.
    """

    def forward(self, scores: Array, labels: Array) -> Array:
        """The loss, a 0-d array."""
        self._check_scores(scores, "N")
        if labels.shape != scores.shape:
            raise ValueError(f"Logistic needs labels of the scores' shape {tuple(scores.shape)}, got {tuple(labels.shape)}")
        if backend.is_on_host(labels):
            self.check(scores, labels)
        value, self._gradient = kernels.of(scores).logistic(scores, array_namespace(labels).astype(labels, scores.dtype))
        return value

    def check(self, scores: Array, labels: Array) -> None:
        """Raise, as above, unless `labels`, any number of them, are -1 and +1; reads them."""
        if not array_namespace(labels).all((labels == 1) | (labels == -1)):
            raise ValueError("Logistic needs labels -1 and +1; turn labels 0 and 1 into 2 * labels - 1")


def _integers(labels):
    """The labels as int64, which holds every class number, as uint8 does not."""
    xp = array_namespace(labels)
    if not xp.isdtype(labels.dtype, "integral"):
        raise TypeError(f"CrossEntropy needs integer labels, got {labels.dtype}")
    return xp.astype(labels, xp.int64, copy=False)
