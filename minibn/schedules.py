"""Schedules: endless streams of `Step`. `like` turns them into schedules for AdamW, Lion and Muon.

One function per schedule. Each docstring starts with its formula, with steps counted from t = 0. No
schedule needs to know how long training is. Arguments are checked at the call, not at the first
step. Momentum γ and weight decay λ stay constant. A schedule can be read once, so make one for each
optimiser.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, repeat
from typing import Any, TypeVar

from minibn import arguments
from minibn.export import COLUMNS, lr_function, number_functions, read_csv, write_csv
from minibn.optim import Schedule, Step, StepNumbers
from minibn.optim.base import steps_of
from minibn.optim.sgd import step_of

__all__ = ["COLUMNS", "NAMES", "by_name", "constant", "cosine", "decoupled", "exponential", "like", "lr_function", "nesterov",
           "number_functions", "read_csv", "step_decay", "warmup", "write_csv"]

S = TypeVar("S", bound=StepNumbers)

NAMES = ("constant", "step", "cosine", "exponential")


def by_name(name: str, lr: float, *, steps: int | None = None, milestones: Iterable[int] = (), factor: float = 0.1,
            final: float = 0.0, growth: float = 1.0, momentum: float = 0.0, weight_decay: float = 0.0) -> Iterator[Step]:
    """The schedule called `name`, one of `NAMES`.

    Args:
        name: "constant", "step" (`step_decay`), "cosine" or "exponential".
        lr, momentum, weight_decay: of every schedule.
        steps, final: of `cosine`.
        milestones, factor: of `step_decay`.
        growth: of `exponential`.

    Raises:
        ValueError: the name is unknown, "cosine" has no steps, or the schedule refuses its
            arguments.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(by_name("step", 1.0, milestones=[2], factor=0.5), 4)]
        [1.0, 1.0, 0.5, 0.5]
    """
    match name:
        case "constant":
            return constant(lr, momentum=momentum, weight_decay=weight_decay)
        case "step":
            return step_decay(lr, milestones, factor, momentum=momentum, weight_decay=weight_decay)
        case "cosine":
            if steps is None:
                raise ValueError("the schedule 'cosine' needs steps, the number of steps until it ends")
            return cosine(lr, steps, final, momentum=momentum, weight_decay=weight_decay)
        case "exponential":
            return exponential(lr, growth, momentum=momentum, weight_decay=weight_decay)
    raise ValueError(f"a schedule must be one of {list(NAMES)}, got {name!r}")


def constant(lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = lr`.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> next(constant(0.1, momentum=0.9)).momentum
        0.9
    """
    return repeat(_step(lr, momentum, weight_decay))


