"""SGD: the conversion of one stream of Steps into another, and its derivation.

Li & Arora, *An Exponential Learning Rate Schedule for Deep Learning*, ICLR 2020 ("the paper"): if
the loss does not depend on the scale of the weights, SGD with weight decay equals SGD without, at a
learning rate that grows exponentially.

**The change of variables.** Let w and v be weights and velocity of a run with weight decay. Put
them into the frame (P, κ, q)

    w̃ = w / P        ṽ = P (v - κ w) / q

P is the factor by which weight decay has shrunk the weights so far. κ w is the part of the velocity
that does nothing but shrink the weights. In these coordinates the update has no weight decay left.
To see it, write a `Step` with the velocity first (δ = shrink, ν = lookahead)

    v' = γ v + g + λ w        w' = (1 - δ) w - η (v' + ν (g + λ w))

insert v = q ṽ / P + κ w and g = g̃ / P (a scale-invariant loss has a gradient 1/P times as large at
w = P w̃) and collect:

    v' = drag · w + (γ q ṽ + g̃) / P                                         drag = λ + γ κ
    w' = α w - (η / P) (γ q ṽ + (1 + ν) g̃)                                  b = 1 - δ - η ν λ,   α = b - η drag

Divide the second line by P' = α P: the weights w̃ are moved by gradients alone. Solve it for w and
insert the result into the first line. What is not proportional to w' is the new velocity, with
κ' = drag / α, q' = b + η ν drag:

    ṽ' = γ̃ ṽ + g̃                    γ̃ = γ q b / q'
    w̃' = w̃ - η̃ (ṽ' + ν̃ g̃)          η̃ = η q' / (b P P')        ν̃ = ν α / q'

The paper's case is heavy-ball momentum with λ alone, ν = δ = 0: then b = q = 1, γ̃ = γ and
η̃ = η / (P P'). Lookahead (Nesterov, quasi-hyperbolic) and shrink (decoupled decay) are not in the
paper.

This is the theorem for SGD, where L2 decay is inside the velocity. For AdamW, Lion, Muon and any
other optimiser with decoupled decay see `any_optimizer` and `adam`.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from minibn import arguments
from minibn.backend import Array
from minibn.optim import Schedule, Step
from minibn.optim.base import steps_of
from minibn.optim.sgd import step_of


class Frame(NamedTuple):
    """The change of variables `w̃ = w / P, ṽ = P (v - κ w) / q` between a run with and one without weight decay.

    `Frame()` is the identity. Every conversion starts there.

    Args:
        scale: P, above 0.
        kappa: κ, decay velocity per unit of weight.
        q: above 0; stays 1 for heavy-ball momentum.

    Example:
        >>> frame = Frame(scale=0.5, kappa=0.25)
        >>> frame.remove(2.0, 3.0)
        (4.0, 1.25)
        >>> frame.add(4.0, 1.25)
        (2.0, 3.0)
    """

    scale: float = 1.0
    kappa: float = 0.0
    q: float = 1.0

    def remove(self, weight: Array, velocity: Array) -> tuple[Array, Array]:
        """State (w, v) of the run with weight decay -> (w̃, ṽ) of the run without; arrays of any library, or floats."""
        return weight / self.scale, (velocity - self.kappa * weight) * (self.scale / self.q)

    def add(self, weight: Array, velocity: Array) -> tuple[Array, Array]:
        """State (w̃, ṽ) of the run without weight decay -> (w, v) of the run with it: the inverse of `remove`."""
        weight = weight * self.scale
        return weight, velocity * (self.q / self.scale) + self.kappa * weight


IDENTITY = Frame()


def remove_weight_decay(schedule: Schedule, *, band: float | None = 2.0**32, frame: Frame = IDENTITY) -> Iterator[Step]:
    """The schedule without weight decay that trains every scale-invariant network as `schedule` does.

    With P_0 = 1 and κ_0 = 0, for heavy-ball momentum (the general case: top of this file),
        drag = λ_t + γ_t κ_t      α = 1 - η_t drag      κ_{t+1} = drag / α      P_{t+1} = α P_t
        η̃_t = η_t / (P_t P_{t+1})        γ̃_t = γ_t        λ̃_t = 0
    Exact at every step for any learning rate (0 too), momentum and weight decay that change at any
    step: the converted run's weights are w_t / P_t. One pass, O(1) memory. Paper, Theorem 2.12,
    there for phases of constant lr.

    Args:
        schedule: iterable of `Step`. Its own `kick` and `rescale` are taken into the frame.
        band: P keeps shrinking, so η̃ = O(1/P²) eventually overflows. Whenever P leaves [1/band,
            band], the Step carries a `rescale`: a power of two that brings P back near 1 without
            changing any result. None: never rescale, the plain schedule of the paper.
        frame: the change of variables before the first step. `Frame()`: the converted run starts
            from the same weights and velocity, whatever they are.

    Yields:
        Step, without weight decay and shrink.

    Raises:
        ValueError: at the step where α <= 0 (learning rate times weight decay is so large that the
            weights would pass through zero), or band is not above 1.
        OverflowError: band=None, at the step where η̃ leaves float range.

    Example:
        >>> from itertools import islice
        >>> from minibn.schedules import constant
        >>> [round(s.lr, 4) for s in islice(remove_weight_decay(constant(0.1, weight_decay=0.5)), 3)]
        [0.1053, 0.1166, 0.1292]
    """
    check_band(band)
    given, frame = steps_of(schedule, Step), arguments.frame(frame, Frame)

    def steps(scale, kappa, q):
        low, high = _bounds(band)
        for t, step in enumerate(given):
            converted, scale, kappa, q = _removed(step, scale, kappa, q, low, high, t)
            yield converted

    return steps(*frame)


def frame_after(schedule: Schedule, steps: int, *, band: float | None = 2.0**32, frame: Frame = IDENTITY) -> Frame:
    """The `Frame` of `remove_weight_decay(schedule, band=band, frame=frame)` after `steps` steps.

    With it a run can change its form at any step and end in the same network:
    `weight, velocity = frame.remove(weight, velocity)` turns the run into the converted one,
    `frame.add` turns it back.

    Raises:
        ValueError: the schedule is shorter than `steps`, or has no conversion.

    Example:
        >>> from minibn.schedules import constant
        >>> frame_after(constant(0.5, weight_decay=0.5), 2)  # each step multiplies weights by 1 - 0.25
        Frame(scale=0.5625, kappa=0.6666666666666666, q=1.0)
    """
    check_band(band)
    given, frame = steps_of(schedule, Step), arguments.frame(frame, Frame)
    for t in range(arguments.whole("steps", steps, 0)):
        step = next(given, None)
        if step is None:
            raise ValueError(f"the schedule has {t} steps, there is no frame after {steps}")
        _, frame = remove_step(step, frame, band, t)
    return frame


def add_weight_decay(schedule: Schedule, weight_decay: float | Iterable[float], *, shrink: float | Iterable[float] = 0.0,
                     frame: Frame = IDENTITY) -> Iterator[Step]:
    """The schedule with the given weight decay that trains every scale-invariant network as `schedule` does.

    The inverse of `remove_weight_decay`, for any target λ and δ. For heavy-ball momentum, with
    `s = η̃_t P_t²`,
        drag = λ_t + γ_t κ_t      α = 1 / (1 + s drag)      η_t = α s      then κ and P as there.
    `add_step` has the general case. Removing, then adding the same weight decay (and shrink) gives
    back the original numbers. Removing it and adding another weight decay restates any schedule at
    any weight decay.

    Args:
        schedule: iterable of `Step` without weight decay and shrink; `kick` and `rescale` are taken
            into the frame.
        weight_decay: λ, a number or an iterable of numbers, one per step.
        shrink: δ, the decoupled decay: a number or an iterable of numbers.
        frame: the change of variables before the first step.

    Yields:
        Step, with weight decay and without rescale.

    Raises:
        ValueError: weight_decay or shrink is out of range, a step has weight decay or shrink
            already, or no learning rate gives the same run.

    Example:
        >>> from itertools import islice
        >>> from minibn.schedules import constant, exponential
        >>> there = remove_weight_decay(constant(0.1, weight_decay=0.5))
        >>> [round(s.lr, 4) for s in islice(add_weight_decay(there, 0.5), 3)]
        [0.1, 0.1, 0.1]
        >>> [round(s.lr, 4) for s in islice(add_weight_decay(exponential(0.1, 1.2), 0.5), 3)]
        [0.0952, 0.1032, 0.111]
    """
    given, frame = steps_of(schedule, Step), arguments.frame(frame, Frame)
    decays = arguments.for_each_step("weight_decay", weight_decay, lambda number: Step(0.0, weight_decay=number).weight_decay)
    shrinks = arguments.for_each_step("shrink", shrink, lambda number: Step(0.0, shrink=number).shrink)

    def steps(frame):
        for t, (step, decay, part) in enumerate(zip(given, decays, shrinks, strict=False)):
            restated, frame = add_step(step, frame, decay, part, t)
            yield restated

    return steps(frame)


def check_band(band: float | None) -> None:
    """Raise ValueError unless `band` is None or a finite number above 1."""
    if band is not None and not 1 < arguments.number("band", band) < math.inf:
        raise ValueError(f"band must be a finite number above 1, or None for no rescaling; got {band}")


def power_of_two(scale: float) -> float:
    """The largest power of two that is not above `scale`: divide P by it and P is in [1, 2).

    Example:
        >>> power_of_two(0.3), power_of_two(5.0)
        (0.25, 4.0)
    """
    return 2.0 ** (math.frexp(scale)[1] - 1)


def remove_step(step: Step, frame: Frame, band: float | None = None, t: int = 0) -> tuple[Step, Frame]:
    """One step of `remove_weight_decay`: (`Step`, frame) -> (converted Step, frame after it).

    The step's own rescale c (w <- c w, v <- v / c) and kick k (v <- v + k w) go into the frame
    first; w̃ and ṽ stay as they are. The rest is derived at the top of this file. Arguments and
    errors as in `remove_weight_decay`; t is the step's number in error messages.

    Example:
        >>> step, frame = remove_step(Step(0.5, weight_decay=0.5), Frame())
        >>> step.lr, step.weight_decay, frame.scale
        (0.6666666666666666, 0.0, 0.75)
    """
    converted, *after = _removed(step, *frame, *_bounds(band), t)
    return converted, Frame(*after)


def _bounds(band: float | None) -> tuple[float, float]:
    return (1 / band, band) if band else (0.0, math.inf)


def _removed(step: Step, scale: float, kappa: float, q: float, low: float, high: float,
             t: int) -> tuple[Step, float, float, float]:
    """`remove_step` for a frame of three numbers, which is faster. P is kept between `low` and `high`."""
    lr, momentum, decay, lookahead = step.lr, step.momentum, step.weight_decay, step.lookahead
    if step.rescale != 1.0 or step.kick:
        scale, kappa = scale * step.rescale, kappa / step.rescale**2 + step.kick
    rescale = 1.0
    if not low <= scale <= high:
        rescale = power_of_two(scale)  # w̃ = w / P: scale both w̃ and 1 / P
        scale /= rescale
    drag = decay + momentum * kappa
    b = 1.0 - step.shrink - lr * lookahead * decay
    alpha = b - lr * drag
    new_q = b + lr * lookahead * drag
    if not (alpha > 0.0 and b > 0.0 and new_q > 0.0):
        raise ValueError(f"step {t} cannot be converted: weight decay would carry the weights through zero, multiplying them "
                         f"by alpha={alpha:.4g}, which must be above 0 (lr={lr}, momentum={momentum}, weight_decay={decay}, "
                         f"shrink={step.shrink}). Lower the learning rate or the weight decay")
    new_scale = alpha * scale
    denominator = b * scale * new_scale  # b P P'
    new_lr = lr * new_q / denominator if denominator else math.inf
    if new_lr == math.inf:
        raise OverflowError(f"step {t}: the converted learning rate has left float range (the weights would be "
                            f"{scale:.3g} times smaller with weight decay); use band=2.0**32, the default")
    new_momentum, new_lookahead = momentum * q * b / new_q, lookahead * alpha / new_q
    converted = step_of(new_lr, new_momentum, 0.0, rescale, new_lookahead, 0.0)
    return converted, new_scale, drag / alpha, new_q


def add_step(step: Step, frame: Frame, weight_decay: float, shrink: float = 0.0, t: int = 0) -> tuple[Step, Frame]:
    """One step of `add_weight_decay`: (`Step` without weight decay, frame) -> (Step with it, frame after it).

    The step's own rescale and kick, which move w̃ and ṽ, go into the frame first; w and v stay as
    they are. The rest are the equations at the top of this file, solved for (η, γ, ν), with
    m = 1 + ν̃. In terms of c = η (1 + ν) and r = γ / (1 + ν) they are linear:
        γ̃ = γ q b / q'         is  r = γ̃ / (q m)             since q' m = (1 + ν) b
        η̃ = η q' / (b P P')    is  c = s α,  s = m η̃ P²
        α = b - η drag         is  α = 1 - δ - c (λ + r κ)
        ν̃ = ν α / q'           is  ν = ν̃ (1 - δ) / (1 - δ - c λ - m c r κ)
    Arguments and errors as in `add_weight_decay`; t is the step's number in error messages.

    Example:
        >>> step, frame = add_step(Step(1.0), Frame(), weight_decay=0.25)
        >>> step.lr, step.weight_decay, frame.scale
        (0.8, 0.25, 0.8)
    """
    if step.weight_decay or step.shrink:
        raise ValueError(f"step {t} already has weight_decay={step.weight_decay}, shrink={step.shrink}: "
                         "apply remove_weight_decay first")
    scale, kappa, q = frame
    if step.rescale != 1 or step.kick:
        scale /= step.rescale
        kappa -= step.kick * q / scale**2
    m, keep = 1 + step.lookahead, 1 - shrink
    r = step.momentum / (q * m)
    s = m * step.lr * scale**2
    divisor = 1 + s * (weight_decay + r * kappa)
    c = s * keep / divisor if divisor > 0 else math.inf  # solve  c = s α,  α = 1 - δ - c (λ + r κ)  for c
    room = keep - c * weight_decay - m * c * r * kappa
    if not (divisor > 0 and room > 0):
        raise ValueError(f"step {t} (lr={step.lr}, momentum={step.momentum}, lookahead={step.lookahead}) has no equal "
                         f"with weight_decay={weight_decay}, shrink={shrink}; give a smaller weight decay")
    lookahead = step.lookahead * keep / room
    restated = step_of(c / (1 + lookahead), r * (1 + lookahead), weight_decay, 1.0, lookahead, shrink)
    return restated, Frame(*_removed(restated, scale, kappa, q, *_bounds(None), t)[1:])
