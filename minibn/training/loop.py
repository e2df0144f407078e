"""The training loop: forward, loss, backward, step."""

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.random import Generator

from minibn import arguments, backend, data, jsonable, kernels, nn
from minibn.backend import Array
from minibn.optim import Optimizer
from minibn.progress import bar
from minibn.training import checkpoint, fingerprint, interruption
from minibn.training.evaluation import accuracy, evaluate
from minibn.training.history import History
from minibn.training.recorder import Recorder, measure, names_of, watch, weights
from minibn.training.rescue import LastStep, rescued


def train_step(model: nn.Module, loss: nn.Loss, optimizers: Collection[Optimizer], x: Array, y: Array,
               labels: Array | None = None) -> tuple[Array, Array]:
    """One training step on a batch of inputs x (N, …) and labels y (N,).

    `labels` are all labels of a run, for the loss to check at its first step. On a GPU, that check
    waits for the device.

    Returns:
        (outputs of the model, value of the loss), both from before the update.
    """
    outputs = model(x)
    if labels is not None and hasattr(loss, "check"):
        loss.check(outputs, labels)
    value = loss(outputs, y)
    for optimizer in optimizers:
        optimizer.zero_grad()
    model.backward(loss.backward())
    for optimizer in optimizers:
        optimizer.step()
    return outputs, value