def step_decay(lr: float, milestones: Iterable[int], factor: float = 0.1, *, momentum: float = 0.0,
               weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = lr * factor**(number of milestones <= t)`.

    Args:
        lr: learning rate before the first milestone.
        milestones: increasing step numbers at which the learning rate is multiplied by `factor`.
        factor: at least 0.

    Raises:
        ValueError: the milestones do not increase, or a number is negative or not finite.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(step_decay(1.0, [2, 3]), 4)]
        [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    given = arguments.iterable("step_decay: milestones", milestones, "a list of step numbers")
    drops = [arguments.number("step_decay: a milestone", milestone) for milestone in given]
    if not all(a < b < math.inf for a, b in itertools.pairwise([-math.inf, *drops])) or min(drops, default=0) < 0:
        raise ValueError(f"step_decay: milestones must be increasing step numbers of at least 0, got {milestones}")
    factor = _at_least(0, "step_decay: factor", factor)
    first = _step(lr, momentum, weight_decay)
    return (_at(first, first.lr * factor ** bisect_right(drops, t)) for t in count())


def cosine(lr: float, steps: int, final: float = 0.0, *, momentum: float = 0.0,
           weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = final + (lr - final) (1 + cos(π t / steps)) / 2` up to t = steps, then `final`.

    Loshchilov & Hutter, *SGDR*, 2017.

    Raises:
        ValueError: steps is below 1, or a number is negative or not finite.

    Example:
        >>> from itertools import islice
        >>> [round(s.lr, 3) for s in islice(cosine(1.0, 4), 6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    steps, final = _at_least(1, "cosine: steps", steps), _at_least(0, "cosine: final", final)
    first = _step(lr, momentum, weight_decay)
    return (_at(first, final + (first.lr - final) * (1 + math.cos(math.pi * min(t, steps) / steps)) / 2) for t in count())


def exponential(lr: float, growth: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = lr * growth**t`. The paper's schedule has growth > 1.

    Raises:
        ValueError: a number is negative or not finite.
        OverflowError: at the step where lr leaves float range. `equivalence.remove_weight_decay`
            has `band` for that.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(exponential(0.5, 2.0), 3)]
        [0.5, 1.0, 2.0]
    """
    first, factor = _step(lr, momentum, weight_decay), _at_least(0, "exponential: growth", growth)

    def lr_at(t):
        try:
            return first.lr * factor**t
        except OverflowError:
            raise OverflowError(f"exponential: lr={lr} * growth={growth} ** {t} is beyond float range; "
                                "equivalence.remove_weight_decay has `band` for schedules that grow without end") from None

    return (_at(first, lr_at(t)) for t in count())


def like(step: S, schedule: Iterable[StepNumbers]) -> Iterator[S]:
    """`step` again and again, with the learning rates of `schedule`: a schedule for the optimiser of `step`.

    Args:
        step: `AdamStep`, `LionStep`, `MuonStep` or `Step`; all its numbers but lr stay as they are.
        schedule: iterable of any step objects, of which only lr is read.

    Example:
        >>> from itertools import islice
        >>> from minibn.optim import AdamStep
        >>> adam = like(AdamStep(0.0, beta2=0.95, weight_decay=0.1), warmup(2, cosine(1e-3, 100)))
        >>> [(s.beta2, s.weight_decay, round(s.lr, 6)) for s in islice(adam, 2)]
        [(0.95, 0.1, 0.000333), (0.95, 0.1, 0.000667)]
    """
    if not isinstance(step, StepNumbers):
        raise TypeError(f"like: step must be a step object, such as AdamStep(1e-3), got {arguments.short(step)}")
    given: Any = step
    return (replace(given, lr=s.lr) for s in steps_of(schedule, StepNumbers))


def warmup(steps: int, schedule: Iterable[S]) -> Iterator[S]:
    """`lr_t * (t + 1) / (steps + 1)` for t < steps, then `schedule` unchanged (Goyal et al., 2017).

    Only lr is changed, so the steps may be of any optimiser. The first warm-up step is step 0 of
    `schedule`.

    Raises:
        ValueError: steps is below 0 or not finite.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(warmup(3, constant(1.0)), 5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    steps = _at_least(0, "warmup: steps", steps)
    given: Iterator[Any] = steps_of(schedule, StepNumbers)
    return (replace(s, lr=s.lr * (t + 1) / (steps + 1)) if t < steps else s for t, s in enumerate(given))


def nesterov(schedule: Schedule) -> Iterator[Step]:
    """`schedule` with Nesterov instead of heavy-ball momentum: PyTorch's `SGD(nesterov=True)`.

    With lr η, momentum γ and force f = g + λ w, PyTorch's update is
        v <- γ v + f        w <- w - η (f + γ v)  =  w - η γ (v + f / γ)
    so `lr = η γ` and `lookahead = 1 / γ` (Nesterov, 1983, in the form of Sutskever et al., 2013).
    Where γ = 0 both methods are plain gradient descent, and the Step is unchanged.

    Args:
        schedule: iterable of heavy-ball Steps, without lookahead.

    Raises:
        ValueError: at a Step with lookahead.

    Example:
        >>> step = next(nesterov(constant(0.1, momentum=0.5)))
        >>> step.lr, step.lookahead
        (0.05, 2.0)
    """
    for t, s in enumerate(steps_of(schedule, Step)):
        if s.lookahead:
            raise ValueError(f"nesterov: step {t} already has lookahead={s.lookahead}; give a heavy-ball schedule")
        yield replace(s, lr=s.lr * s.momentum, lookahead=1 / s.momentum) if s.momentum else s


def decoupled(schedule: Schedule) -> Iterator[Step]:
    """`schedule` with weight decay decoupled from the gradient: SGDW (Loshchilov & Hutter, 2019).

        v <- γ v + g        w <- (1 - η λ) w - η v
    so `shrink = η λ` and `weight_decay = 0`. Apply it before `nesterov`, which changes the meaning
    of lr.

    Args:
        schedule: iterable of Steps with L2 weight decay λ.

    Raises:
        ValueError: at a Step with shrink or lookahead, or where η λ is 1 or more.

    Example:
        >>> step = next(decoupled(constant(0.5, weight_decay=0.25)))
        >>> step.weight_decay, step.shrink
        (0.0, 0.125)
    """
    for t, s in enumerate(steps_of(schedule, Step)):
        if s.shrink or s.lookahead:
            raise ValueError(f"decoupled: step {t} already has shrink={s.shrink}, lookahead={s.lookahead}; "
                             "give a heavy-ball schedule with L2 weight decay")
        yield replace(s, weight_decay=0.0, shrink=s.lr * s.weight_decay)


def _step(lr, momentum, weight_decay):
    """The Step of these numbers; ValueError unless momentum is below 1."""
    step = Step(lr, momentum, weight_decay)
    if step.momentum >= 1:
        raise ValueError(f"momentum must lie between 0 and below 1, got {momentum}")
    return step


def _at(step, lr):
    """The step at another learning rate; eight times as fast as `dataclasses.replace`."""
    return step_of(lr, step.momentum, step.weight_decay, 1.0, 0.0, 0.0)


def _at_least(low, name, value):
    """`value` as a float; ValueError unless it is finite and at least `low`."""
    number = arguments.number(name, value)
    if not low <= number < math.inf:  # NaN is in no range
        raise ValueError(f"{name} must be a finite number of at least {low}, got {value}")
    return number
