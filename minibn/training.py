"""The training loop: progress, history, checkpoints, and a stop when numbers leave float range."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import Any

from numpy.random import Generator
from tqdm import tqdm

from minibn import backend, checkpoint, data, monitor, nn
from minibn.backend import Array, array_namespace
from minibn.equivalence import remove_weight_decay
from minibn.history import History
from minibn.invariance import symmetries
from minibn.optim import SGD, Schedule


class DivergenceError(FloatingPointError):
    """A loss or weight that is not finite; the message names the step, the group, its lr and the last checkpoint."""


@dataclass(frozen=True)
class Conversion:
    """What `convert` returns; `str()` says which parameters were converted, and why the rest were not.

    Attributes:
        optimizers: {"invariant": SGD, "rest": SGD} for `fit`; without "rest" if every parameter is converted.
        names: the converted parameters.
        reasons: {name of every other parameter: why it keeps the given schedule}.
        eps: the largest of the network's normalisations; above 0 the conversion is approximate.
    """

    optimizers: dict[str, SGD]
    names: tuple[str, ...]
    reasons: dict[str, str]
    eps: float = 0.0

    def __str__(self):
        kept = [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        near = [f"approximate: the normalisations have eps of up to {self.eps:g}; with eps=0 it is exact"] if self.eps else []
        return "\n".join(["converted: " + ", ".join(self.names), "as they were:" if kept else "as they were: none", *kept, *near])


def convert(model: nn.Module, schedule: Schedule, names: Iterable[str] | None = None, *,
            band: float | None = 2.0**32) -> Conversion:
    """Optimisers that train `model` as `schedule` would, without weight decay on its scale-invariant weights.

    The scale-invariant parameters get `equivalence.remove_weight_decay(schedule)`, all others `schedule` itself: if the
    normalisations have eps = 0, the network is the same at every step.

    Args:
        model: an `nn.Module`.
        schedule: iterable of `Step`; it is read once, for both.
        names: which parameters to convert. None: all groups of `invariance.symmetries(model)`.
        band: as in `remove_weight_decay`.

    Returns:
        Conversion

    Raises:
        ValueError: `names` are not scale-invariant together (the message says why), or no parameter is.
    """
    found = symmetries(model)
    names = [name for group in found.groups for name in group] if names is None else list(names)
    if not names or not found.is_scale_invariant(names):
        why = "; ".join(found.explain(name) for name in names) or "the network has no scale-invariant parameters"
        raise ValueError(f"weight decay cannot be removed from {list(names)}, which are not scale-invariant together: {why}")
    first, second = tee(schedule)
    groups: dict[str, tuple[list[nn.Parameter], Schedule]]
    groups = {"invariant": ([], remove_weight_decay(first, band=band)), "rest": ([], second)}
    for name, parameter in model.named_parameters():
        groups["invariant" if name in names else "rest"][0].append(parameter)
    reasons = {name: "not among the names given" if any(name in group for group in found.groups) else found.explain(name)
               for name in found.names if name not in names}
    return Conversion({group: SGD(*pair) for group, pair in groups.items() if pair[0]}, tuple(names), reasons,
                      max(found.eps.values(), default=0.0))


def fit(model: nn.Module, optimizers: Mapping[str, SGD], x: Array, y: Array, *, epochs: int, batch_size: int, rng: Generator,
        loss: nn.Loss | None = None, drop_last: bool = True, path: str | Path | None = None, every: int = 100,
        resume: bool = True, max_steps: int | None = None, augment: Callable[..., Array] | None = None,
        validation: tuple[Array, Array] | None = None, settings: Any = None, threads: int | None = None, progress: bool = True,
        description: str = "train") -> History:
    """Train `model` on (x, y), and return the `History` of every step.

    One step: draw a batch, forward, loss, backward, then each optimiser's step. Results are the same to the last bit for
    any number of threads, and for a run that was stopped and resumed.

    Args:
        model: an `nn.Module`.
        optimizers: {group name: SGD}. Two groups of weights are two optimisers, each with its own schedule; together
            they should hold all parameters that are to be trained.
        x, y: training inputs (N, …) and labels (N,). Each batch is moved to where the model is; what is there already stays.
        epochs: how many times to go through the data.
        batch_size, drop_last: as in `data.batches`.
        rng: numpy.random.Generator that shuffles the data.
        loss: `nn.CrossEntropy()` if None.
        path: file for checkpoints, written every `every` steps and at the end. With `resume`, a checkpoint that is
            there already is loaded first, and training goes on from it: model, optimisers, rng and history then
            continue as if never stopped. The optimisers must be fresh.
        max_steps: stop after this step even if epochs are left (a later call can resume).
        augment: as in `data.batches`.
        validation: (x, y) to evaluate after the last step of each epoch, into the columns "test_loss" and "test_accuracy", NaN
            at other steps.
        settings: anything JSON can hold that says what is trained; kept in the checkpoint, and one with other settings is
            refused.
        threads: as in `backend.threads`.
        progress: whether to show a bar with loss, accuracy and learning rates.

    Returns:
        History with "accuracy" that of the batch in training mode.

    Raises:
        DivergenceError: the loss or a weight is not finite; no checkpoint is written from then on. On a GPU, where measurements
            are fetched only now and then, training may be some steps further by then; the message names the step where it began.
        ValueError: data, batch size or checkpoint do not fit, or the model was moved after its optimisers were made.
    """
    loss = loss or nn.CrossEntropy()
    data.check_examples(x, y)
    if epochs < 1 or every < 1:
        raise ValueError(f"fit: epochs and every must be at least 1, got {epochs} and {every}")
    data.batches(x, y, batch_size, rng=rng)  # complains now, not at the first step
    per_epoch = x.shape[0] // batch_size if drop_last else -(-x.shape[0] // batch_size)
    last = min(epochs * per_epoch, max_steps or epochs * per_epoch)
    where = next(model.arrays(), None)
    for group, sgd in optimizers.items():
        if any(backend.move(v, p.data) is not v for p, v in zip(sgd.parameters, sgd.velocity, strict=True)):
            raise ValueError(f"the optimiser of group {group!r} was made before its parameters moved; make it after model.to")
    history, pending, saved = History(), [], None
    if path and resume and Path(path).exists():
        history, saved = _restore(path, model, optimizers, rng, settings), path
    model.train()
    step = first = len(history)
    pause = 0 if where is None or backend.is_on_host(where) else 0.1 if progress else 1.0  # seconds between looks at the numbers
    look = time.monotonic() + pause
    with backend.threads(threads), tqdm(total=last, initial=step, desc=description, disable=not progress) as bar:
        while step < last:
            start_of_epoch = rng.bit_generator.state
            epoch = data.batches(x, y, batch_size, rng=rng, drop_last=drop_last, augment=augment)
            done = step % per_epoch
            for batch_x, batch_y in islice(epoch, done, min(per_epoch, done + last - step)):
                labels = y if step == first else None
                moved = backend.move(batch_x, where), backend.move(batch_y, where)
                row = _train_step(model, loss, optimizers, *moved, step, labels)
                pending.append(row)
                step += 1
                save = path and (step % every == 0 or step == last)
                end = validation and step % per_epoch == 0
                if validation:
                    measured = evaluate(model, *validation, loss=loss) if end else (math.nan, math.nan)
                    row["test_loss"], row["test_accuracy"] = measured
                if save or end or step == last or time.monotonic() >= look:
                    _collect(pending, history, optimizers, saved)
                    _show(bar, history)
                    look = time.monotonic() + pause
                if save:
                    _save(path, model, optimizers, rng, start_of_epoch, per_epoch, history, settings)
                    saved = path
    return history


def _train_step(model, loss, optimizers, x, y, step, labels=None):
    """One update of every group; returns the row of the History, its numbers still where the model is.

    Nothing in here reads a number from the device, but for the check of `labels`, all those of the run, at its first step.
    """
    logits = model(x)
    if labels is not None and hasattr(loss, "check"):
        loss.check(logits, labels)
    row = {"step": step, "loss": loss(logits, y), "accuracy": _accuracy(logits, y)}
    for sgd in optimizers.values():
        sgd.zero_grad()
    model.backward(loss.backward())
    for name, sgd in optimizers.items():
        before = [p.data for p in sgd.parameters]
        update = sgd.step()
        after = [p.data for p in sgd.parameters]
        row |= {f"lr/{name}": update.lr, f"norm/{name}": backend.norm(after),
                f"effective_lr/{name}": monitor.effective_lr(update, before),
                f"angle/{name}": monitor.angular_update(before, after),
                f"predicted_angle/{name}": monitor.predicted_angle_of(update)}
    return row


def _collect(pending, history, optimizers, saved):
    """Fetch the numbers of the `pending` rows in one transfer, and move the rows into the history, up to one that diverged."""
    numbers = iter(backend.read([value for row in pending for value in row.values()]))
    for row in [{name: next(numbers) for name in row} for row in pending]:
        if not math.isfinite(row["loss"]):
            rates = {group: history.columns[f"lr/{group}"][-1] for group in optimizers if len(history)}
            raise _divergence(f"the loss is {row['loss']}", row["step"], rates, saved)
        for group in optimizers:
            if not math.isfinite(row[f"norm/{group}"]):
                raise _divergence("a weight is not finite", row["step"], {group: row[f"lr/{group}"]}, saved)
        history.append(row)
    pending.clear()


def evaluate(model: nn.Module, x: Array, y: Array, *, loss: nn.Loss | None = None, batch_size: int = 256,
             threads: int | None = None) -> tuple[float, float]:
    """(loss, accuracy), two floats, of `model` in evaluation mode over all of (x, y)."""
    logits = predict(model, x, batch_size=batch_size, threads=threads)
    y = backend.move(y, logits)
    value, accuracy = backend.read([(loss or nn.CrossEntropy())(logits, y), _accuracy(logits, y)])
    return value, accuracy


def predict(model: nn.Module, x: Array, *, batch_size: int = 256, threads: int | None = None) -> Array:
    """Outputs (N, …) of `model` in evaluation mode, where x is; the model is then in the mode it was in before.

    Batches of x are moved to where the model is.
    """
    if x.shape[0] == 0:
        raise ValueError("predict needs at least one example")
    where = next(model.arrays(), None)
    with _mode(model, train=False), backend.threads(threads):
        parts = [model(_part(x, i, batch_size, where)) for i in range(0, x.shape[0], batch_size)]
    return backend.move(array_namespace(parts[0]).concat(parts, axis=0), x)


def update_bn(model: nn.Module, x: Array, *, batch_size: int = 256, threads: int | None = None) -> None:
    """Set the running statistics of every BatchNorm to plain averages over the whole batches of x, at the present weights.

    As `torch.optim.swa_utils.update_bn`. The running averages of training lag behind: where weights grow exponentially, as
    without weight decay, they belong to smaller weights, and evaluation is no longer scale-invariant. With
    statistics taken anew it is, so two equivalent runs agree in evaluation too.
    """
    norms = [module for _, module in model.named_modules() if isinstance(module, nn.BatchNorm)]
    momenta, where = [norm.momentum for norm in norms], next(model.arrays(), None)
    try:
        with _mode(model, train=True), backend.threads(threads):
            for count, i in enumerate(range(0, max(x.shape[0] - batch_size, 0) + 1, batch_size), 1):
                for norm in norms:
                    norm.momentum = 1 / count  # the mean of `count` batches
                model(_part(x, i, batch_size, where))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _part(x, start, size, where):
    """`size` rows of x, or as many as are left, moved to where the array `where` is."""
    return backend.move(x[start : min(start + size, x.shape[0]), ...], where)


@contextmanager
def _mode(model, *, train):
    """The whole model in training or evaluation mode, and each module back in its own afterwards."""
    before = [(module, module.training) for _, module in model.named_modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _accuracy(outputs, y):
    """The part of largest logits (N, K), or of scores (N,) with the sign of their label, that are right."""
    xp = array_namespace(outputs)
    right = xp.argmax(outputs, axis=1) == y if outputs.ndim > 1 else (outputs > 0) == (y > 0)
    return xp.mean(xp.astype(right, outputs.dtype))


def _divergence(what, step, rates, saved):
    groups = ", ".join(f"group {name!r} with lr {lr:.4g}" for name, lr in rates.items())
    where = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint"
    return DivergenceError(f"step {step}: {what} after an update of {groups or 'nothing yet'}; {where}. "
                           "Lower the learning rate, or warm it up.")


def _show(bar, history):
    row = {name: values[-1] for name, values in history.columns.items()}
    rates = {name: f"{value:.3g}" for name, value in row.items() if name.startswith("lr/")}
    bar.set_postfix({"loss": f"{row['loss']:.4f}", "acc": f"{row['accuracy']:.3f}", **rates}, refresh=False)
    bar.update(len(history) - bar.n)


def _save(path, model, optimizers, rng, start_of_epoch, per_epoch, history, settings):
    arrays = {f"model/{name}": value for name, value in model.state_dict().items()}
    arrays |= {f"history/{name}": history[name] for name in history.columns}
    steps = {}
    for group, sgd in optimizers.items():
        state = sgd.state_dict()
        steps[group] = state["steps"]
        arrays |= {f"velocity/{group}/{i}": v for i, v in enumerate(sgd.velocity)}
    # within an epoch the same shuffle must be drawn again; at its end the next one
    generator = start_of_epoch if len(history) % per_epoch else rng.bit_generator.state
    facts = {"steps": steps, "generator": generator, "columns": list(history.columns), "settings": settings}
    checkpoint.save(path, arrays, facts)


def _restore(path, model, optimizers, rng, settings):
    """Load what `_save` wrote, and return the history."""
    arrays, facts = checkpoint.load(path)
    if facts["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{path} was written with other settings, {facts['settings']}; now they are {settings}. Go on with the "
                         "same, or give another file")
    if facts["steps"].keys() != optimizers.keys():
        raise ValueError(f"{path} has the groups {list(facts['steps'])}, not {list(optimizers)}")
    model.load_state_dict({name.removeprefix("model/"): value for name, value in arrays.items() if name.startswith("model/")})
    for group, sgd in optimizers.items():
        velocity = [arrays[f"velocity/{group}/{i}"] for i in range(len(sgd.parameters))]
        sgd.load_state_dict({"steps": facts["steps"][group], "velocity": velocity})
    rng.bit_generator.state = facts["generator"]
    return History({name: arrays[f"history/{name}"].tolist() for name in facts["columns"]})
