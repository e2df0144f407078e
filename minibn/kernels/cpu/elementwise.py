"""ReLU, sums of two arrays, pooling and the losses for NumPy: `reference` on each part of the first axis."""

from collections.abc import Sequence

import numpy as np

from minibn.kernels import reference
from minibn.kernels.threads import empty, map_chunks

BYTES = 2**20  # of a chunk


def relu(x: np.ndarray) -> np.ndarray:
    """`reference.relu`."""
    return _by_parts(lambda x, out: np.maximum(x, 0, out=out), x.shape, x)


def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`reference.relu_backward`."""
    return _by_parts(lambda dy, y, out: np.multiply(dy, y > 0, out=out), dy.shape, dy, y)


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`reference.add`."""
    return _by_parts(lambda x, y, out: np.add(x, y, out=out), x.shape, x, y)


def average_pool(x: np.ndarray, k: int) -> np.ndarray:
    """`reference.average_pool`."""
    return _by_parts(_assign(reference.average_pool, k), _pooled(x, k), x)


def average_pool_backward(dy: np.ndarray, shape: Sequence[int], k: int) -> np.ndarray:
    """`reference.average_pool_backward`."""
    return _by_parts(_assign(lambda dy: reference.average_pool_backward(dy, (len(dy), *shape[1:]), k)), shape, dy)


def max_pool(x: np.ndarray, k: int) -> np.ndarray:
    """`reference.max_pool`."""
    return _by_parts(_assign(reference.max_pool, k), _pooled(x, k), x)


def max_pool_backward(dy: np.ndarray, x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """`reference.max_pool_backward`."""
    return _by_parts(_assign(reference.max_pool_backward, k), x.shape, dy, x, y)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`reference.cross_entropy`; exp of a very negative number is 0, whatever `np.seterr` says of underflow."""
    with np.errstate(under="ignore"):
        return reference.cross_entropy(logits, labels)


def logistic(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`reference.logistic`; exp of a very negative number is 0, whatever `np.seterr` says of underflow."""
    with np.errstate(under="ignore"):
        return reference.logistic(scores, labels)


def _pooled(x, k):
    return len(x), x.shape[1] // k, x.shape[2] // k, x.shape[3]


def _assign(function, *arguments):
    """`function`, with its result written into `out`."""

    def write(*arrays, out):
        out[...] = function(*arrays, *arguments)

    return write


def _by_parts(function, shape, *arrays):
    """A new array of `shape`, each part of its first axis written by `function(*parts of arrays, out=part)`."""
    y = empty(shape, arrays[0])
    per_item = max(y.nbytes, *(a.nbytes for a in arrays)) // max(len(y), 1)
    map_chunks(lambda s: function(*(a[s] for a in arrays), out=y[s]), len(y), per_item, BYTES)
    return y
