"""Effective learning rate, angle per step, and their equilibrium under weight decay: predicted and measured.

For scale-invariant weights only the direction w/|w| matters. A gradient step turns w and, since it
is orthogonal to w, makes w longer. Weight decay makes w shorter. In time the two balance (van
Laarhoven, 2017; Li, Lyu & Arora, 2020; Wan et al., 2021, *Spherical Motion Dynamics*; Kosson et
al., 2024, *Rotational Equilibrium*).

**One formula for all optimisers.** Let each step be w <- (1 - δ) w - η u, with updates of the size
|u| = U / |w|^k, k the degree of the update (1 for SGD, 0 for the others), and let D = 1 + 2 Σ_j
ρ_j, where ρ_j is the correlation of updates j steps apart. Averaged over many steps, each step of
decay reduces |w|² by 2δ|w|², and each update increases it by η²|u|²D. They balance where

    |w|^(k+1) = η U √(D / (2δ))        angle per step  η |u| / |w| = √(2δ / D)

SGD with L2 decay and momentum has δ = ηλ/(1-γ), decoupled decay has δ = ηλ. An average of
independent gradients with the factor β (momentum, Adam's mean) has D = (1+β)/(1-β). So SGD turns by
√(2ηλ/(1+γ)) per step, AdamW by √(2ηλ (1-β1)/(1+β1)). The distance of |w|^(2k+2) from its
equilibrium decays as exp(-2(k+1)δt).

Assumptions: gradients that are independent from step to step, of no preferred direction, orthogonal
to w, with a size proportional to 1/|w|; δD well below 1; for AdamW, averages of squares much
shorter than 1/δ steps.

Measurements of weights are 0-d float64 arrays on the weights' device (floats, for NumPy), so taking
them never waits for a GPU.
"""

import math
from collections.abc import Sequence

from minibn import arguments, kernels
from minibn.backend import Array, array_namespace
from minibn.optim import AdamStep, LionStep, MuonStep, Step, StepNumbers


def effective_lr(step: StepNumbers, weights: Sequence[Array]) -> Array:
    """`η / |w|^(k+1)`: the learning rate with which w/|w| moves (van Laarhoven, 2017; Hoffer et al., 2018).

    k is the degree of the update in the gradients, `step.degree`: `η / |w|²` for SGD, `η / |w|` for
    AdamW, Lion and Muon. If the step rescales the weights first, |w| is the norm after that.

    Momentum multiplies the total effect of a gradient by 1/(1-γ): divide by 1-γ to compare runs of
    different momentum.

    Args:
        step: `Step` or another optimiser's step object.
        weights: a list of arrays, the weights that are scale-invariant together, from before the
            step.

    Returns:
        0-d array; infinite for weights that are zero.
    """
    return _effective_lr(step, kernels.norm(weights))


def _effective_lr(step, norm):
    norm = norm * getattr(step, "rescale", 1.0)
    xp = array_namespace(norm)
    safe = xp.where(norm == 0, xp.ones_like(norm), norm)
    return xp.where(norm == 0, xp.full_like(norm, math.inf), step.lr / safe ** (step.degree + 1))[()]


def angular_update(before: Sequence[Array], after: Sequence[Array]) -> Array:
    """Angle in radians between two lists of arrays, as one vector each: by how much a step turned the weights.

        2 atan2(|u - v|, |u + v|),   u, v the unit vectors

    which is accurate for the smallest angles, where arccos is not (Kahan). The angle is 0 if either
    vector is zero.

    Returns:
        0-d array.
    """
    return _angle(before, after, kernels.norm(before), kernels.norm(after))


def _angle(before, after, p, q):
    xp = array_namespace(p, q)
    zero = (p == 0) | (q == 0)
    p, q = (xp.where(zero, xp.ones_like(norm), norm) for norm in (p, q))
    units = [(x / xp.astype(p, x.dtype), y / xp.astype(q, y.dtype)) for x, y in zip(before, after, strict=True)]
    angle = 2 * xp.atan2(kernels.norm([u - v for u, v in units]), kernels.norm([u + v for u, v in units]))
    return xp.where(zero, xp.zeros_like(angle), angle)[()]


def measure(step: StepNumbers, before: Sequence[Array], after: Sequence[Array]) -> tuple[Array, Array, Array]:
    """(|w| after the step, `effective_lr`, `angular_update`), each norm taken once.

    Args:
        step: the step object of the update.
        before, after: the weights from before and after it, two lists of arrays.
    """
    before, after = kernels.of(before[0]).joined(before), kernels.of(after[0]).joined(after)
    p, q = kernels.norm(before), kernels.norm(after)
    return q, _effective_lr(step, p), _angle(before, after, p, q)


