"""Schedules for other programs: as a function of the step, and as CSV."""

import csv
import difflib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from numbers import Integral
from typing import Any, TextIO, TypeVar

from minibn import arguments, tables
from minibn.backend import array_namespace, device
from minibn.equivalence.methods import METHODS
from minibn.optim import Schedule, Step, StepNumbers

S = TypeVar("S", bound=StepNumbers)

COLUMNS = ("step", "lr", "momentum", "kick", "rescale", "log10_lr", "weight_decay", "lookahead", "shrink")


def lr_function(schedule: Schedule, steps: int) -> Callable[[Any], Any]:
    """`f(t) = lr_t`: the learning rate as a plain function of the step, as other libraries take it.

    The schedule is read once, here, into a table. The function returns only a learning rate, so the
    schedule may change nothing else. That holds for `equivalence.texp` and for
    `remove_weight_decay(schedule, band=None)` of a heavy-ball schedule.

    Use it as a schedule of optax (also under `jit`), in a Keras `LearningRateSchedule`, or as the
    factor of a PyTorch `LambdaLR` on lr=1. Momentum must be that of PyTorch and optax,
    `v <- γ v + g; w <- w - η v`. Keras keeps lr inside the velocity, `u <- μ u - η g; w <- w + u`.
    This is PyTorch's method with μ = γ η_t / η_{t-1}. So the schedules of a constant learning rate,
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
        TypeError: the steps are not of SGD; or, from the function, t is neither an integer nor an
            array of integers.
        OverflowError: from the function, if lr is beyond the dtype, such as float32.

    Example:
        >>> from minibn.equivalence import remove_weight_decay
        >>> from minibn.schedules import constant
        >>> f = lr_function(remove_weight_decay(constant(0.1, weight_decay=0.5), band=None), 3)
        >>> [round(f(t), 4) for t in range(5)]
        [0.1053, 0.1166, 0.1292, 0.1292, 0.1292]
    """
    taken = _taken("lr_function", schedule, steps)
    for t, s in enumerate(taken):
        if not isinstance(s, Step):
            raise TypeError(f"lr_function is for schedules of Step; step {t} is {s}. Its other numbers count too: "
                            "number_functions has a function for each")
        if s != replace(taken[0], lr=s.lr) or s != Step(s.lr, s.momentum, s.weight_decay):
            raise ValueError(
                f"step {t} is more than a learning rate: {s}, after {taken[0]} at step 0. lr_function needs lr alone to "
                "change: convert heavy-ball momentum and L2 weight decay by remove_weight_decay(schedule, band=None), which "
                "neither kicks nor rescales, or use texp")
    return _function("lr", [s.lr for s in taken])


def number_functions(schedule: Iterable[StepNumbers], steps: int) -> dict[str, Callable[[Any], Any]]:
    """{name of a number: its function of the step}, for libraries that can change more than lr from step to step.

    That is what the converted form of AdamW needs, `adam_without_decay(schedule)`: stock Adam whose
    lr, betas and eps all change. In optax, `optax.inject_hyperparams(optax.adam)` takes a function
    for each of them. In PyTorch a scheduler sets them in the optimizer's `param_groups`.
    docs/other-libraries.md has an example of each.

    Args:
        schedule: iterable of step objects of one optimiser.
        steps: how many of them to read, at least 1.

    Returns:
        {field of the step objects: function}, each as `lr_function` returns it. "weight_decay" is
        left out if it is 0 at every step.

    Raises:
        ValueError: steps is below 1 or above the schedule's length.
        TypeError: the steps are not all of one optimiser.

    Example:
        >>> from minibn.equivalence import adam_without_decay
        >>> from minibn.optim import AdamStep
        >>> f = number_functions(adam_without_decay([AdamStep(0.1, weight_decay=0.5)] * 3), 3)
        >>> list(f), round(f["beta1"](2), 4)
        (['lr', 'beta1', 'beta2', 'eps'], 0.8909)
    """
    taken = _taken("number_functions", schedule, steps)
    kind = type(taken[0])
    for t, s in enumerate(taken):
        if type(s) is not kind:
            raise TypeError(f"number_functions needs steps of one optimiser; step {t} is {s}, step 0 is {taken[0]}")
    values = {name: [getattr(s, name) for s in taken] for name in kind.limits}
    return {name: _function(name, value) for name, value in values.items() if name != "weight_decay" or any(value)}


