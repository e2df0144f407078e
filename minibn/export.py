"""Schedules for other programs: as a function of the step, and as CSV."""

import csv
import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from itertools import islice
from numbers import Integral
from typing import Any, TextIO

from minibn import tables
from minibn.backend import array_namespace, device
from minibn.optim import Schedule, Step

COLUMNS = ("step", "lr", "momentum", "kick", "rescale", "log10_lr", "weight_decay", "lookahead", "shrink")


def lr_function(schedule: Schedule, steps: int) -> Callable[[Any], Any]:
    """`f(t) = lr_t`: the learning rate as a plain function of the step, as other libraries take it.

    The schedule is read once, here, into a table. The function returns only a learning rate, so the
    schedule may change nothing else. That holds for `equivalence.texp` and for
    `remove_weight_decay(schedule, band=None)` of a heavy-ball schedule.

    Use it as a schedule of optax (also under `jit`), in a Keras `LearningRateSchedule`, or as the
    factor of a PyTorch `LambdaLR` on lr=1. Momentum must be that of PyTorch and optax,
    `v <- γ v + g; w <- w - η v`. Keras keeps lr inside the velocity, `u <- μ u - η g; w <- w + u`.
    That is the same method with μ = γ η_t / η_{t-1}. So the schedules of a constant learning rate,
    `texp` with one phase, are exact in Keras with the constant momentum γ / α², where
    `(α, κ) = equivalence.fixed_point(…)`. Others need a momentum that changes, unless γ = 0.

    Args:
        schedule: iterable of `Step`.
        steps: how many of them to read, at least 1.

    Returns:
        function of t. For an integer it returns a float. For an array of integers of any library
        (0-dimensional or traced by jax, too) it returns an array of the same shape, in that
        library's default dtype. Before t = 0 it returns the first learning rate, from t = steps on
        the last, as optax does.

    Raises:
        ValueError: steps is below 1 or above the schedule's length; or a Step has kick, rescale,
            lookahead or shrink, or another momentum or weight decay than the first.
        TypeError: from the function, if t is neither an integer nor an array of integers.
        OverflowError: from the function, if lr is beyond the dtype, such as float32.

    Example:
        >>> from minibn.equivalence import remove_weight_decay
        >>> from minibn.schedules import constant
        >>> f = lr_function(remove_weight_decay(constant(0.1, weight_decay=0.5), band=None), 3)
        >>> [round(f(t), 4) for t in range(5)]
        [0.1053, 0.1166, 0.1292, 0.1292, 0.1292]
    """
    if not 1 <= steps < math.inf:  # NaN is in no range
        raise ValueError(f"lr_function: steps must be a finite number of at least 1, got {steps}")
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


def write_csv(schedule: Schedule, file: TextIO) -> None:
    """Write a header, then one line per Step, to an open text file.

    Numbers keep all digits, so `read_csv` gives the same bits. The column "log10_lr" is the logarithm
    of the learning rate that the schedule would have without `rescale`, which may be far beyond float
    range: `log10(lr) - 2 log10(product of all rescales so far)`, and -inf where lr = 0.

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
    """The schedule in an open text file, or in any iterable of lines: a header, then one Step per line.

    Lines are read as the schedule is used. The columns are fields of `Step`, in any order. "lr" is
    required; fields without a column have their defaults. "step" and "log10_lr", which `write_csv`
    adds, are ignored, and so are other columns, with a warning. `tables.read` says what spreadsheets
    and pandas may add.

    Raises:
        ValueError: the header lacks "lr" or has a column that is almost a field of Step, or a line is cut
            short or is not a Step. The message names the line.

    Example:
        >>> [(s.lr, s.weight_decay) for s in read_csv(["lr, weight_decay", "0.1, 5e-4", "0.01, 5e-4"])]
        [(0.1, 0.0005), (0.01, 0.0005)]
    """
    known = [field.name for field in fields(Step)]
    names, rows = tables.read(file, "the schedule")
    others = [name for name in names if name not in {*known, "step", "log10_lr"}]
    meant = {name: found for name in others if (found := _meant(name, known))}
    if meant or "lr" not in names:
        hint = "".join(f"; {name!r} must be called {field!r}" for name, field in meant.items())
        raise ValueError("the first line of a schedule must name its columns, lr and any of "
                         f"{sorted(set(known) - {'lr'})}; got {names}{hint}")
    if others:
        warnings.warn(f"the columns {others} of the schedule are ignored: a Step has none of these names", stacklevel=2)

    def steps():
        for line, row in rows:
            try:
                yield Step(**{name: tables.number(row[name]) for name in names if name in known})
            except ValueError as error:
                raise ValueError(f"line {line} of the schedule, {','.join(row.values())[:80]!r}, is not a Step with the columns "
                                 f"{names}: {error}") from error

    return steps()


def _meant(name, known):
    """The field of Step that a column's name seems to stand for, or None."""
    words = {"learning_rate": "lr", "wd": "weight_decay", "decay": "weight_decay", "beta": "momentum", "mu": "momentum"}
    plain = re.sub(r"[\W_]+", "_", name.lower())
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.75)
    return words.get(plain) or (close[0] if close else None)