def predicted_angular_update(lr: float, momentum: float, weight_decay: float) -> float:
    """The angle per step of SGD with L2 decay in equilibrium, `√(2ηλ / (1+γ))` radians (Wan et al., 2021).

    Example:
        >>> round(predicted_angular_update(0.1, 0.9, 5e-4), 4)
        0.0073
    """
    lr, momentum, weight_decay = _check(lr, momentum, weight_decay)
    return math.sqrt(2 * lr * weight_decay / (1 + momentum))


def shrink_per_step(step: StepNumbers) -> float:
    """δ, the fraction by which weight decay shrinks the weights per step, once the velocity is in equilibrium.

    ηλ for AdamW, Lion and Muon. For SGD `shrink` or ηλ/(1-γ); NaN if it has both, or lookahead, or
    γ >= 1, for which there is no formula here.
    """
    if not isinstance(step, Step):
        return step.shrink
    if step.lookahead or step.momentum >= 1 or (step.weight_decay and step.shrink):
        return math.nan
    return step.shrink or step.lr * step.weight_decay / (1 - step.momentum)


def update_correlation(step: StepNumbers) -> float:
    """D = 1 + 2 Σ_j ρ_j of the updates, if gradients are independent from step to step.

        SGD (momentum γ), AdamW (β1)    (1 + β) / (1 - β)
        Lion                            1 + (4/π) Σ_j arcsin(ρ_j), with ρ_j = ρ_1 β2^(j-1)
        signSGD (Lion with β1 = 0)      1
        Muon                            c / s², s² = (1-γ)² ((1+γ)² + γ⁴/(1-γ²))

    For Lion, ρ_j are the correlations of β1 m + (1 - β1) g. If two normal variables have the
    correlation ρ, their signs have the correlation (2/π) arcsin(ρ).

    For Muon, s² is the sum of the squared weights of Nesterov's average. c = 0.755 for γ of at
    least 0.9, measured on matrices of noise, 40 by 50: an orthogonal matrix changes faster than the
    average from which it is made. NaN for 0 < γ < 0.9.
    """
    if isinstance(step, LionStep):
        b1, b2 = step.beta1, step.beta2
        square = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
        rho = (b1 * (1 - b1) * (1 - b2) + b1**2 * b2 * (1 - b2) / (1 + b2)) / square
        total, power = 0.0, rho
        while power > 1e-6:
            total, power = total + math.asin(power), power * b2
        return 1 + 4 / math.pi * total
    if isinstance(step, AdamStep):
        return (1 + step.beta1) / (1 - step.beta1)
    if isinstance(step, MuonStep):
        m = step.momentum
        square = (1 - m) ** 2 * ((1 + m) ** 2 + m**4 / (1 - m**2))
        return 0.755 / square if m >= 0.9 else math.nan if m else 1.0
    if isinstance(step, Step):
        return (1 + step.momentum) / (1 - step.momentum) if step.momentum < 1 else math.nan
    return math.nan


def predicted_angle_of(step: StepNumbers) -> float:
    """`√(2δ / D)` radians per step in equilibrium, for any optimiser of `minibn.optim`; NaN without weight decay.

    See the assumptions at the top of this file. Where `shrink_per_step` is NaN, the angle is NaN,
    too.

    Example:
        >>> from minibn.optim import AdamStep, Step
        >>> round(predicted_angle_of(Step(0.1, 0.9, 5e-4)), 4), predicted_angle_of(Step(0.1, 0.9))
        (0.0073, nan)
        >>> round(predicted_angle_of(AdamStep(1e-3, weight_decay=0.1)), 4)  # √(2e-4 · 0.1/1.9)
        0.0032
    """
    if isinstance(step, Step) and not step.shrink:
        usable = step.weight_decay and not step.lookahead and step.momentum < 1
        return predicted_angular_update(step.lr, step.momentum, step.weight_decay) if usable else math.nan
    shrink = shrink_per_step(step)
    return math.sqrt(2 * shrink / update_correlation(step)) if shrink else math.nan


