"""The paper's own schedules: constant learning rate (Theorem 1.1), TEXP, TEXP++, TEXP-- and instant drops.

Within a phase of constant lr η and weight decay λ the recurrence of `streams` has a fixed point:
each step multiplies P by the same α, and κ stays. The recurrence needs about 1/(1 - γ) steps to
reach it. These schedules start there, by a kick to the velocity. TEXP omits the kick and is
therefore approximate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TypeAlias

from minibn import arguments
from minibn.optim import Step

Phases: TypeAlias = Sequence[tuple[float, float]]  # (steps, lr) of each phase; math.inf steps: without end


def fixed_point(lr: float, momentum: float, weight_decay: float) -> tuple[float, float]:
    """(α, κ): the factor by which constant lr and weight decay shrink the weights in each step, and κ, both at the fixed point.

        α is the larger root of x² - (1 + γ - ηλ) x + γ = 0        κ = λ / (α - γ)

    Real and positive if and only if `ηλ <= (1 - √γ)²` (paper, Theorem 1.1). The discriminant is
    computed as `((1 - √γ)² - ηλ) ((1 + √γ)² - ηλ)`, which does not cancel.

    Raises:
        ValueError: ηλ is above (1 - √γ)², or a number is out of range.

    Example:
        >>> alpha, kappa = fixed_point(0.1, 0.9, 5e-4)
        >>> round(alpha ** (-2 * 391), 3)  # figure 1 of the paper: growth in an epoch of 391 steps
        1.481
    """
    step = Step(lr, momentum, weight_decay)
    lr, momentum, weight_decay = step.lr, step.momentum, step.weight_decay
    if momentum >= 1:
        raise ValueError(f"momentum must be below 1, got {momentum}")
    product, limit = lr * weight_decay, (1 - math.sqrt(momentum)) ** 2
    if product > limit:
        raise ValueError(
            f"no exponential schedule matches lr={lr}, momentum={momentum}, weight_decay={weight_decay}: lr * weight_decay = "
            f"{product:.4g} is above (1 - sqrt(momentum))**2 = {limit:.4g}, where weight decay makes the weights oscillate "
            "through zero. Lower the learning rate, the momentum or the weight decay.")
    root = math.sqrt((limit - product) * ((1 + math.sqrt(momentum)) ** 2 - product))
    alpha = (1 + momentum - product + root) / 2
    if alpha <= momentum and weight_decay:
        raise ValueError(f"no exponential schedule matches lr={lr}, momentum={momentum}, weight_decay={weight_decay}: "
                         "the weights would be zero after one step. Lower the learning rate or the weight decay.")
    return alpha, weight_decay / (alpha - momentum) if weight_decay else 0.0


def exponential_equivalent(lr: float, momentum: float, weight_decay: float) -> Iterator[Step]:
    """Theorem 1.1: the exponential schedule that equals constant lr η with momentum γ and weight decay λ.

        η̃_t = α^(-2t-1) η        (α, κ) = fixed_point(η, γ, λ)        first kick: -κ

    Exact from the first step if velocity starts at zero: w̃_t = α^-t w_t.

    Yields:
        Step, endlessly.

    Raises:
        ValueError: ηλ is above (1 - √γ)².
        OverflowError: at the step where η̃ leaves float range; `remove_weight_decay` has `band` for
            that.

    Example:
        >>> from itertools import islice
        >>> [round(s.lr, 4) for s in islice(exponential_equivalent(0.1, 0.0, 0.5), 3)]
        [0.1053, 0.1166, 0.1292]
    """
    return texp_plus_plus([(math.inf, lr)], momentum=momentum, weight_decay=weight_decay)


def texp(phases: Phases, *, momentum: float, weight_decay: float) -> Iterator[Step]:
    """Tapered exponential schedule (paper, section 2.3) of a step decay: a plain learning-rate schedule.

    With (α_I, κ_I) = fixed_point(η_I, γ, λ), lr is multiplied by
        α_I^-2                              at each step inside phase I
        (η_{I+1}/η_I) α_I^-1 α_{I+1}^-1     at the switch to phase I+1
    starting from η_0 / α_0. It is approximate: each switch, and the start (where κ_{-1} = 0), lacks
    TEXP++'s kick, a velocity *along* the weights. Over the next 1/(1 - γ) steps its absence changes
    the weights by a relative amount of about
        ε = γ η_{I+1} |κ_{I+1} - κ_I| / (α_{I+1} - γ / α_{I+1}).
    Without momentum nothing is missing and TEXP is exact. The norm is off by up to the factor 1 ± ε
    and the effective lr by 1 ∓ 2ε: ε = 2e-6 at the paper's first drop of lr, 5e-3 at the paper's
    start.

    Args:
        phases: list of (steps, lr); `math.inf` steps for a last phase without end.
        momentum, weight_decay: γ and λ.

    Yields:
        Step, without weight decay and without kicks.

    Raises:
        ValueError: a phase has no growth rate (η_I λ above (1 - √γ)²), a number of steps is below 1
            or not whole, or a phase follows an endless one.
        OverflowError: at the step where lr leaves float range.

    Example:
        >>> [round(s.lr, 4) for s in texp([(2, 0.1), (2, 0.01)], momentum=0.0, weight_decay=0.5)]
        [0.1053, 0.1166, 0.0123, 0.0125]
    """
    phases = _checked(phases)
    return _tapered(phases, [weight_decay] * len(phases), momentum, kicks=False)


def texp_plus_plus(phases: Phases, *, momentum: float, weight_decay: float) -> Iterator[Step]:
    """TEXP with its velocity corrected at the start and at each switch: exactly the step decay (paper, Theorem 2.12).

    lr as in `texp`. The first step of phase I, where the weights are w_t / P, carries
        kick = (κ_{I-1} - κ_I) P²,    κ_{-1} = 0.

    Arguments, errors and what is yielded are those of `texp`.

    Example:
        >>> [round(s.kick, 4) for s in texp_plus_plus([(2, 0.1), (2, 0.01)], momentum=0.5, weight_decay=0.5)]
        [-1.2984, 0.0, 0.1705, 0.0]
    """
    phases = _checked(phases)
    return _tapered(phases, [weight_decay] * len(phases), momentum, kicks=True)


def texp_minus_minus(phases: Phases, *, momentum: float, weight_decay: float) -> Iterator[Step]:
    """TEXP without the instant drop of lr: only the growth rate changes from phase to phase (paper, appendix B).

    lr is multiplied by α_I^-2 inside phase I and by `α_I^-1 α_{I+1}^-1` at a switch, α_I as in
    `texp`. With the kicks, this equals lr η_0 throughout, with the *weight decay* divided instead
    of lr: λ η_I / η_0 in phase I. It trains worse, since the effective lr then falls no faster than
    weight decay lets the norm grow.

    Arguments, errors and what is yielded are those of `texp_plus_plus`; the first lr must be above
    0.

    Example:
        >>> [round(s.lr, 4) for s in texp_minus_minus([(2, 0.1), (2, 0.01)], momentum=0.0, weight_decay=0.5)]
        [0.1053, 0.1166, 0.1234, 0.1246]
    """
    phases = _checked(phases)
    first = _first_lr("texp_minus_minus", phases)
    weight_decay = arguments.number("weight_decay", weight_decay)
    decays = [weight_decay * lr / first for _, lr in phases]
    return _tapered([(steps, first) for steps, _ in phases], decays, momentum, kicks=True)


def instant_drops(phases: Phases, *, momentum: float, weight_decay: float) -> Iterator[Step]:
    """The first phase's exponential schedule throughout, its lr multiplied by η_{I+1}/η_I at each switch (paper, figure 3).

    The counterpart of TEXP--: the instant drop without a change of the growth rate α_0^-2. It is
    equivalent to training at η_0 throughout and changing the state once, at the switch: the weights
    w are multiplied by c = √(η_I/η_{I+1}), and the part of the velocity that comes from gradients,
    v - κ w, is divided by c. Weight decay then shrinks the weights back, and the effective lr
    recovers.

    Arguments, errors and what is yielded are those of `texp_plus_plus`; the first lr must be above
    0.

    Example:
        >>> [round(s.lr, 4) for s in instant_drops([(2, 0.1), (2, 0.01)], momentum=0.0, weight_decay=0.5)]
        [0.1053, 0.1166, 0.0129, 0.0143]
    """
    phases = _checked(phases)
    first = _first_lr("instant_drops", phases)
    growing = texp_plus_plus([(math.inf, first)], momentum=momentum, weight_decay=weight_decay)
    return (replace(step, lr=step.lr * (phases[i][1] / first))
            for i, step in zip(_phase_of_each_step(phases), growing, strict=False))


def _checked(phases):
    given = list(arguments.iterable("phases", phases, "a list of (steps, lr)"))
    pairs = all(isinstance(phase, (tuple, list)) and len(phase) == 2 for phase in given)
    numbers = [tuple(arguments.number(f"phases: {name}", value) for name, value in zip(("steps", "lr"), phase, strict=True))
               for phase in given if pairs]
    if not numbers or any(not steps >= 1 or (steps != math.inf and steps != int(steps)) for steps, _ in numbers):
        raise ValueError(f"phases must be a list of (steps, lr) with whole numbers of steps of at least 1, got {given}")
    if any(steps == math.inf for steps, _ in numbers[:-1]):
        raise ValueError(f"phases after an endless one are never reached; give the others a number of steps, got {given}")
    return numbers


def _first_lr(name, phases):
    """η_0, which the other phases' lr are divided by."""
    first = phases[0][1]
    if not first > 0:
        raise ValueError(f"{name} needs a first lr above 0, got {first}")
    return first


def _phase_of_each_step(phases):
    """0 for each step of the first phase, then 1 for each step of the second, …"""
    for i, (length, _) in enumerate(phases):
        yield from repeat(i) if length == math.inf else repeat(i, int(length))


def _tapered(phases, decays, momentum, kicks):
    """η̃_t = η / (P_t P_{t+1}) in the fixed frame of each phase; errors of all phases come at the call."""
    frames = [fixed_point(lr, momentum, decay) for (_, lr), decay in zip(phases, decays, strict=True)]

    def steps():
        scale, old = 1.0, 0.0
        for i in _phase_of_each_step(phases):
            alpha, kappa = frames[i]
            denominator = scale * alpha * scale
            new_lr = phases[i][1] / denominator if denominator else math.inf
            if not math.isfinite(new_lr):
                raise OverflowError("the exponential schedule has left float range; remove_weight_decay(schedule), with its "
                                    "default band, has no such limit")
            yield Step(new_lr, momentum, kick=(old - kappa) * scale**2 if kicks else 0.0)  # 0 inside a phase
            scale, old = scale * alpha, kappa

    return steps()
