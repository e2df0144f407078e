"""Normalisation, in its plainest form."""

import math

from minibn.backend import Array, array_namespace


def moments(x: Array) -> tuple[Array, Array]:
    """`μ = Σ x / M,  σ² = Σ (x - μ)² / M` of each set of M numbers.

    Shapes: x (B, R, G, S): B blocks of R rows, G groups of S channels; a set is all rows of one
    block and all channels of one group. μ and σ² (B, 1, G, 1).
    """
    xp = array_namespace(x)
    mean = xp.mean(x, axis=(1, 3), keepdims=True)
    centred = x - mean
    rest = xp.mean(centred, axis=(1, 3), keepdims=True)  # rounding of the mean: 0 in exact arithmetic
    return mean + rest, xp.mean((centred - rest) * (centred - rest), axis=(1, 3), keepdims=True)


def inverse_std(mean: Array, var: Array, eps: float) -> Array:
    """`1 / √(σ² + ε)`; 0 where √(σ² + ε) is rounding error, at most 4 ulps of μ: there the set is constant.

    NaN where σ² has left float range, so that a loss shows it.
    """
    xp = array_namespace(var)
    std = xp.sqrt(var + eps)
    constant = std <= 4 * xp.finfo(var.dtype).eps * xp.abs(mean)
    inverse = 1 / xp.where(constant, xp.ones_like(std), std)
    inverse = xp.where(xp.isinf(std), xp.full_like(std, math.nan), inverse)
    return xp.where(constant, xp.zeros_like(std), inverse)


def normalise(x: Array, mean: Array, inverse: Array, gamma: Array | None, beta: Array | None) -> Array:
    """`x̂ = (x - μ) / √(σ² + ε),  y = γ x̂ + β`.

    Shapes: x, y (B, R, G, S); μ and the inverse of √(σ² + ε) (B, 1, G, 1); γ and β (G, S) or None.
    """
    y = (x - mean) * inverse
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def normalise_backward(dy: Array, x: Array, mean: Array, inverse: Array, gamma: Array | None,
                       fixed: bool) -> tuple[Array, Array, Array]:
    """`dx = (dx̂ - Σ dx̂ / M - x̂ Σ dx̂ x̂ / M) / √(σ² + ε),  dγ = Σ dy x̂,  dβ = Σ dy`, with `dx̂ = γ dy`.

    The sums with M run over a set, those of dγ and dβ over everything that shares a channel.
    `fixed`: μ and σ were constants, as in evaluation mode, so that `dx = dx̂ / √(σ² + ε)`. Shapes
    as in `normalise`.
    """
    xp = array_namespace(dy)
    xhat = (x - mean) * inverse
    dgamma, dbeta = xp.sum(dy * xhat, axis=(0, 1)), xp.sum(dy, axis=(0, 1))
    dxhat = dy if gamma is None else dy * gamma
    if not fixed:
        along = xp.mean(dxhat * xhat, axis=(1, 3), keepdims=True)
        dxhat = dxhat - xp.mean(dxhat, axis=(1, 3), keepdims=True) - xhat * along
    return dxhat * inverse, dgamma, dbeta


def rms_normalise(x: Array, gain: Array | None, eps: float) -> tuple[Array, Array]:
    """`x̂ = x / √(Σ x² / C + ε),  y = g x̂`, each sum over the last axis; returns y and the inverse root.

    Where all numbers of a row are 0 and ε is 0, y is 0. The inverse is NaN where Σ x² / C has left
    float range.

    Shapes: x, y (…, C); gain g (C,) or None; the inverse (…, 1).
    """
    xp = array_namespace(x)
    square = xp.mean(x * x, axis=-1, keepdims=True)
    inverse = inverse_std(xp.zeros_like(square), square, eps)
    y = x * inverse
    return y if gain is None else y * gain, inverse


def rms_normalise_backward(dy: Array, x: Array, inverse: Array, gain: Array | None) -> tuple[Array, Array]:
    """`dx = (dx̂ - x̂ Σ dx̂ x̂ / C) / √(Σ x² / C + ε),  dg = Σ dy x̂`, with `dx̂ = g dy`.

    The sum of dg runs over all axes but the last. Shapes as in `rms_normalise`.
    """
    xp = array_namespace(dy)
    xhat = x * inverse
    dgain = xp.sum(dy * xhat, axis=tuple(range(x.ndim - 1)))
    dxhat = dy if gain is None else dy * gain
    return (dxhat - xhat * xp.mean(dxhat * xhat, axis=-1, keepdims=True)) * inverse, dgain