def fit(model: nn.Module, optimizers: Mapping[str, Optimizer], x: Array, y: Array, *, epochs: int, batch_size: int,
        rng: Generator, loss: nn.Loss | None = None, drop_last: bool = True, path: str | Path | None = None, every: int = 100,
        resume: bool = True, max_steps: int | None = None, augment: Callable[..., Array] | None = None,
        validation: tuple[Array, Array] | None = None, settings: Any = None, groups: Mapping[str, Iterable[str]] | None = None,
        threads: int | None = None, progress: bool = True, description: str = "train") -> History:
    """Train `model` on (x, y), and return the `History` of every step.

    Results are the same to the last bit for any number of threads, and for a run that was stopped
    and resumed.

    Ctrl-C, SIGTERM and SIGHUP stop the training at the end of the current step. With `path`, that
    step is saved first. The exception holds the History so far: see `interruption.Stopped`.

    Any other error in the middle of a step (in a layer, a loss, `augment`, at the end of a
    schedule) with `path`: model and optimisers go back to the last whole step, which is saved. A
    note of the error says so. After a `DivergenceError` they stay as they are, and nothing is
    saved.

    Args:
        model: an `nn.Module`.
        optimizers: {name: `Optimizer`}. To train two groups of weights differently, give two
            optimisers, each with its own schedule. Together they should hold all parameters that
            are to be trained.
        x, y: training inputs (N, …) and labels (N,). Each batch is moved to the model's device.
        epochs: number of passes through the data.
        batch_size, drop_last: as in `data.batches`.
        rng: numpy.random.Generator that shuffles the data.
        loss: `nn.CrossEntropy()` if None.
        path: checkpoint file, written every `every` steps and at the end. With `resume`, an
            existing checkpoint is loaded first: model, optimisers, rng and history then continue as
            if the run had never stopped. The optimisers must be fresh. `~` is the home folder.
        max_steps: stop after this many steps even if epochs are left. A later call can resume.
        augment: as in `data.batches`.
        validation: (x, y) to evaluate after each epoch's last step. The columns "test_loss" and
            "test_accuracy" are NaN at all other steps.
        settings: JSON-serialisable description of the run, stored in the checkpoint. Resuming from
            a checkpoint with other settings raises ValueError.
        groups: {name: names of parameters} to measure in addition to the optimisers' parameters,
            each with columns of its own, for example `Conversion.groups`.
        threads: as in `minibn.threads`.
        progress: whether to show a bar with learning rates, loss and accuracy, in a terminal or
            notebook.
        description: text before the bar.

    Returns:
        History. Its "accuracy" is the accuracy on the batch, in training mode.

    Raises:
        DivergenceError: the loss or a weight is not finite; no checkpoint is written after that. On
            a GPU the error may come a few steps late, because numbers are read in batches; the
            message names the step at which it happened.
        TypeError, ValueError: data, labels, batch size, groups or another argument do not fit; the
            model was moved after its optimisers were made; or the checkpoint is damaged, or of
            another run. The message names what differs.
        OSError: the checkpoint cannot be written. This is noticed before the first step.
        Interrupted, Terminated: it was stopped by a signal.
    """
    loss = loss if loss is not None else nn.CrossEntropy()
    if not isinstance(model, nn.Module) or not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError("fit needs an nn.Module and a dict of optimisers, such as {'all': SGD(model.parameters(), schedule)}; "
                        f"got {type(model).__name__} and {arguments.short(optimizers)}")
    epochs, every, batch_size = (arguments.whole(name, value, 1) for name, value in (
        ("epochs", epochs), ("every", every), ("batch_size", batch_size)))
    max_steps = None if max_steps is None else arguments.whole("max_steps", max_steps, 0)
    _check(loss, augment, validation, drop_last=drop_last, resume=resume, progress=progress)
    jsonable.dumps(settings, "settings")
    data.check_examples(x, y)
    data.batches(x, y, batch_size, rng=rng)  # raises now, not at the first step
    per_epoch = x.shape[0] // batch_size if drop_last else -(-x.shape[0] // batch_size)
    last = epochs * per_epoch if max_steps is None else min(epochs * per_epoch, max_steps)
    where = next(model.arrays(), None)
    for group, optimizer in optimizers.items():
        if not optimizer.is_where_its_parameters_are():
            raise ValueError(f"the optimiser of group {group!r} was made before its parameters moved; make it after model.to")
    watched = watch(model, optimizers, groups or {})
    run = {"settings": settings, "examples": x.shape[0], "shape": x.shape[1:], "dtype": backend.dtype_name(x),
           "data": None if path is None else fingerprint.of(x, y),
           "batch_size": batch_size, "drop_last": drop_last, "augment": fingerprint.of_function(augment),
           "loss": fingerprint.of_function(type(loss)), "validation": bool(validation), "measured": list(watched),
           "model": fingerprint.of_model(model), "parameters": names_of(watched, model),
           "validation_shape": validation and validation[0].shape,
           "validation_data": None if path is None or not validation else fingerprint.of(*validation)}
    pause = 0 if where is None or backend.is_on_host(where) else 0.1 if progress else 1.0
    history, saved = History(), None

    def save(generator: Any, history: History, commit: bool = True) -> None:
        assert path is not None
        checkpoint.save_run(path, model, optimizers, generator, history, run, commit=commit)

    with interruption.deferred() as signals, kernels.threads(threads):
        if path is not None and resume and os.path.exists(os.path.expanduser(path)):
            history, saved = checkpoint.load_run(path, model, optimizers, rng, run), path
        first = len(history)
        if first > epochs * per_epoch:
            raise ValueError(f"{path} is at step {first}, beyond the {epochs} epochs of {per_epoch} steps asked for; give at "
                             f"least {-(-first // per_epoch)} epochs, or another file")
        if path is not None and first < last:  # whether it can be written, now and not after hours
            save(rng.bit_generator.state, history, commit=False)
        model.train()
        with bar(last, first, description, progress) as shown:
            recorder = Recorder(history, optimizers, shown, pause=pause, saved=saved)
            last_step = None if path is None else LastStep(model, optimizers.values(), first)
            batches = _batches(x, y, first, last, per_epoch, rng, batch_size=batch_size, drop_last=drop_last, augment=augment)
            with rescued(last_step, recorder, save):
                for done, (batch_x, batch_y, generator) in enumerate(batches, first + 1):
                    batch_x, batch_y = backend.move(batch_x, where), backend.move(batch_y, where)
                    before, labels = weights(watched), y if done == first + 1 else None
                    outputs, value = train_step(model, loss, optimizers.values(), batch_x, batch_y, labels)
                    row = {"step": done - 1, "loss": value, "accuracy": accuracy(outputs, batch_y), **measure(watched, before)}
                    validate = validation and done % per_epoch == 0
                    if validation:
                        row["test_loss"], row["test_accuracy"] = (evaluate(model, *validation, loss=loss) if validate
                                                                  else (math.nan,) * 2)
                    stop = signals.received
                    due = done % every == 0 or done == last or stop is not None
                    recorder.add(row, now=bool((path is not None and due) or validate or done == last or stop is not None))
                    if last_step is not None:
                        last_step.note(done, generator)
                        if due:
                            save(generator, history)
                            last_step.saved, recorder.saved = done, path
                    if stop is not None:
                        break
        signals.stop_if_received(len(history), recorder.saved, history)
    return history


def _check(loss, augment, validation, **flags):
    """Raise what `fit` raises about its arguments, apart from the data and the numbers."""
    arguments.yes_or_no(**flags)
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss must be an object that computes a loss, such as nn.CrossEntropy(), got {loss!r}")
    if augment is not None and not callable(augment):
        raise TypeError(f"augment must be a function, such as data.crop_flip, got {augment!r}")
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) != 2:
            raise TypeError("validation must be a pair (x, y)")
        data.check_examples(*validation)


def _batches(x: Array, y: Array, first: int, last: int, per_epoch: int, rng: Generator,
             **options: Any) -> Iterator[tuple[Array, Array, Any]]:
    """The batches of steps first … last - 1, each with the state of `rng` from which to resume after it.

    Within an epoch that is the state at the epoch's start, so that the same shuffle is drawn again.
    """
    step = first
    while step < last:
        start_of_epoch = rng.bit_generator.state
        epoch = data.batches(x, y, rng=rng, **options)
        done = step % per_epoch
        for batch_x, batch_y in islice(epoch, done, min(per_epoch, done + last - step)):
            step += 1
            yield batch_x, batch_y, start_of_epoch if step % per_epoch else rng.bit_generator.state
