"""What a training loop measures, and when the numbers are read.

The CPU queues work for a GPU and runs ahead. Reading a number waits for everything that was queued
before it. So a step reads no numbers: its row keeps 0-d arrays, and many rows are read later in one
transfer.
"""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from minibn import arguments, backend, monitor, nn
from minibn.backend import Array
from minibn.optim import Optimizer
from minibn.training.apart import check_apart
from minibn.training.history import History


class DivergenceError(FloatingPointError):
    """A loss or a weight is not finite. The message names the step, the group, its lr and the last checkpoint."""


class Watched(NamedTuple):
    """Parameters that are measured as one vector, and the optimiser that updates them."""

    parameters: list[nn.Parameter]
    optimizer: Optimizer


def watch(model: nn.Module, optimizers: Mapping[str, Optimizer], groups: Mapping[str, Iterable[str]]) -> dict[str, Watched]:
    """{name: Watched} for each optimiser, then for each of `groups`, {name: names of its parameters}.

    Raises:
        ValueError: two optimisers have a parameter or a schedule in common, or one has a parameter
            that is not the model's; or a group has an optimiser's name, no parameters or an unknown
            one, or it is not within one optimiser.
    """
    watched = {name: Watched(list(sgd.parameters), sgd) for name, sgd in optimizers.items()}
    parameters = dict(model.named_parameters())
    check_apart(optimizers)
    own = {id(parameter) for parameter in parameters.values()}
    for name, optimizer in optimizers.items():
        if foreign := [str(i) for i, parameter in enumerate(optimizer.parameters) if id(parameter) not in own]:
            raise ValueError(f"the optimiser {name!r} would train what is no parameter of this model ({len(foreign)} of its "
                             f"{len(optimizer.parameters)} parameters, the first is number {foreign[0]}), such as one of a copy "
                             "or of an earlier model; make the optimisers from the parameters of the model that is trained")
    owner = {id(p): sgd for sgd in optimizers.values() for p in sgd.parameters}
    for name, members in groups.items():
        members = list(arguments.iterable(f"group {name!r}", members, "a list of names of parameters"))
        if name in optimizers or not members or not set(members) <= parameters.keys():
            raise ValueError(f"group {name!r} of {members} needs a name that no optimiser has, and names of parameters; "
                             f"optimisers are {list(optimizers)}, parameters {list(parameters)}")
        owners = {id(owner.get(id(parameters[n]))): owner.get(id(parameters[n])) for n in members}
        sgd = next(iter(owners.values()))
        if len(owners) > 1 or sgd is None:
            raise ValueError(f"group {name!r} of {members} is not trained by one optimiser; give one for each optimiser")
        watched[name] = Watched([parameters[n] for n in parameters if n in members], sgd)
    return watched


def names_of(watched: Mapping[str, Watched], model: nn.Module) -> dict[str, dict[str, str]]:
    """{name: {"0": name of its first parameter, …}} and its optimiser's class, for the checkpoint."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: {"optimizer": type(optimizer).__name__, **{str(i): names[id(p)] for i, p in enumerate(parameters)}}
            for name, (parameters, optimizer) in watched.items()}


def weights(watched: Mapping[str, Watched]) -> dict[str, list[Array]]:
    """{name: the present arrays of its weights}. They do not change later, since an update makes new arrays."""
    return {name: [p.data for p in one.parameters] for name, one in watched.items()}


def measure(watched: Mapping[str, Watched], before: Mapping[str, list[Array]]) -> dict[str, Any]:
    """The columns "lr/NAME" … "predicted_norm/NAME" of `History` for the latest update.

    `before` is `weights(watched)` from before that update. No number is read from the device.
    """
    row: dict[str, Any] = {}
    for name, (parameters, optimizer) in watched.items():
        step, after = optimizer.last, [p.data for p in parameters]
        assert step is not None, "measure needs an optimiser that has taken a step"
        norm, effective_lr, angle = monitor.measure(step, before[name], after)
        row |= {f"lr/{name}": step.lr, f"norm/{name}": norm, f"effective_lr/{name}": effective_lr, f"angle/{name}": angle,
                f"predicted_angle/{name}": monitor.predicted_angle_of(step),
                f"predicted_norm/{name}": monitor.predicted_norm_here(step, sum(math.prod(w.shape) for w in after), norm, angle)}
    return row


class Recorder:
    """Takes one row per step, and moves the rows into a History when their numbers are read.

    Attributes:
        history: the rows read so far.
        saved: the last checkpoint, for the message of a DivergenceError; None if there is none.

    Args:
        history: `History` to append to.
        groups: names of the optimisers, whose weights must stay finite.
        bar: progress bar, updated whenever numbers are read.
        pause: seconds between two readings. 0: read at every step.
    """

    def __init__(self, history: History, groups: Iterable[str], bar: tqdm, *, pause: float,
                 saved: str | Path | None = None) -> None:
        self.history, self.saved = history, saved
        self._groups, self._bar, self._pause = list(groups), bar, pause
        self._pending: list[dict[str, Any]] = []
        self._due = time.monotonic() + pause

    def add(self, row: dict[str, Any], *, now: bool = False) -> None:
        """Keep `row`. Read all rows kept so far with `now`, or when `pause` seconds have passed.

        Raises:
            DivergenceError: a row that was read has a loss or a weight that is not finite.
        """
        self._pending.append(row)
        if now or time.monotonic() >= self._due:
            self.collect()
            self._show()
            self._due = time.monotonic() + self._pause

    def collect(self) -> None:
        """Read the numbers of all pending rows in one transfer, and append the rows up to one that diverged.

        Raises:
            DivergenceError: as from `add`.
        """
        numbers = iter(backend.read([value for row in self._pending for value in row.values()]))
        for row in [{name: next(numbers) for name in row} for row in self._pending]:
            self._check(row)
            self.history.append(row)
        self._pending.clear()

    def _check(self, row):
        if not math.isfinite(row["loss"]):
            rates = {group: self.history.columns[f"lr/{group}"][-1] for group in self._groups if len(self.history)}
            raise self._divergence(f"the loss is {row['loss']}", row["step"], rates)
        for group in self._groups:
            if not math.isfinite(row[f"norm/{group}"]):
                raise self._divergence("a weight is not finite", row["step"], {group: row[f"lr/{group}"]})

    def _divergence(self, what, step, rates):
        groups = ", ".join(f"group {name!r} with lr {lr:.4g}" for name, lr in rates.items())
        where = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint"
        return DivergenceError(f"step {step}: {what} after an update of {groups or 'nothing yet'}; {where}. "
                               "Lower the learning rate, or warm it up.")

    def _show(self):
        last = {name: values[-1] for name, values in self.history.columns.items()}
        rates = [(f"lr/{group}", f"{last[f'lr/{group}']:.3g}") for group in self._groups]
        numbers = [*rates[:1], ("loss", f"{last['loss']:.4f}"), ("acc", f"{last['accuracy']:.3f}"), *rates[1:]]
        self._bar.set_postfix(dict(numbers), refresh=False)
        self._bar.update(len(self.history) - self._bar.n)
