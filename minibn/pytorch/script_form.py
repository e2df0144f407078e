"""The script's own weights of a converted model, for a while: `handle.original()`, and averages of weights on top of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from minibn.pytorch import copies, records, watch
from minibn.pytorch.warned import warn

if TYPE_CHECKING:
    from minibn.pytorch.conversion import Conversion


@contextmanager
def original(handle: "Conversion") -> Iterator[None]:
    """See `Conversion.original`. On leaving, weights that were not written are restored bit for bit."""
    if handle.inside or any(s.half_stepped for s in handle.sets):
        raise RuntimeError("handle.original() inside itself, or between the steps of two optimizers")
    handle._undo_broken_step()
    handle.weights.check(handle.parameters)
    weights = _looked_up(handle)
    each = [[p.detach(), *rule.state(p)] for p, _, rule in weights]  # weights with what depends on them (momentum)
    buffers = [[b] for b in (handle.averages.buffers if handle.averages else [])]
    frames = [part.frame for _, part, _ in weights]
    held = [[t.clone() for t in tensors] for tensors in each + buffers]
    _carry(handle, weights, back=True)
    records.erase(handle.sets)  # so that a checkpoint that is made here is an ordinary one
    own = [[t.clone() for t in tensors] for tensors in each + buffers]
    handle.inside = True
    try:
        yield
    finally:
        handle.inside = False
        untouched = [all(map(watch.same, now, before)) for now, before in zip(each + buffers, own, strict=True)]
        kept = [part.frame == frame for (_, part, _), frame in zip(weights, frames, strict=True)]  # no other state was loaded
        kept += [all(kept)] * len(buffers)
        _carry(handle, weights, back=False)
        with torch.no_grad():
            for tensors, before, same, here in zip(each + buffers, held, untouched, kept, strict=True):
                for t, old in zip(tensors, before, strict=True):
                    if same and here:
                        t.copy_(old)
        records.write(handle.sets, handle.form)
        if handle.averages:
            handle.averages.forget()
        handle.weights.note(handle.parameters)


def averaged(handle: "Conversion", model: torch.nn.Module, **options: Any) -> torch.optim.swa_utils.AveragedModel:
    """See `Conversion.averaged`."""
    with handle.original():
        return torch.optim.swa_utils.AveragedModel(model, **options)


_wrapped: WeakSet = WeakSet()  # the functions that `watch_averages` has put in place


def watch_averages() -> None:
    """From now on, torch's `AveragedModel` averages the script's own weights of a converted model: exact SWA and EMA.

    So do its subclasses that are there now. An average of the held weights would weigh late ones more,
    since these grow.
    """
    classes = [torch.optim.swa_utils.AveragedModel]
    for cls in classes:
        classes += cls.__subclasses__()
        if "update_parameters" in vars(cls) and vars(cls)["update_parameters"] not in _wrapped:
            cls.update_parameters = _of_the_scripts_own_weights(cls.update_parameters)  # type: ignore[method-assign]


def _of_the_scripts_own_weights(update):
    @wraps(update)
    def updated(self, model, *args, **kwargs):
        handles = {handle for p in model.parameters() if (handle := copies.handle_of(p)) is not None and not handle.inside}
        with ExitStack() as stack:
            for handle in handles:
                stack.enter_context(handle.original())
            return update(self, model, *args, **kwargs)

    _wrapped.add(updated)
    return updated


def go_back(handle: "Conversion") -> None:
    """See `Conversion.remove`."""
    if handle.inside:
        raise RuntimeError("handle.remove() inside `handle.original()`: call it outside")
    handle._undo_broken_step()
    weights = _looked_up(handle)
    try:
        handle.weights.check(handle.parameters)
    except RuntimeError as error:
        warn(f"{error}. This is done now")
    _carry(handle, weights, back=True)
    records.erase(handle.sets)
    for hook in [*handle._hooks, *handle._asleep.hooks]:
        hook.remove()
    copies.forget(handle.parameters)
    for optimizer in handle.optimizers:
        del vars(optimizer)["_minibn"]


def _looked_up(handle):
    """[(weight, part, rule)].

    Raises:
        RuntimeError: param groups were rearranged; before anything is changed.
    """
    parts = [part for s in handle.sets for part in s.parts if part.group]
    return [(p, part, handle.rules[part.optimizer]) for part in parts for p in part.members]


def _carry(handle, weights, back):
    if handle.averages:  # first, as it raises if one is gone
        handle.averages.multiply([s.ratio if back else 1 / s.ratio for s in handle.sets])
    for p, part, rule in weights:
        rule.carry(p, part.frame, back)