def _taken(caller, schedule, steps):
    """The schedule's first `steps` steps, as a list."""
    steps = arguments.whole(f"{caller}: steps", steps, 1)
    taken = list(islice(schedule, steps))
    if len(taken) < steps:
        raise ValueError(f"{caller}: the schedule has {len(taken)} steps, fewer than {steps}")
    return taken


def _function(name, values):
    """`f(t) = values[t]`, for integers and for arrays of integers; outside, the first or the last value."""

    def number(t):
        if isinstance(t, Integral):
            return values[min(max(int(t), 0), len(values) - 1)]
        try:
            xp = array_namespace(t)
        except TypeError as error:
            raise TypeError(f"{name}: the step must be an integer, or an array of integers, got {arguments.short(t)}") from error
        if not xp.isdtype(t.dtype, "integral"):
            raise TypeError(f"{name}: the step must be an integer, got {t.dtype}")
        table = xp.asarray(values, device=device(t))
        if max(values) > xp.finfo(table.dtype).max:
            raise OverflowError(f"{name} grows to {max(values):.3g}, beyond {table.dtype}; take fewer steps, or float64")
        t = xp.astype(t, xp.asarray(0).dtype, copy=False)  # the library's own integers, which may be an index
        at = xp.reshape(xp.clip(t, 0, len(values) - 1), (-1,))
        return xp.reshape(xp.take(table, at, axis=0), t.shape)

    return number


def write_csv(schedule: Iterable[StepNumbers], file: TextIO) -> None:
    """Write a header, then one line per step object, to an open text file.

    Numbers keep all digits, so `read_csv` gives the same bits. The columns are "step", the fields
    of the steps, and for `Step` "log10_lr". That is the logarithm of the learning rate that the
    schedule would have without `rescale`, which may be far beyond float range:
    `log10(lr) - 2 log10(product of all rescales so far)`, and -inf where lr = 0.

    Raises:
        TypeError: the steps are not all of one optimiser; or `file` is no open text file.

    Example:
        >>> import sys
        >>> write_csv([Step(0.1, 0.9), Step(0.01, 0.9)], sys.stdout)
        step,lr,momentum,kick,rescale,log10_lr,weight_decay,lookahead,shrink
        0,0.1,0.9,0.0,1.0,-1.0,0.0,0.0,0.0
        1,0.01,0.9,0.0,1.0,-2.0,0.0,0.0,0.0
        >>> from minibn.optim import AdamStep
        >>> write_csv([AdamStep(0.001)], sys.stdout)
        step,lr,beta1,beta2,eps,weight_decay
        0,0.001,0.9,0.999,1e-08,0.0
    """
    if not hasattr(file, "write") or isinstance(file, (io.RawIOBase, io.BufferedIOBase)):
        raise TypeError("write_csv: file must be an open text file, such as open('schedule.csv', 'w'), got "
                        f"{arguments.short(file)}")
    writer = csv.writer(file, lineterminator="\n")
    steps = iter(schedule)
    first = next(steps, None)
    kind = Step if first is None else type(first)
    columns = COLUMNS if kind is Step else ("step", *kind.limits)
    writer.writerow(columns)
    exponent = 0  # of the product of rescales, powers of two
    for t, s in enumerate([] if first is None else chain([first], steps)):
        if type(s) is not kind:
            raise TypeError(f"write_csv needs steps of one optimiser; step {t} is {s}, step 0 is {first}")
        row = {"step": t, **{name: getattr(s, name) for name in kind.limits}}
        if isinstance(s, Step):
            exponent += math.frexp(s.rescale)[1] - 1
            row["log10_lr"] = math.log10(s.lr) - 2 * exponent * math.log10(2) if s.lr else -math.inf
        writer.writerow([row[name] for name in columns])


