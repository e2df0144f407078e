"""Lion with weight decay is stock Lion under a schedule of (lr, beta1, beta2). Not in the paper.

As in `adam`, the gradients stay as they are. Let m be Lion's mean at weights w = P w̃, with
gradients g = g̃ / P, and let the mean of the run without weight decay, after the step at P, be

    m̃ = c P m

Write a = P / P_previous. The mean is an average like Adam's, so c and β2 change as Adam's c and β1
do:

    c' = 1 / ((1 - β2) + β2 a / c)          β̃2 = 1 - c' (1 - β2)

The update is the sign of β1 m + (1 - β1) g, with the mean from before the step. P times this is β1
(a / c) m̃ + (1 - β1) g̃. A positive factor does not change a sign, so divide by the sum of the two
coefficients:

    β̃1 = β1 (a / c) / (β1 (a / c) + 1 - β1)          η̃ = η / P'          P' = (1 - η λ) P

`MuonStep` has no such form. Its momentum γ is used twice, in the average and in Nesterov's step
from it. The two would have to become different numbers, 1 - c' (1 - γ) and γ, and a `MuonStep` has
one. `undecayed` converts Muon exactly.
"""

from collections.abc import Iterable, Iterator
from math import inf
from typing import NamedTuple

from minibn import arguments
from minibn.backend import Array
from minibn.equivalence.decoupled import beta_with_decay, beta_without_decay, in_range, kept
from minibn.optim import LionStep
from minibn.optim.base import steps_of


class LionFrame(NamedTuple):
    """The change of variables `w̃ = w / P, m̃ = c P_previous m` from Lion with weight decay to Lion without.

    `LionFrame()` is the identity, where every conversion starts.

    Args:
        scale: P.
        previous: P at the gradient of the latest step.
        c: factor of the mean.
        steps: number of steps so far.
    """

    scale: float = 1.0
    previous: float = 1.0
    c: float = 1.0
    steps: int = 0

    def remove(self, weight: Array, mean: Array) -> tuple[Array, Array]:
        """State (w, m) of the run with weight decay -> (w̃, m̃) of the run without."""
        return weight / self.scale, mean * (self.c * self.previous)

    def add(self, weight: Array, mean: Array) -> tuple[Array, Array]:
        """State (w̃, m̃) of the run without weight decay -> (w, m): the inverse of `remove`."""
        return weight * self.scale, mean / (self.c * self.previous)


START = LionFrame()


def lion_without_decay(schedule: Iterable[LionStep], *, frame: LionFrame = START) -> Iterator[LionStep]:
    """The schedule without weight decay with which Lion trains every scale-invariant network as under `schedule`.

    The equations are at the top of this file. Exact for any lr, weight decay and betas that change
    at any step. One pass, O(1) memory. The converted run's weights are w / P. There is no `band`:
    `undecayed` rescales the weights.

    Args:
        schedule: iterable of `LionStep`.
        frame: the change of variables before the first step.

    Yields:
        LionStep, with weight decay 0.

    Raises:
        ValueError: at a step where lr * weight_decay is 1 or more.
        OverflowError: at the step where the converted lr leaves float range.

    Example:
        >>> from itertools import islice, repeat
        >>> steps = lion_without_decay(repeat(LionStep(0.1, 0.9, 0.99, weight_decay=0.5)))
        >>> [(round(s.lr, 4), round(s.beta1, 4), round(s.beta2, 4)) for s in islice(steps, 3)]
        [(0.1053, 0.9, 0.99), (0.1108, 0.8953, 0.9895), (0.1166, 0.8904, 0.9889)]
    """
    frame = arguments.frame(frame, LionFrame)
    for step in steps_of(schedule, LionStep):
        converted, frame = remove_lion_step(step, frame)
        yield converted


def lion_with_decay(schedule: Iterable[LionStep], weight_decay: float | Iterable[float], *,
                    frame: LionFrame = START) -> Iterator[LionStep]:
    """The schedule with the given weight decay with which Lion trains every scale-invariant network as under `schedule`.

    The inverse of `lion_without_decay`: removing, then adding the same weight decay gives back the
    original numbers.

    Args:
        schedule: iterable of `LionStep` without weight decay.
        weight_decay: λ, a number or an iterable of numbers, one per step.
        frame: the change of variables before the first step.

    Yields:
        LionStep, with weight decay.

    Raises:
        ValueError: a step has weight decay already.

    Example:
        >>> there = lion_without_decay([LionStep(0.1, 0.9, 0.99, weight_decay=0.5)] * 3)
        >>> [(round(s.lr, 4), round(s.beta1, 4), round(s.beta2, 4)) for s in lion_with_decay(there, 0.5)]
        [(0.1, 0.9, 0.99), (0.1, 0.9, 0.99), (0.1, 0.9, 0.99)]
    """
    frame = arguments.frame(frame, LionFrame)
    decays = arguments.for_each_step("weight_decay", weight_decay, lambda number: LionStep(0.0, weight_decay=number).weight_decay)
    for step, decay in zip(steps_of(schedule, LionStep), decays, strict=False):
        restated, frame = add_lion_step(step, frame, decay)
        yield restated


def remove_lion_step(step: LionStep, frame: LionFrame) -> tuple[LionStep, LionFrame]:
    """One step of `lion_without_decay`: (`LionStep`, frame) -> (converted LionStep, frame after it)."""
    scale, previous, c, t = frame
    after = kept(step, t) * scale
    a = scale / previous
    share = step.beta1 * a / c
    beta1 = share / (share + 1 - step.beta1)
    c, beta2 = beta_without_decay(step.beta2, a, c)
    lr = in_range(step.lr / after if after else inf, scale, t)
    return LionStep(lr, beta1, beta2), LionFrame(after, scale, c, t + 1)


def add_lion_step(step: LionStep, frame: LionFrame, weight_decay: float) -> tuple[LionStep, LionFrame]:
    """One step of `lion_with_decay`: (`LionStep` without decay, frame) -> (LionStep with it, frame after it).

    The equations at the top of this file, solved for the numbers with decay: those of β1 and β̃1
    say that β1 / (1 - β1) is c / a times β̃1 / (1 - β̃1), and with P' = (1 - η λ) P the last gives
    η = η̃ P / (1 + η̃ P λ).
    """
    scale, previous, c, t = frame
    if step.weight_decay:
        raise ValueError(f"step {t} already has weight_decay={step.weight_decay}: apply lion_without_decay first")
    a = scale / previous
    share = step.beta1 * c / a
    beta1 = share / (share + 1 - step.beta1)
    c, beta2 = beta_with_decay(step.beta2, a, c)
    s = step.lr * scale
    restated = LionStep(s / (1 + s * weight_decay), beta1, beta2, weight_decay)
    return restated, LionFrame(kept(restated, t) * scale, scale, c, t + 1)
