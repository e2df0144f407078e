"""Transformers' operations for NumPy: `reference` on each part of the first axis, and an embedding's gradient by sorting.

exp of a very negative number is 0, whatever `np.seterr` says of underflow.
"""

import numpy as np

from minibn.kernels import reference
from minibn.kernels.threads import map_chunks

BYTES = 2**20  # of a chunk


def gelu(x: np.ndarray) -> np.ndarray:
    """`reference.gelu`."""
    return _join(_by_parts(reference.gelu, x))


def gelu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`reference.gelu_backward`."""
    return _join(_by_parts(reference.gelu_backward, dy, x))


def silu(x: np.ndarray) -> np.ndarray:
    """`reference.silu`."""
    return _join(_by_parts(reference.silu, x))


def silu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`reference.silu_backward`."""
    return _join(_by_parts(reference.silu_backward, dy, x))


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """`reference.swiglu`."""
    return _join(_by_parts(reference.swiglu, gate, up))


def swiglu_backward(dy: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`reference.swiglu_backward`."""
    dgate, dup = map(_join, zip(*_by_parts(reference.swiglu_backward, dy, gate, up), strict=True))
    return dgate, dup


def square(x: np.ndarray) -> np.ndarray:
    """`reference.square`."""
    return _join(_by_parts(reference.square, x))


def square_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`reference.square_backward`."""
    return _join(_by_parts(reference.square_backward, dy, x))


def rms_normalise(x: np.ndarray, gain: np.ndarray | None, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """`reference.rms_normalise`."""
    y, inverse = map(_join, zip(*_by_parts(lambda part: reference.rms_normalise(part, gain, eps), x), strict=True))
    return y, inverse


def rms_normalise_backward(dy: np.ndarray, x: np.ndarray, inverse: np.ndarray,
                           gain: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`reference.rms_normalise_backward`; the parts of dg are added in order."""
    parts = _by_parts(lambda dy, x, inverse: reference.rms_normalise_backward(dy, x, inverse, gain), dy, x, inverse)
    dx, dgain = zip(*parts, strict=True)
    return _join(dx), sum(dgain[1:], start=dgain[0])


def causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`reference.causal_attention`, of a few sequences at a time."""
    scores = q.shape[1] * q.shape[1] * q.shape[2] * q.itemsize
    y, a = map(_join, zip(*_by_parts(reference.causal_attention, q, k, v, per_item=scores), strict=True))
    return y, a


def causal_attention_backward(dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray,
                              a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`reference.causal_attention_backward`, of a few sequences at a time."""
    dq, dk, dv = map(_join, zip(*_by_parts(reference.causal_attention_backward, dy, q, k, v, a), strict=True))
    return dq, dk, dv


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    """`reference.rotate`."""
    return _join(_by_parts(lambda part: reference.rotate(part, base), x))


def rotate_backward(dy: np.ndarray, base: float) -> np.ndarray:
    """`reference.rotate_backward`."""
    return _join(_by_parts(lambda part: reference.rotate_backward(part, base), dy))


def embed_backward(dy: np.ndarray, indices: np.ndarray, rows: int) -> np.ndarray:
    """`reference.embed_backward`: places sorted by index, rows of dy that share one added in their order."""
    flat, d = indices.reshape(-1), dy.reshape(-1, dy.shape[-1])
    order = np.argsort(flat, kind="stable")
    order = order[(flat[order] >= 0) & (flat[order] < rows)]
    found, starts = np.unique(flat[order], return_index=True)
    dw = np.zeros((rows, d.shape[1]), d.dtype)
    if len(found):
        dw[found] = np.add.reduceat(d[order], starts, axis=0)
    return dw


def _by_parts(function, *arrays, per_item=0):
    """`[function(*parts of arrays)]` for each part of the first axis; `per_item`: bytes of one item inside `function`."""

    def compute(part):
        with np.errstate(under="ignore"):
            return function(*(a[part] for a in arrays))

    per_item = max(per_item, *(a[:1].nbytes for a in arrays))
    return map_chunks(compute, len(arrays[0]), per_item, BYTES)


def _join(parts):
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