def read_csv(file: Iterable[str], kind: type[S] = Step) -> Iterator[S]:  # type: ignore[assignment]
    """The schedule in an open text file, or in any iterable of lines: a header, then one step object per line.

    Lines are read as the schedule is used. The columns are fields of `kind`, in any order. "lr" is
    required; fields without a column have their defaults. A column "step" must count the steps from
    0 or 1. "log10_lr", which `write_csv` adds, is ignored, and so are other columns, with a warning.
    `tables.read` says what spreadsheets and pandas may add.

    Args:
        file: the lines.
        kind: the class of the step objects: `Step` or another of `minibn.optim`.

    Raises:
        ValueError: the header lacks "lr", has a column that is almost a field of `kind` or one of
            another optimiser; or a line is cut short, is not a step or not the next one, or the
            file was closed before it was read. The message names the line.

    Example:
        >>> [(s.lr, s.weight_decay) for s in read_csv(["lr, weight_decay", "0.1, 5e-4", "0.01, 5e-4"])]
        [(0.1, 0.0005), (0.01, 0.0005)]
        >>> from minibn.optim import AdamStep
        >>> [(s.lr, s.beta2) for s in read_csv(["lr, beta2", "0.1, 0.95"], AdamStep)]
        [(0.1, 0.95)]
    """
    known = list(kind.limits)
    names, rows = tables.read(file, "the schedule")
    others = [name for name in names if name not in {*known, "step", "log10_lr"}]
    foreign = [name for name in others if name in FIELDS]
    if foreign:
        fitting = [other.__name__ for other in KINDS if set(names) - {"step", "log10_lr"} <= set(other.limits)]
        raise ValueError(f"the columns {foreign} of the schedule are numbers of another optimiser's steps, not of a "
                         f"{kind.__name__}{f': read it as {fitting[0]}' if fitting else ''}; got {names}")
    meant = {name: found for name in others if (found := _meant(name, known))}
    if meant or "lr" not in names:
        hint = "".join(f"; {name!r} must be called {field!r}" for name, field in meant.items())
        raise ValueError("the first line of a schedule must name its columns, lr and any of "
                         f"{sorted(set(known) - {'lr'})}; got {names}{hint}")
    if others:
        warnings.warn(f"the columns {others} of the schedule are ignored: a {kind.__name__} has none of these names",
                      stacklevel=2)

    def steps():
        first = 0
        for t, (line, row) in enumerate(rows):
            try:
                if "step" in row:
                    step = tables.whole(row["step"])
                    first = first if t else int(step == 1)
                    if step != first + t:
                        raise ValueError(f"its step is {step} and not {first + t}; give a line for each step, in order, or leave "
                                         "the column out")
                yield kind(**{name: tables.number(row[name]) for name in names if name in known})
            except ValueError as error:
                raise ValueError(f"line {line} of the schedule, {','.join(row.values())[:80]!r}, is not a {kind.__name__} with "
                                 f"the columns {names}: {error}") from error

    return steps()


def _meant(name, known):
    """The field among `known` that a column's name seems to stand for, or None."""
    plain = re.sub(r"[\W_]+", "_", name.lower())
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.75)
    return next((field for field in WORDS.get(plain, ()) if field in known), None) or (close[0] if close else None)


KINDS = [method.step for method in METHODS.values()]
FIELDS = {name for kind in KINDS for name in kind.limits}
WORDS = {"learning_rate": ("lr",), "wd": ("weight_decay",), "decay": ("weight_decay",), "beta": ("momentum", "beta1"),
         "mu": ("momentum",), "b1": ("beta1",), "b2": ("beta2",), "epsilon": ("eps",)}
