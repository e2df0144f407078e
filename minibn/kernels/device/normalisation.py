"""Normalisation on a GPU: sums over rows as matrix products, and everything between them fused."""

import math

from minibn.backend import Array, array_namespace
from minibn.kernels.device.fusion import constant, fused
from minibn.kernels.device.sums import over_rows


def moments(x: Array) -> tuple[Array, Array]:
    """`reference.moments`, by the corrected two-pass algorithm (Chan, Golub & LeVeque, 1983).

    A first mean m is subtracted, and what is left of the mean corrects both moments:
    `μ = m + Σ (x - m) / M,  σ² = Σ (x - m)² / M - (μ - m)²`. Here m is the mean of a sixteenth of
    the rows. Since these are part of the set, `(m - μ)² <= 15 σ²`, so that the correction costs no
    more than four bits of σ². `kernels.cpu.moments` looks at the result and decides whether it
    needs a second pass, which would make a GPU wait.
    """
    rows, size = -(-x.shape[1] // 16), float(x.shape[1] * x.shape[3])
    first = _over_groups(over_rows(x[:, :rows, ...])) / float(rows * x.shape[3])
    centred, square = _centre(x, first)
    rest, square = _over_groups(over_rows(centred)), _over_groups(over_rows(square))
    return _correct(first, rest, square, 1 / size, constant(0.0, x))


@fused
def _centre(xp, x, mean):
    return x - mean, (x - mean) * (x - mean)


@fused
def _correct(xp, first, rest, square, share, zero):
    return first + rest * share, xp.maximum(square * share - (rest * share) * (rest * share), zero)


def inverse_std(mean: Array, var: Array, eps: float) -> Array:
    """`reference.inverse_std`."""
    ulps = 4 * float(array_namespace(var).finfo(var.dtype).eps)
    return _inverse_std(mean, var, eps, ulps, *(constant(number, var) for number in (0.0, 1.0, math.nan)))


@fused
def _inverse_std(xp, mean, var, eps, ulps, zero, one, nan):
    std = xp.sqrt(var + eps)
    constant_set = std <= ulps * xp.abs(mean)
    inverse = one / xp.where(constant_set, one, std)
    return xp.where(constant_set, zero, xp.where(xp.isinf(std), nan, inverse))


def normalise(x: Array, mean: Array, inverse: Array, gamma: Array | None, beta: Array | None) -> Array:
    """`reference.normalise`."""
    return _normalise(x, mean, inverse, _wide(gamma), _wide(beta))


@fused
def _normalise(xp, x, mean, inverse, gamma, beta):
    y = (x - mean) * inverse
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def normalise_backward(dy: Array, x: Array, mean: Array, inverse: Array, gamma: Array | None,
                       fixed: bool) -> tuple[Array, Array, Array]:
    """`reference.normalise_backward`."""
    gamma, size = _wide(gamma), float(x.shape[1] * x.shape[3])
    sum_dy, along = over_rows(dy), over_rows(_times_normalised(dy, x, mean, inverse))
    if fixed:
        dx = _times(dy, gamma, inverse)
    else:
        means = [_over_groups(_times(total, gamma, None)) for total in (sum_dy, along)] if x.shape[3] > 1 else [sum_dy, along]
        dx = _differentiate(dy, x, mean, inverse, gamma, None if x.shape[3] > 1 else gamma, *means, 1 / size)
    return dx, _over_blocks(along), _over_blocks(sum_dy)


@fused
def _times_normalised(xp, dy, x, mean, inverse):
    return dy * ((x - mean) * inverse)


@fused
def _times(xp, x, gamma, inverse):
    x = x if gamma is None else x * gamma
    return x if inverse is None else x * inverse


@fused
def _differentiate(xp, dy, x, mean, inverse, gamma, gamma_of_sums, sum_dy, along, share):
    xhat = (x - mean) * inverse
    dxhat = dy if gamma is None else dy * gamma
    back = sum_dy + xhat * along
    back = back if gamma_of_sums is None else back * gamma_of_sums
    return (dxhat - back * share) * inverse


def _wide(parameter):
    """γ or β (G, S) -> (1, 1, G, S)."""
    return None if parameter is None else parameter[None, None, ...]


def _over_groups(sums):
    """(B, 1, G, S) -> (B, 1, G, 1)."""
    return array_namespace(sums).sum(sums, axis=3, keepdims=True) if sums.shape[3] > 1 else sums


def _over_blocks(sums):
    """(B, 1, G, S) -> (G, S)."""
    xp = array_namespace(sums)
    return xp.sum(sums, axis=(0, 1)) if sums.shape[0] > 1 else xp.reshape(sums, sums.shape[2:])
