"""An error in the middle of a step: back to the last whole step, which is saved."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from minibn import backend, nn
from minibn.optim import Optimizer
from minibn.training.history import History
from minibn.training.recorder import DivergenceError, Recorder


class LastStep:
    """Model and optimisers as they were after the last whole step.

    An update makes new arrays of weights and of the optimiser's state, so that references to the
    old ones are enough. Buffers are copied.

    Attributes:
        step: number of steps done then.
        saved: number of steps in the checkpoint.
        generator: the state of the random generator from which to resume.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer], step: int) -> None:
        self.optimizers = list(optimizers)
        for optimizer in self.optimizers:  # those inside others, too
            self.optimizers += [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
        self.parameters = [*model.parameters(), *(p for optimizer in self.optimizers for p in optimizer.parameters)]
        self.buffers = [(module, name) for _, module in model.named_modules() for name in module.buffers]
        self.saved = step
        self.note(step, None)

    def note(self, step: int, generator: Any) -> None:
        """This is the state after a whole step."""
        self.step, self.generator = step, generator
        self._weights = [parameter.data for parameter in self.parameters]
        self._buffers = [backend.asarray(array, array) for array in (getattr(*place) for place in self.buffers)]
        self._optimizers = [dict(vars(optimizer)) for optimizer in self.optimizers]

    def restore(self) -> None:
        """Bring that state back."""
        for parameter, weights in zip(self.parameters, self._weights, strict=True):
            parameter.data = weights
        for (module, name), array in zip(self.buffers, self._buffers, strict=True):
            setattr(module, name, array)
        for optimizer, state in zip(self.optimizers, self._optimizers, strict=True):
            vars(optimizer).update(state)


@contextmanager
def rescued(last: LastStep | None, recorder: Recorder, save: Callable[[Any, History], None]) -> Iterator[None]:
    """If an error ends the block, go back to the last whole step, save it, and say so in a note of the error.

    With None for the last step, errors pass.

    Nothing is saved after a `DivergenceError`, and nothing that is saved already. An error of the
    save itself does not hide the first one.
    """
    try:
        yield
    except Exception as error:
        if last is None or isinstance(error, DivergenceError):
            raise
        last.restore()
        if last.step > last.saved:
            try:
                recorder.collect()
                save(last.generator, History({name: values[: last.step] for name, values in recorder.history.columns.items()}))
                said = f"saved at step {last.step}, which was the last whole one; the same call goes on from there"
            except Exception as another:
                said = f"step {last.step} could not be saved ({another})"
            if hasattr(error, "add_note"):  # since Python 3.11
                error.add_note(f"minibn: {said}")
        raise
