"""Schedules: streams of `Step`, as functions and as CSV.

One function a schedule, the formula first. All are endless, so none needs to know how long training is; steps are counted
from t = 0. Arguments are checked at the call, not at the first step. Momentum γ and weight decay λ stay constant.
A schedule is read once: make one for each SGD.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from itertools import count, islice, repeat
from numbers import Integral
from typing import Any, TextIO

from minibn.backend import array_namespace, device
from minibn.optim import Schedule, Step


def constant(lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = lr`.

    Example:
        >>> next(constant(0.1, momentum=0.9)).momentum
        0.9
    """
    return repeat(_step(lr, momentum, weight_decay))


def step_decay(lr: float, milestones: Iterable[int], factor: float = 0.1, *, momentum: float = 0.0,
               weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = lr * factor**(number of milestones <= t)`.

    Args:
        lr: learning rate of the first step.
        milestones: increasing step numbers at which the learning rate is multiplied by `factor`.
        factor: at least 0.

    Raises:
        ValueError: the milestones do not increase, or a number is negative or not finite.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(step_decay(1.0, [2, 3]), 4)]
        [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    milestones = list(milestones)
    if any(a >= b for a, b in zip([-1, *milestones], milestones, strict=False)):
        raise ValueError(f"step_decay: milestones must be increasing step numbers of at least 0, got {milestones}")
    _not_negative("step_decay", factor=factor)
    _step(lr, momentum, weight_decay)
    return (Step(lr * factor ** bisect_right(milestones, t), momentum, weight_decay) for t in count())


def cosine(lr: float, steps: int, final: float = 0.0, *, momentum: float = 0.0,
           weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = final + (lr - final) (1 + cos(π t / steps)) / 2` up to t = steps, then `final` (Loshchilov & Hutter, 2017).

    Raises:
        ValueError: steps is below 1, or a number is negative or not finite.

    Example:
        >>> from itertools import islice
        >>> [round(s.lr, 3) for s in islice(cosine(1.0, 4), 6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    _positive_steps("cosine", steps)
    _step(lr, momentum, weight_decay)
    _not_negative("cosine", final=final)
    return (Step(final + (lr - final) * (1 + math.cos(math.pi * min(t, steps) / steps)) / 2, momentum, weight_decay)
            for t in count())


def exponential(lr: float, growth: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> Iterator[Step]:
    """`lr_t = lr * growth**t`. The paper's schedule has growth > 1.

    Raises:
        ValueError: a number is negative or not finite.
        OverflowError: at the step where lr leaves float range; `equivalence.remove_weight_decay` has `band` for that.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(exponential(0.5, 2.0), 3)]
        [0.5, 1.0, 2.0]
    """
    _step(lr, momentum, weight_decay)
    _not_negative("exponential", growth=growth)

    def lr_at(t):
        try:
            return lr * float(growth) ** t
        except OverflowError:
            raise OverflowError(f"exponential: lr={lr} * growth={growth} ** {t} is beyond float range; "
                                "equivalence.remove_weight_decay has `band` for schedules that grow for ever") from None

    return (Step(lr_at(t), momentum, weight_decay) for t in count())


def warmup(steps: int, schedule: Schedule) -> Iterator[Step]:
    """`lr_t * (t + 1) / (steps + 1)` for t < steps, then `schedule` as it is (Goyal et al., 2017).

    Only lr is changed; the schedule's own clock runs from the first warm-up step.

    Raises:
        ValueError: steps is below 0.

    Example:
        >>> from itertools import islice
        >>> [s.lr for s in islice(warmup(3, constant(1.0)), 5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if steps < 0:
        raise ValueError(f"warmup: steps must be at least 0, got {steps}")
    return (replace(s, lr=s.lr * (t + 1) / (steps + 1)) if t < steps else s for t, s in enumerate(schedule))


def nesterov(schedule: Schedule) -> Iterator[Step]:
    """`schedule` with Nesterov's momentum in place of heavy-ball: PyTorch's `SGD(nesterov=True)`.

    With lr η, momentum γ and force f = g + λ w, PyTorch's update is
        v <- γ v + f        w <- w - η (f + γ v)  =  w - η γ (v + f / γ)
    so `lr = η γ` and `lookahead = 1 / γ` (Nesterov, 1983, in the form of Sutskever et al., 2013). Where γ = 0 both
    methods are plain gradient descent and the Step stays as it is.

    Args:
        schedule: iterable of heavy-ball Steps, without lookahead.

    Raises:
        ValueError: at a Step with lookahead.

    Example:
        >>> step = next(nesterov(constant(0.1, momentum=0.5)))
        >>> step.lr, step.lookahead
        (0.05, 2.0)
    """
    for t, s in enumerate(schedule):
        if s.lookahead:
            raise ValueError(f"nesterov: step {t} already has lookahead={s.lookahead}; give a heavy-ball schedule")
        yield replace(s, lr=s.lr * s.momentum, lookahead=1 / s.momentum) if s.momentum else s


def decoupled(schedule: Schedule) -> Iterator[Step]:
    """`schedule` with its weight decay decoupled from the gradient: SGDW (Loshchilov & Hutter, 2019).

        v <- γ v + g        w <- (1 - η λ) w - η v
    so `shrink = η λ` and `weight_decay = 0`. Apply it before `nesterov`, which changes the meaning of lr.

    Args:
        schedule: iterable of Steps with L2 weight decay λ.

    Raises:
        ValueError: at a Step with shrink or lookahead, or where η λ is 1 or more.

    Example:
        >>> step = next(decoupled(constant(0.5, weight_decay=0.25)))
        >>> step.weight_decay, step.shrink
        (0.0, 0.125)
    """
    for t, s in enumerate(schedule):
        if s.shrink or s.lookahead:
            raise ValueError(f"decoupled: step {t} already has shrink={s.shrink}, lookahead={s.lookahead}; "
                             "give a heavy-ball schedule with L2 weight decay")
        yield replace(s, weight_decay=0.0, shrink=s.lr * s.weight_decay)


def lr_function(schedule: Schedule, steps: int) -> Callable[[Any], Any]:
    """`f(t) = lr_t`: the learning rate as a plain function of the step, as other libraries take it.

    optax takes it as a schedule, under `jit` too; Keras in a `LearningRateSchedule`; PyTorch as the factor of a `LambdaLR` on
    lr=1. Of an integer t it is a float; of an array of integers of any library (also 0-dimensional, or traced by jax) an array of
    the same shape, in that library's default dtype. Before t = 0 it is the first learning rate, from t = steps on the last, as in
    optax. It is a table: the schedule is read once, here.

    A learning rate is all that a function can say, so it must be all that the schedule changes. So it is in what
    `remove_weight_decay(schedule, band=None)` makes of a heavy-ball schedule, and in `texp`.

    Momentum must be PyTorch's and optax's, `v <- γ v + g; w <- w - η v`. Keras keeps lr within the velocity,
    `u <- γ u - η g; w <- w + u`: another method where lr changes, unless γ = 0.

    Args:
        schedule: iterable of `Step`.
        steps: how many of them to take, at least 1.

    Returns:
        function of t.

    Raises:
        ValueError: steps is below 1, or more than the schedule has; or a Step has kick, rescale, lookahead or shrink, or another
            momentum or weight decay than the first.
        TypeError: from the function, if t is neither an integer nor an array of integers.
        OverflowError: from the function, if lr is beyond the dtype, such as float32.

    Example:
        >>> from minibn.equivalence import remove_weight_decay
        >>> f = lr_function(remove_weight_decay(constant(0.1, weight_decay=0.5), band=None), 3)
        >>> [round(f(t), 4) for t in range(5)]
        [0.1053, 0.1166, 0.1292, 0.1292, 0.1292]
    """
    _positive_steps("lr_function", steps)
    taken = list(islice(schedule, steps))
    if len(taken) < steps:
        raise ValueError(f"lr_function: the schedule has {len(taken)} steps, fewer than {steps}")
    for t, s in enumerate(taken):
        if s != replace(taken[0], lr=s.lr) or s != Step(s.lr, s.momentum, s.weight_decay):
            raise ValueError(
                f"step {t} is more than a learning rate: {s}, after {taken[0]} at step 0. lr_function needs lr alone to "
                "change: convert heavy-ball momentum and L2 weight decay by remove_weight_decay(schedule, band=None), which "
                "neither kicks nor rescales, or use texp")
    rates = [s.lr for s in taken]

    def lr(t):
        if isinstance(t, Integral):
            return rates[min(max(int(t), 0), steps - 1)]
        xp = array_namespace(t)
        if not xp.isdtype(t.dtype, "integral"):
            raise TypeError(f"lr_function: the step must be an integer, got {t.dtype}")
        table = xp.asarray(rates, device=device(t))
        if max(rates) > xp.finfo(table.dtype).max:
            raise OverflowError(f"lr_function: lr grows to {max(rates):.3g}, beyond {table.dtype}; take fewer steps, or float64")
        t = xp.astype(t, xp.asarray(0).dtype, copy=False)  # the library's own integers, which may be an index
        return xp.reshape(xp.take(table, xp.reshape(xp.clip(t, 0, steps - 1), (-1,)), axis=0), t.shape)

    return lr


COLUMNS = ("step", "lr", "momentum", "kick", "rescale", "log10_lr", "weight_decay", "lookahead", "shrink")


def write_csv(schedule: Schedule, file: TextIO) -> None:
    """Write a header and a line for each Step to an open text file; all digits, so `read_csv` gives the same bits.

    The column "log10_lr" is the logarithm of the learning rate that a schedule without `rescale` would have, which may be
    far beyond float range: `log10(lr) - 2 log10(product of all rescales so far)`; -inf where lr = 0.

    Example:
        >>> import sys
        >>> write_csv([Step(0.1, 0.9), Step(0.01, 0.9)], sys.stdout)
        step,lr,momentum,kick,rescale,log10_lr,weight_decay,lookahead,shrink
        0,0.1,0.9,0.0,1.0,-1.0,0.0,0.0,0.0
        1,0.01,0.9,0.0,1.0,-2.0,0.0,0.0,0.0
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    exponent = 0  # of the product of rescales, powers of two
    for t, s in enumerate(schedule):
        exponent += math.frexp(s.rescale)[1] - 1
        log = math.log10(s.lr) - 2 * exponent * math.log10(2) if s.lr else -math.inf
        row = {"step": t, "log10_lr": log, **{field.name: getattr(s, field.name) for field in fields(s)}}
        writer.writerow([row[name] for name in COLUMNS])


def read_csv(file: Iterable[str]) -> Iterator[Step]:
    """The schedule in an open text file (or any iterable of lines): a header, then one Step a line; read as it is used.

    Columns are the fields of `Step`, in any order; "lr" must be there, others have their defaults. "step" and "log10_lr", as
    `write_csv` adds them, are not read.

    Raises:
        ValueError: the header has no "lr" or a column that is not one of Step, or a line is cut short, not numbers, or not
            a Step; with the number of the line.

    Example:
        >>> [(s.lr, s.weight_decay) for s in read_csv(["lr, weight_decay", "0.1, 5e-4", "0.01, 5e-4"])]
        [(0.1, 0.0005), (0.01, 0.0005)]
    """
    known = {field.name for field in fields(Step)}
    reader = csv.reader(file)
    names = [name.strip() for name in next(reader, [])]
    unknown = [name for name in names if name not in known | {"step", "log10_lr"}]
    if "lr" not in names or unknown or len(set(names)) < len(names):
        raise ValueError("the first line of a schedule must name its columns, lr and any of "
                         f"{sorted(known - {'lr'})}; got {names}")

    def steps():
        for row in reader:
            try:
                numbers = {name: float(text) for name, text in zip(names, row, strict=True) if name in known}
                yield Step(**numbers)
            except ValueError as error:
                raise ValueError(f"line {reader.line_num} of the schedule, {','.join(row)!r}, is not a Step with the columns "
                                 f"{names}: {error}") from error

    return steps()


def _step(lr, momentum, weight_decay):
    """A Step for an ordinary schedule, where a momentum of 1 or more is a mistake."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie between 0 and below 1, got {momentum}")
    return Step(lr, momentum, weight_decay)


def _not_negative(name, **numbers):
    for key, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {key} must be a finite number of at least 0, got {value}")


def _positive_steps(name, steps):
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}")