def predicted_norm_of(step: StepNumbers, update_size: float) -> float:
    """`|w| = (η U √(D / (2δ)))^(1/(k+1))` in equilibrium, for any optimiser of `minibn.optim`; NaN without weight decay.

    Args:
        step: the step object.
        update_size: U = |u| |w|^k. It is √(G/(1-γ²)) for SGD, √(n (1-β1)/(1+β1)) for AdamW and √n
            for Lion, with n weights. For Muon and other optimisers, measure |w' - (1 - δ) w| / η at
            any step.

    Example:
        >>> from minibn.optim import LionStep
        >>> round(predicted_norm_of(LionStep(0.01, 0.0, weight_decay=0.5), math.sqrt(100)), 6)  # √(η n / (2λ))
        1.0
    """
    shrink = shrink_per_step(step)
    if not shrink:
        return math.nan
    return (step.lr * update_size * math.sqrt(update_correlation(step) / (2 * shrink))) ** (1 / (step.degree + 1))


def update_size(step: StepNumbers, weights: int) -> float:
    """U = |u| |w|^k in equilibrium where the method itself fixes it, whatever the loss is; else NaN.

        AdamW    √(n (1-β1)/(1+β1)): each of the n entries is a mean of gradients, over their root mean square
        Lion     √n: signs

    Example:
        >>> update_size(AdamStep(0.1, beta1=0.0), 100), update_size(LionStep(0.1), 100), update_size(MuonStep(0.1), 100)
        (10.0, 10.0, nan)
    """
    if isinstance(step, AdamStep):
        return math.sqrt(weights * (1 - step.beta1) / (1 + step.beta1))
    return math.sqrt(weights) if isinstance(step, LionStep) else math.nan


def predicted_norm_here(step: StepNumbers, weights: int, norm: Array, angle: Array) -> Array | float:
    """|w| in equilibrium for `History`: from `update_size` where that is known, else from the update just measured.

    An update that turned weights of the norm |w| by the angle φ had η |u| / |w| = φ. Inserted into
    the formulas at the top of this file that gives |w| (φ / predicted angle)^(1/(k+1)): the norm at
    which updates of this size would be in balance.

    Args:
        step: the step object of the update.
        weights: n, how many numbers the weights are.
        norm, angle: |w| and the angle of the update, as from `measure`.

    Returns:
        number or 0-d array; NaN where `predicted_angle_of` is.

    Example:
        >>> step = Step(0.1, 0.0, 0.05)  # √(2ηλ) = 0.1 per step
        >>> round(predicted_norm_here(step, 10, 3.0, 0.1), 9), round(predicted_norm_here(step, 10, 3.0, 0.4), 9)
        (3.0, 6.0)
    """
    size = update_size(step, weights)
    if not math.isnan(size):
        return predicted_norm_of(step, size)
    predicted = predicted_angle_of(step)
    return norm * (angle / predicted) ** (1 / (step.degree + 1)) if predicted > 0 else math.nan


def predicted_norm(lr: float, momentum: float, weight_decay: float, gradient_square: float) -> float:
    """`|w| = (ηG / (2λ(1-γ)))^(1/4)` in equilibrium; G = `gradient_square` = mean of |∇L|² |w|², the same at every |w|.

    Raises:
        ValueError: weight decay is 0 (the norm then grows without bound), or a number is out of
            range.

    Example:
        >>> round(predicted_norm(0.1, 0.9, 5e-4, gradient_square=1.0), 3)  # (0.1 / 1e-4)^(1/4)
        5.623
    """
    lr, momentum, weight_decay = _check(lr, momentum, weight_decay)
    if not weight_decay:
        raise ValueError("without weight decay there is no equilibrium: the norm grows without bound")
    gradient_square = arguments.number("gradient_square", gradient_square)
    if not 0 <= gradient_square < math.inf:
        raise ValueError(f"gradient_square must be a finite number of at least 0, got {gradient_square}")
    return (lr * gradient_square / (2 * weight_decay * (1 - momentum))) ** 0.25


def time_to_equilibrium(lr: float, momentum: float, weight_decay: float) -> float:
    """`(1-γ) / (4ηλ)` steps, in which the distance of |w|⁴ from its equilibrium falls by a factor e; infinite if ηλ = 0.

    Example:
        >>> round(time_to_equilibrium(0.1, 0.9, 5e-4))
        500
    """
    lr, momentum, weight_decay = _check(lr, momentum, weight_decay)
    product = lr * weight_decay
    return (1 - momentum) / (4 * product) if product else math.inf


def _check(lr, momentum, weight_decay):
    """The three as floats, if they are in range."""
    given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    lr, momentum, weight_decay = (arguments.number(name, value) for name, value in given.items())
    if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0):
        raise ValueError(f"needs lr and weight decay of at least 0 and momentum from 0 to below 1; got lr={lr}, "
                         f"momentum={momentum}, weight_decay={weight_decay}")
    return lr, momentum, weight_decay
