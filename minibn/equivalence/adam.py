"""Theorem C: AdamW is stock Adam under a schedule of (lr, beta1, beta2, eps). Not in the paper.

`any_optimizer` removes weight decay by dividing gradients by P. Here the gradients stay as they
are, so that the result is a schedule for any library's Adam. Let m, v be the moments of AdamW, at
weights w = P w̃ with gradients g = g̃ / P. Let Adam's moments without weight decay, after the step
at P, be

    m̃ = c P m        ṽ = d P² v

with c and d to be found. Write a = P / P_previous. AdamW's m' = β1 m + (1 - β1) g becomes

    m̃' = c' P (β1 m + (1 - β1) g) = c' β1 (a / c) m̃ + c' (1 - β1) g̃

Adam needs the two factors to be β̃1 and 1 - β̃1. Their sum must be 1, which gives c'. The squares
give d' in the same way, with a² in place of a:

    c' = 1 / ((1 - β1) + β1 a / c)          β̃1 = 1 - c' (1 - β1)
    d' = 1 / ((1 - β2) + β2 a² / d)         β̃2 = 1 - d' (1 - β2)

It remains to make the updates equal, η m̂ / (√v̂ + ε) / P' with P' = (1 - η λ) P. Adam corrects its
moments at update q = 1, 2, … with its own betas, so

    r = √(d' (1 - β2^q) / (1 - β̃2^q))       ε̃ = r P ε       η̃ = (η / P') (r / c') (1 - β̃1^q) / (1 - β1^q)

For constant η and λ the betas approach β1 a and β2 a² with a = 1 - η λ, and η̃ grows by the factor
1/a per step. `adam_exponential` has these betas from the start.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from math import inf, isfinite, sqrt
from typing import NamedTuple

from minibn import arguments
from minibn.backend import Array
from minibn.equivalence.decoupled import beta_with_decay, beta_without_decay, in_range, kept
from minibn.optim import AdamStep
from minibn.optim.base import steps_of


class AdamFrame(NamedTuple):
    """The change of variables `w̃ = w / P, m̃ = c P_previous m, ṽ = d P_previous² v` from AdamW to Adam.

    `AdamFrame()` is the identity, where every conversion starts.

    Args:
        scale: P.
        previous: P at the gradient of the latest step.
        c, d: factors of the moments.
        steps: number of steps so far.
    """

    scale: float = 1.0
    previous: float = 1.0
    c: float = 1.0
    d: float = 1.0
    steps: int = 0

    def remove(self, weight: Array, mean: Array, square: Array) -> tuple[Array, Array, Array]:
        """State (w, m, v) of AdamW -> (w̃, m̃, ṽ) of Adam."""
        return weight / self.scale, mean * (self.c * self.previous), square * (self.d * self.previous**2)

    def add(self, weight: Array, mean: Array, square: Array) -> tuple[Array, Array, Array]:
        """State (w̃, m̃, ṽ) of Adam -> (w, m, v) of AdamW: the inverse of `remove`."""
        return weight * self.scale, mean / (self.c * self.previous), square / (self.d * self.previous**2)


START = AdamFrame()


def adam_without_decay(schedule: Iterable[AdamStep], *, frame: AdamFrame = START) -> Iterator[AdamStep]:
    """The schedule of Adam that trains every scale-invariant network as AdamW does under `schedule`.

    The equations are at the top of this file. Exact for any lr, weight decay, betas and eps that
    change at any step. One pass, O(1) memory. The converted run's weights are w / P.

    There is no `band`: Adam has no step that rescales weights. Squares of the gradients P g
    underflow when P is below about 1e-18 in float32 and 1e-150 in float64; `undecayed` has no such
    limit.

    Args:
        schedule: iterable of `AdamStep`.
        frame: the change of variables before the first step.

    Yields:
        AdamStep, with weight decay 0.

    Raises:
        ValueError: at a step where lr * weight_decay is 1 or more.
        OverflowError: at the step where the converted lr leaves float range.

    Example:
        >>> from itertools import islice, repeat
        >>> steps = adam_without_decay(repeat(AdamStep(0.1, 0.9, 0.99, 0.0, weight_decay=0.5)))
        >>> [(round(s.lr, 4), round(s.beta1, 4), round(s.beta2, 4)) for s in islice(steps, 3)]
        [(0.1053, 0.9, 0.99), (0.1106, 0.8953, 0.9889), (0.1157, 0.8909, 0.9878)]
    """
    frame = arguments.frame(frame, AdamFrame)
    for step in steps_of(schedule, AdamStep):
        converted, frame = remove_adam_step(step, frame)
        yield converted


def adam_with_decay(schedule: Iterable[AdamStep], weight_decay: float | Iterable[float], *,
                    frame: AdamFrame = START) -> Iterator[AdamStep]:
    """The schedule of AdamW with the given weight decay that trains every scale-invariant network as `schedule` does.

    The inverse of `adam_without_decay`: removing, then adding the same weight decay gives back the
    original numbers. Adding another weight decay restates the schedule. `add_adam_step` has the
    equations.

    Args:
        schedule: iterable of `AdamStep` without weight decay.
        weight_decay: λ, a number or an iterable of numbers, one per step.
        frame: the change of variables before the first step.

    Yields:
        AdamStep, with weight decay.

    Raises:
        ValueError: a step has weight decay already.

    Example:
        >>> there = adam_without_decay([AdamStep(0.1, 0.9, 0.99, 0.0, weight_decay=0.5)] * 3)
        >>> [(round(s.lr, 4), round(s.beta1, 4), round(s.beta2, 4)) for s in adam_with_decay(there, 0.5)]
        [(0.1, 0.9, 0.99), (0.1, 0.9, 0.99), (0.1, 0.9, 0.99)]
    """
    frame = arguments.frame(frame, AdamFrame)
    decays = arguments.for_each_step("weight_decay", weight_decay, lambda number: AdamStep(0.0, weight_decay=number).weight_decay)
    for step, decay in zip(steps_of(schedule, AdamStep), decays, strict=False):
        restated, frame = add_adam_step(step, frame, decay)
        yield restated


def adam_exponential(lr: float, weight_decay: float, beta1: float = 0.9, beta2: float = 0.999,
                     eps: float = 1e-8) -> Iterator[AdamStep]:
    """The schedule of Adam that equals AdamW at constant lr and weight decay, in closed form. With a = 1 - η λ:

        β̃1 = β1 a      β̃2 = β2 a²      c = (1 - β̃1) / (1 - β1)      d = (1 - β̃2) / (1 - β2)
        r_q = √(d (1 - β2^q) / (1 - β̃2^q))      ε̃ = r_q a^(q-1) ε
        η̃ = η a^-q (r_q / c) (1 - β̃1^q) / (1 - β1^q)                    at update q = 1, 2, …

    Once the bias corrections are over, lr grows by 1/a per step. Exact from the first step, since
    the moments start at 0.

    Yields:
        AdamStep, endlessly, with constant betas and weight decay 0.

    Raises:
        ValueError: lr * weight_decay is 1 or more, or a number is out of range.
        OverflowError: at the step where lr leaves float range.

    Example:
        >>> from itertools import islice
        >>> steps = list(islice(adam_exponential(1e-3, 0.1, beta2=0.95), 1000))
        >>> round(steps[999].lr / steps[998].lr * (1 - 1e-4), 12), steps[0].beta1 / 0.9  # growth 1/a; β1 a
        (1.0, 0.9999)
    """
    usual = AdamStep(lr, beta1, beta2, eps, weight_decay)
    a, lr, beta1, beta2, eps = kept(usual, 0), usual.lr, usual.beta1, usual.beta2, usual.eps
    b1, b2 = beta1 * a, beta2 * a**2
    c, d = (1 - b1) / (1 - beta1), (1 - b2) / (1 - beta2)

    def steps():
        for q in count(1):
            r, ratio = _corrections((beta1, beta2), (b1, b2), c, d, q)
            scale = a**q
            new_lr = lr / scale * ratio if scale else inf
            if not isfinite(new_lr):
                raise OverflowError(f"step {q - 1}: the exponential schedule has left float range; "
                                    "equivalence.undecayed(optimizer) rescales the weights and has no such limit")
            yield AdamStep(new_lr, b1, b2, r * (scale / a) * eps)

    return steps()


def remove_adam_step(step: AdamStep, frame: AdamFrame) -> tuple[AdamStep, AdamFrame]:
    """One step of `adam_without_decay`: (`AdamStep`, frame) -> (converted AdamStep, frame after it)."""
    scale, previous, c, d, t = frame
    after = kept(step, t) * scale
    a = scale / previous
    c, beta1 = beta_without_decay(step.beta1, a, c)
    d, beta2 = beta_without_decay(step.beta2, a**2, d)
    r, ratio = _corrections((step.beta1, step.beta2), (beta1, beta2), c, d, t + 1)
    lr = in_range(step.lr / after * ratio if after else inf, scale, t)
    return AdamStep(lr, beta1, beta2, r * scale * step.eps), AdamFrame(after, scale, c, d, t + 1)


def add_adam_step(step: AdamStep, frame: AdamFrame, weight_decay: float) -> tuple[AdamStep, AdamFrame]:
    """One step of `adam_with_decay`: (`AdamStep` without decay, frame) -> (AdamStep with it, frame after it).

    The equations at the top of this file, solved for the numbers of AdamW.
    c' = (1 - β̃1) / (1 - β1) and β̃1 = c' β1 a / c give c' = (1 - β̃1) + β̃1 c / a, and then β1. d'
    and β2 are computed in this way with a² in place of a. The last equation gives s = η / P', and
    with P' = (1 - η λ) P that is η = s P / (1 + s P λ).
    """
    scale, previous, c, d, t = frame
    if step.weight_decay:
        raise ValueError(f"step {t} already has weight_decay={step.weight_decay}: apply adam_without_decay first")
    a = scale / previous
    c, beta1 = beta_with_decay(step.beta1, a, c)
    d, beta2 = beta_with_decay(step.beta2, a**2, d)
    r, ratio = _corrections((beta1, beta2), (step.beta1, step.beta2), c, d, t + 1)
    s = step.lr / ratio
    restated = AdamStep(s * scale / (1 + s * scale * weight_decay), beta1, beta2, step.eps / (r * scale), weight_decay)
    return restated, AdamFrame(kept(restated, t) * scale, scale, c, d, t + 1)


def _corrections(betas, converted, c, d, q):
    """(r, (r/c) (1 - β̃1^q) / (1 - β1^q)) for (β1, β2), (β̃1, β̃2)."""
    r = sqrt(d * (1 - betas[1] ** q) / (1 - converted[1] ** q))
    return r, r / c * (1 - converted[0] ** q) / (1 - betas[0] ** q)
