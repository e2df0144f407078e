"""Normalisation for NumPy: `reference.moments`, `normalise` and its gradient, in chunks of rows or of images."""

import math

import numpy as np

from minibn.kernels import reference
from minibn.kernels.cpu.sums import add_products, add_rows
from minibn.kernels.threads import empty, map_chunks

BYTES = 2**21  # of a chunk: with less, threads wait for each other longer than they compute
WIDTH = 512  # numbers: an inner loop so long runs at full speed


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`reference.moments`, from sums about 0: `μ = Σ x / M,  σ² = Σ x² / M - μ²`.

    The subtraction costs at most four bits of σ² where `μ² <= 15 σ²`, which networks rarely leave.
    Where a set is beyond, the sums are computed again about the mean, by the corrected two-pass
    algorithm (Chan, Golub & LeVeque, 1983). In float32 the relative error of σ² is below 2e-5.
    """
    sets = _Sets(x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean, var = _moments_about(None, sets)
        if (mean * mean > 15 * var).any():
            rest, var = _moments_about(mean, sets)
            mean = mean + rest
        if x.dtype == np.float32 and not np.isfinite(var).all():
            mean, var = reference.moments(x.astype(np.float64))  # squares of float32 overflow long before the numbers do
        return mean.astype(x.dtype), var.astype(x.dtype)


def _moments_about(centre, sets):
    """`Σ d / M` and `Σ d² / M - (Σ d / M)²` of each set, with d = x - centre. None is a centre of 0."""
    wide = None if centre is None else sets.widen(centre)

    def sums(part):
        d = sets.rows[part] if wide is None else sets.rows[part] - wide[part[:1]]
        return add_rows(d), add_products(d, d)

    mean, square = map(sets.mean, sets.sums(sums))
    return mean, np.maximum(square - mean * mean, 0)


def normalise(x: np.ndarray, mean: np.ndarray, inverse: np.ndarray, gamma: np.ndarray | None,
              beta: np.ndarray | None) -> np.ndarray:
    """`reference.normalise`, as `y = scale x + shift`, one scale and one shift per channel.

    The rounding error is therefore proportional to |μ| / σ, as in PyTorch: about 2e-5 in float32
    where that is 100.
    """
    sets = _Sets(x)
    scale = inverse if gamma is None else inverse * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    scale, shift = sets.widen(scale), sets.widen(shift)
    y = empty(sets.rows.shape, x)

    def compute(part):
        np.multiply(sets.rows[part], scale[part[:1]], out=y[part])
        y[part] += shift[part[:1]]

    sets.map(compute)
    return y.reshape(x.shape)


def normalise_backward(dy: np.ndarray, x: np.ndarray, mean: np.ndarray, inverse: np.ndarray, gamma: np.ndarray | None,
                       fixed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`reference.normalise_backward`, with x̂ written out and sorted by what is one number per channel:

        dx = dy γ/σ - x slope + shift,    slope = (Σ dx̂ x̂ / M) / σ²,    shift = μ slope - (Σ dx̂ / M) / σ
        Σ dy x̂ = (Σ dy x - μ Σ dy) / σ

    The rounding error is proportional to |μ| / σ, as in `normalise`.
    """
    sets, d = _Sets(x), _Sets(dy).rows
    sum_dy, along = sets.sums(lambda part: (add_rows(d[part]), add_products(sets.rows[part], d[part])))
    along = (along - mean * sum_dy) * inverse  # Σ dy x̂ over the rows
    dgamma, dbeta = along.sum(axis=(0, 1)), sum_dy.sum(axis=(0, 1))
    gamma = np.ones_like(dgamma) if gamma is None else gamma
    scale = sets.widen(inverse * gamma)
    slope = sets.mean(along * gamma) * inverse * inverse
    shift = sets.widen(mean * slope - sets.mean(sum_dy * gamma) * inverse)
    slope = sets.widen(slope)
    dx = empty(d.shape, dy)

    def differentiate(part):
        np.multiply(d[part], scale[part[:1]], out=dx[part])
        if not fixed:
            dx[part] -= sets.rows[part] * slope[part[:1]]
            dx[part] += shift[part[:1]]

    sets.map(differentiate)
    return dx.reshape(x.shape), dgamma, dbeta


class _Sets:
    """x (B, R, G, S) seen as `rows` (B, R/k, k·G·S), whose last axis is long enough for fast loops.

    A part of it is an index of two slices. Where there is one block, its rows are shared between
    parts; otherwise each part has whole blocks. So `statistic[part[:1]]` is what belongs to a part,
    of a statistic (B, 1, k·G·S).
    """

    def __init__(self, x):
        blocks, rows, groups, size = x.shape
        self.shape = x.shape
        self.k = math.gcd(rows, max(1, WIDTH // (groups * size)))
        self.rows = x.reshape(blocks, rows // self.k, -1)

    def map(self, function):
        """`[function(part) for each part]`."""
        if len(self.rows) == 1:
            return map_chunks(lambda s: function((slice(None), s)), self.rows.shape[1], self.rows[0, 0].nbytes, BYTES)
        return map_chunks(lambda s: function((s, slice(None))), len(self.rows), self.rows[0].nbytes, BYTES)

    def sums(self, function):
        """Sums over the rows of each block, (B, 1, G, S), of what `function(part)` returns: a sequence of (b, k·G·S)."""
        found = []
        for parts in zip(*self.map(function), strict=True):
            whole = sum(parts[1:], start=parts[0]) if len(self.rows) == 1 else np.concatenate(parts)
            found.append(whole.reshape(len(whole), self.k, *self.shape[2:]).sum(axis=1, keepdims=True))
        return found

    def mean(self, sums):
        """Sums (B, 1, G, S) -> the mean of each set, (B, 1, G, 1)."""
        return sums.sum(axis=3, keepdims=True) / (self.shape[1] * self.shape[3])

    def widen(self, statistic):
        """(B, 1, G, 1 or S) -> (B, 1, k·G·S), to go with `rows`."""
        whole = np.broadcast_to(statistic, (len(statistic), self.k, *self.shape[2:]))
        return whole.reshape(len(statistic), 1, -1)
