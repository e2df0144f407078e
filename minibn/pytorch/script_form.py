"""The script's own weights of a converted model, for a while: `handle.original()`, and averages of weights on top of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from minibn.pytorch import watch

if TYPE_CHECKING:
    from minibn.pytorch.conversion import Conversion


@contextmanager
def original(handle: "Conversion") -> Iterator[None]:
    """See `Conversion.original`. On the way out, what nobody has written is brought back bit for bit."""
    if handle.inside or any(s.half_stepped for s in handle.sets):
        raise RuntimeError("handle.original() inside itself, or between the steps of two optimizers")
    tensors = [*handle.parameters, *(handle.averages.buffers if handle.averages else [])]
    held = [t.detach().clone() for t in tensors]
    _scale(handle, 1)
    own = [t.detach().clone() for t in tensors]
    handle.inside = True
    try:
        yield
    finally:
        handle.inside = False
        untouched = [watch.same(t.detach(), before) for t, before in zip(tensors, own, strict=True)]
        _scale(handle, -1)
        with torch.no_grad():
            for t, before, same in zip(tensors, held, untouched, strict=True):
                if same:
                    t.copy_(before)
        handle.weights.note(handle.parameters)


def averaged(handle: "Conversion", model: torch.nn.Module, **options: Any) -> torch.optim.swa_utils.AveragedModel:
    """See `Conversion.averaged`."""

    class Averaged(torch.optim.swa_utils.AveragedModel):
        def update_parameters(self, model: torch.nn.Module) -> None:
            with handle.original():
                super().update_parameters(model)

    with handle.original():
        return Averaged(model, **options)


@torch.no_grad()
def _scale(handle, sign):
    for s in handle.sets:
        for p in s.members:
            p.mul_(s.ratio**sign)
    if handle.averages:
        handle.averages.multiply([s.ratio**sign for s in handle.sets])
