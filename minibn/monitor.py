"""Effective learning rate, angular update, and the equilibrium that weight decay leads them to: predicted and measured.

For scale-invariant weights only the direction w/|w| matters. A gradient step turns it and, being orthogonal to w, makes w
longer; weight decay makes it shorter; in time the two balance (van Laarhoven, 2017; Li, Lyu & Arora, 2020; Wan et al., 2021,
*Spherical Motion Dynamics*). With lr η, momentum γ, weight decay λ, and G the mean square of the gradient at |w| = 1,

    d|w|⁴/dt = -4 ηλ/(1-γ) |w|⁴ + 2 (η/(1-γ))² G

so `|w|⁴ -> ηG / (2λ(1-γ))`, within a time (1-γ) / (4ηλ), and from then on w turns by `sqrt(2ηλ / (1+γ))` a step. These hold for
ηλ well below (1 - √γ)² and gradients that are not correlated from step to step.

What is measured of weights is a 0-d float64 array where the weights are (of NumPy: a float), so that nothing waits for a GPU.
"""

import math
from collections.abc import Sequence

from minibn import backend
from minibn.backend import Array, array_namespace
from minibn.optim import Step, StepNumbers


def effective_lr(step: StepNumbers, weights: Sequence[Array]) -> Array:
    """`η / |w|^(k+1)`: the learning rate with which w/|w| moves (van Laarhoven, 2017; Hoffer et al., 2018).

    k is the degree of the update in the gradients, `step.degree`: `η / |w|²` for SGD, `η / |w|` for AdamW, Lion and Muon.
    If the step rescales the weights first, |w| is the norm after that.

    Momentum multiplies the total effect of a gradient by 1/(1-γ): divide by 1-γ to compare runs of different momentum.

    Args:
        step: `Step` or another optimiser's step object.
        weights: a list of arrays, the weights that are scale-invariant together, from before the step.

    Returns:
        0-d array; infinite for weights that are zero.
    """
    norm = backend.norm(weights) * getattr(step, "rescale", 1.0)
    xp = array_namespace(norm)
    safe = xp.where(norm == 0, xp.ones_like(norm), norm)
    return xp.where(norm == 0, xp.full_like(norm, math.inf), step.lr / safe ** (step.degree + 1))[()]


def angular_update(before: Sequence[Array], after: Sequence[Array]) -> Array:
    """Angle in radians between two lists of arrays, as one vector each: by how much a step turned the weights.

        2 atan2(|u - v|, |u + v|),   u, v the unit vectors

    which is accurate for the smallest angles, where arccos is not (Kahan). 0 if either is zero.

    Returns:
        0-d array.
    """
    p, q = backend.norm(before), backend.norm(after)
    xp = array_namespace(p, q)
    zero = (p == 0) | (q == 0)
    p, q = (xp.where(zero, xp.ones_like(norm), norm) for norm in (p, q))
    units = [(x / xp.astype(p, x.dtype), y / xp.astype(q, y.dtype)) for x, y in zip(before, after, strict=True)]
    angle = 2 * xp.atan2(backend.norm([u - v for u, v in units]), backend.norm([u + v for u, v in units]))
    return xp.where(zero, xp.zeros_like(angle), angle)[()]


def predicted_angular_update(lr: float, momentum: float, weight_decay: float) -> float:
    """`sqrt(2ηλ / (1+γ))` radians a step in equilibrium (Wan et al., 2021).

    Example:
        >>> round(predicted_angular_update(0.1, 0.9, 5e-4), 4)
        0.0073
    """
    _check(lr, momentum, weight_decay)
    return math.sqrt(2 * lr * weight_decay / (1 + momentum))


def predicted_angle_of(step: Step) -> float:
    """`predicted_angular_update` for a heavy-ball `Step` with weight decay; NaN for any other, which has no such equilibrium.

    Example:
        >>> from minibn.optim import Step
        >>> round(predicted_angle_of(Step(0.1, 0.9, 5e-4)), 4), predicted_angle_of(Step(0.1, 0.9))
        (0.0073, nan)
    """
    if not step.weight_decay or step.lookahead or step.shrink or step.momentum >= 1:
        return math.nan
    return predicted_angular_update(step.lr, step.momentum, step.weight_decay)


def predicted_norm(lr: float, momentum: float, weight_decay: float, gradient_square: float) -> float:
    """`|w| = (ηG / (2λ(1-γ)))^(1/4)` in equilibrium; G = `gradient_square` = mean of |∇L|² |w|², the same at every |w|.

    Raises:
        ValueError: weight decay is 0 (the norm then grows for ever), or a number is out of range.

    Example:
        >>> round(predicted_norm(0.1, 0.9, 5e-4, gradient_square=1.0), 3)  # (0.1 / 1e-4)^(1/4)
        5.623
    """
    _check(lr, momentum, weight_decay)
    if not weight_decay:
        raise ValueError("without weight decay there is no equilibrium: the norm grows for ever")
    return (lr * gradient_square / (2 * weight_decay * (1 - momentum))) ** 0.25


def time_to_equilibrium(lr: float, momentum: float, weight_decay: float) -> float:
    """`(1-γ) / (4ηλ)` steps, in which the distance of |w|⁴ from its equilibrium falls by a factor e; infinite if ηλ = 0.

    Example:
        >>> round(time_to_equilibrium(0.1, 0.9, 5e-4))
        500
    """
    _check(lr, momentum, weight_decay)
    product = lr * weight_decay
    return (1 - momentum) / (4 * product) if product else math.inf


def _check(lr, momentum, weight_decay):
    if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0):
        raise ValueError(f"needs lr and weight decay of at least 0 and momentum from 0 to below 1; got lr={lr}, "
                         f"momentum={momentum}, weight_decay={weight_decay}")
