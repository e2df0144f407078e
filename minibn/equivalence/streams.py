"""The conversion of one stream of Steps into another, and its derivation.

Li & Arora, *An Exponential Learning Rate Schedule for Deep Learning*, ICLR 2020 ("the paper"): where the loss does not
depend on the scale of the weights, SGD with weight decay is SGD without, at a learning rate that grows exponentially.

**The change of variables.** Let w and v be weights and velocity of a run with weight decay. Put them into the frame (P, κ, q)

    w̃ = w / P        ṽ = P (v - κ w) / q

P is the factor by which weight decay has shrunk the weights, κ w the part of the velocity that only decays them. In these
coordinates the update has no weight decay left. To see it, write a `Step` as (forces first; δ = shrink, ν = lookahead)

    v' = γ v + g + λ w        w' = (1 - δ) w - η (v' + ν (g + λ w))

insert v = q ṽ / P + κ w and g = g̃ / P (a scale-invariant loss has a gradient 1/P times as large at w = P w̃) and collect:

    v' = drag · w + (γ q ṽ + g̃) / P                                         drag = λ + γ κ
    w' = α w - (η / P) (γ q ṽ + (1 + ν) g̃)                                  b = 1 - δ - η ν λ,   α = b - η drag

Divide the second line by P' = α P: the weights w̃ are moved by gradients alone. Solve it for w, insert that into the
first line, and what is not proportional to w' is the new velocity, with κ' = drag / α, q' = b + η ν drag:

    ṽ' = γ̃ ṽ + g̃                    γ̃ = γ q b / q'
    w̃' = w̃ - η̃ (ṽ' + ν̃ g̃)          η̃ = η q' / (b P P')        ν̃ = ν α / q'

The paper's case is heavy-ball momentum with λ alone, ν = δ = 0: then b = q = 1, γ̃ = γ and η̃ = η / (P P'). Lookahead
(Nesterov, quasi-hyperbolic) and shrink (decoupled decay) are not in the paper.

Adaptive methods (Adam, AdamW) do not map in this way: their averages mix gradients taken at different scales.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from minibn.backend import Array
from minibn.optim import Schedule, Step

Numbers: TypeAlias = tuple[float, float, float]  # those of a `Frame`: (P, κ, q)


class Frame(NamedTuple):
    """The change of variables `w̃ = w / P, ṽ = P (v - κ w) / q` between a run with and one without weight decay.

    `Frame()` is the identity: where every conversion starts.

    Args:
        scale: P, above 0.
        kappa: κ, the velocity for each unit of weight that only decays the weight.
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
    Exact at every step for any learning rate (0 too), momentum and weight decay that change at any step: the converted
    run's weights are w_t / P_t. One pass, O(1) memory. Paper, Theorem 2.12, there for phases of constant lr.

    Args:
        schedule: iterable of `Step`. Its own `kick` and `rescale` are taken into the frame.
        band: P shrinks for ever and η̃ grows with 1 / P², past any float. Whenever P leaves [1/band, band], the converted
            Step carries `rescale`, a power of two that brings P back near 1 and changes no other bit of training.
            None: never rescale, the plain schedule of the paper.
        frame: where the change of variables stands at the first step. `Frame()`: the converted run starts from the
            same weights and velocity, whatever they are.

    Yields:
        Step, without weight decay and shrink.

    Raises:
        ValueError: at the step where α <= 0 (learning rate times weight decay is so large that the weights would pass
            through zero), or band is not above 1.
        OverflowError: band=None, at the step where η̃ leaves float range.

    Example:
        >>> from itertools import islice
        >>> from minibn.schedules import constant
        >>> [round(s.lr, 4) for s in islice(remove_weight_decay(constant(0.1, weight_decay=0.5)), 3)]
        [0.1053, 0.1166, 0.1292]
    """
    _check_band(band)
    return map(itemgetter(0), _removing(schedule, band, frame))


def frame_after(schedule: Schedule, steps: int, *, band: float | None = 2.0**32, frame: Frame = IDENTITY) -> Frame:
    """The `Frame` of `remove_weight_decay(schedule, band=band, frame=frame)` after `steps` steps.

    With it a run can change its form at any step and end in the same network:
    `weight, velocity = frame.remove(weight, velocity)` goes on as the converted run, `frame.add` the other way.

    Raises:
        ValueError: the schedule is shorter than `steps`, or has no conversion.

    Example:
        >>> from minibn.schedules import constant
        >>> frame_after(constant(0.5, weight_decay=0.5), 2)  # each step multiplies weights by 1 - 0.25
        Frame(scale=0.5625, kappa=0.6666666666666666, q=1.0)
    """
    _check_band(band)
    pairs = _removing(schedule, band, frame)
    for done in range(steps):
        pair = next(pairs, None)
        if pair is None:
            raise ValueError(f"the schedule has {done} steps, there is no frame after {steps}")
        frame = pair[1]
    return Frame(*frame)


def add_weight_decay(schedule: Schedule, weight_decay: float | Iterable[float], *, shrink: float | Iterable[float] = 0.0,
                     frame: Frame = IDENTITY) -> Iterator[Step]:
    """The schedule with the given weight decay that trains every scale-invariant network as `schedule` does.

    The inverse of `remove_weight_decay`, for any target λ and δ. For heavy-ball momentum, with `s = η̃_t P_t²`,
        drag = λ_t + γ_t κ_t      α = 1 / (1 + s drag)      η_t = α s      then κ and P as there.
    In general, with `r = γ̃ / (q (1 + ν̃))` and `s = (1 + ν̃) η̃ P²`,
        α = (1 - δ) / (1 + s (λ + r κ))      c = α s      ν = ν̃ (1 - δ) / (1 - δ - c λ - c (1 + ν̃) r κ)
        η = c / (1 + ν)      γ = r (1 + ν)
    which are the equations at the top of this file solved for (η, γ, ν). Removing then adding the same weight decay (and shrink)
    gives back the original numbers; removing then adding another restates any schedule at any weight decay.

    Args:
        schedule: iterable of `Step` without weight decay and shrink; `kick` and `rescale` are taken into the frame.
        weight_decay: λ, a number or an iterable of numbers, one a step.
        shrink: δ, likewise: decoupled decay.
        frame: where the change of variables stands at the first step.

    Yields:
        Step, with weight decay and without rescale.

    Raises:
        ValueError: at a step that has weight decay or shrink already, or where no learning rate does it.

    Example:
        >>> from itertools import islice
        >>> from minibn.schedules import constant, exponential
        >>> there = remove_weight_decay(constant(0.1, weight_decay=0.5))
        >>> [round(s.lr, 4) for s in islice(add_weight_decay(there, 0.5), 3)]
        [0.1, 0.1, 0.1]
        >>> [round(s.lr, 4) for s in islice(add_weight_decay(exponential(0.1, 1.2), 0.5), 3)]
        [0.0952, 0.1032, 0.111]
    """
    decays = map(float, weight_decay) if isinstance(weight_decay, Iterable) else repeat(float(weight_decay))
    shrinks = map(float, shrink) if isinstance(shrink, Iterable) else repeat(float(shrink))
    for target in (weight_decay, shrink):
        if not isinstance(target, Iterable):
            Step(0.0, weight_decay=target)
    return _adding(schedule, decays, shrinks, frame)


def _check_band(band):
    if band is not None and not (math.isfinite(band) and band > 1):
        raise ValueError(f"band must be a finite number above 1, or None for no rescaling; got {band}")


def _removing(schedule, band, frame):
    """Yield (converted step, (P, κ, q) after it)."""
    for t, step in enumerate(schedule):
        pair = remove_step(step, frame, band, t)
        frame = pair[1]
        yield pair


def remove_step(step: Step, frame: Numbers, band: float | None = None, t: int = 0) -> tuple[Step, Numbers]:
    """One step of `remove_weight_decay`: (`Step`, frame) -> (converted Step, frame after it), a frame being (P, κ, q).

    First the step's own rescale c (w <- c w, v <- v / c) and kick k (v <- v + k w) go into the frame: w̃ and ṽ stay. The
    rest is derived at the top of this file. Arguments and errors as in `remove_weight_decay`; t is the step's number in them.

    Example:
        >>> step, frame = remove_step(Step(0.5, weight_decay=0.5), Frame())
        >>> step.lr, step.weight_decay, frame
        (0.6666666666666666, 0.0, (0.75, 0.6666666666666666, 1.0))
    """
    lr, momentum, decay, lookahead = step.lr, step.momentum, step.weight_decay, step.lookahead
    scale, kappa, q = frame
    if step.rescale != 1 or step.kick:
        scale, kappa = scale * step.rescale, kappa / step.rescale**2 + step.kick
    rescale = 1.0
    if band and not 1 / band <= scale <= band:
        rescale = 2.0 ** (math.frexp(scale)[1] - 1)  # w̃ = w / P: scale both w̃ and 1 / P
        scale /= rescale
    drag = decay + momentum * kappa
    b = 1 - step.shrink - lr * lookahead * decay
    alpha = b - lr * drag
    new_q = b + lr * lookahead * drag
    if not (alpha > 0 and b > 0 and new_q > 0):
        raise ValueError(
            f"step {t} cannot be converted: weight decay would carry the weights through zero, multiplying them by "
            f"alpha={alpha:.4g}, which must be above 0 (lr={lr}, momentum={momentum}, weight_decay={decay}, "
            f"shrink={step.shrink}). Lower the learning rate or the weight decay; where they stay constant, heavy-ball "
            "momentum allows an lr * weight_decay of up to (1 - sqrt(momentum))**2.")
    new_scale = alpha * scale
    denominator = b * scale * new_scale
    new_lr = lr * new_q / denominator if denominator else math.inf
    if new_lr == math.inf:
        raise OverflowError(f"step {t}: the converted learning rate has left float range (the weights would be "
                            f"{scale:.3g} times smaller with weight decay); use band=2.0**32, the default")
    converted = Step(new_lr, momentum * q * b / new_q, 0.0, 0.0, rescale, lookahead * alpha / new_q)
    return converted, (new_scale, drag / alpha, new_q)


def _adding(schedule, decays, shrinks, frame):
    """Yield the steps with weight decay."""
    for t, (step, decay, shrink) in enumerate(zip(schedule, decays, shrinks, strict=False)):
        restated, frame = add_step(step, frame, decay, shrink, t)
        yield restated


def add_step(step: Step, frame: Numbers, weight_decay: float, shrink: float = 0.0, t: int = 0) -> tuple[Step, Numbers]:
    """One step of `add_weight_decay`: (`Step` without weight decay, frame) -> (Step with it, frame after it), as (P, κ, q).

    First the step's own rescale and kick, which move w̃ and ṽ, go into the frame: w and v stay. Arguments and errors as in
    `add_weight_decay`; t is the step's number in them.

    Example:
        >>> step, frame = add_step(Step(1.0), Frame(), weight_decay=0.25)
        >>> step.lr, step.weight_decay, frame
        (0.8, 0.25, (0.8, 0.3125, 1.0))
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
    s = step.lr * m * scale**2
    shrinkage = 1 + s * (weight_decay + r * kappa)
    alpha = keep / shrinkage if shrinkage > 0 else 0.0
    c = alpha * s
    room = keep - c * weight_decay - c * m * r * kappa
    if not (alpha > 0 and room > 0):
        raise ValueError(f"step {t} (lr={step.lr}, momentum={step.momentum}, lookahead={step.lookahead}) has no equal "
                         f"with weight_decay={weight_decay}, shrink={shrink}; give a smaller weight decay")
    lookahead = step.lookahead * keep / room
    restated = Step(c / (1 + lookahead), r * (1 + lookahead), weight_decay, lookahead=lookahead, shrink=shrink)
    return restated, remove_step(restated, (scale, kappa, q), t=t)[1]
