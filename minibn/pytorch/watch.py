"""What a script does by hand to converted weights and their gradients, which would go unseen.

These are: gradients that did not pass through a parameter's hook, and weights or momentum that
something else has written.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

Tensors = Iterable[torch.Tensor]


class Gradients:
    """Which gradients came through the hooks of their parameters, and are the script's own already."""

    def __init__(self) -> None:
        self._ever: set[torch.Tensor] = set()
        self._now: set[torch.Tensor] = set()
        self._stale: dict[torch.Tensor, tuple[weakref.ref, int]] = {}  # what p.grad was after the last step

    def fired(self, p: torch.Tensor) -> None:
        self._ever.add(p)
        self._now.add(p)

    def stepped(self, parameters: Tensors) -> None:
        for p in parameters:
            self._now.discard(p)
            if p.grad is not None:
                gradient: torch.Tensor = p.grad
                self._stale[p] = weakref.ref(gradient), gradient._version

    def divide(self, members: Tensors, ratio: float) -> None:
        """Divide the gradients that did not come through a hook, once.

        Raises:
            RuntimeError: they come through a hook at some steps, and not at others.
        """
        for p in members:
            if p.grad is None or p in self._now or self._is_stale(p):
                continue
            if p not in self._ever:
                if ratio != 1:
                    p.grad.div_(ratio)
                self._now.add(p)
            elif bool(p.grad.any()):
                raise RuntimeError(f"the gradient of a converted parameter of shape {tuple(p.shape)} did not come from a "
                                   "backward pass through it, as it did before, so its scale is unknown. Set p.grad from "
                                   "torch.autograd.grad of the parameter itself")

    def _is_stale(self, p):
        """Whether this is the gradient of the last step, untouched."""
        gradient = p.grad
        if gradient is None or p not in self._stale:
            return False
        reference, version = self._stale[p]
        return version == gradient._version and reference() is gradient


class Weights:
    """Notices weights that were written between two steps, and momentum that a conversion holds in another form.

    Numbers are compared that nearly any change moves: the first, the last, and the norm.

    Args:
        state: p -> tensors of the optimizer's state that belong to the weight, as `rules` says.
    """

    def __init__(self, state: Callable[[torch.Tensor], list[torch.Tensor]] = lambda p: []) -> None:
        self._state = state
        self._seen: dict[torch.Tensor, list[Mark]] = {}
        self._before: dict[torch.Tensor, list[Mark]] = {}

    def forget(self, other_scale: Tensors = ()) -> None:
        """The optimizer's state was loaded: the weights may be others. Those that have another P now must be."""
        self._before |= {p: self._seen[p] for p in other_scale if p in self._seen}
        self._seen = {}

    @torch.no_grad()
    def note(self, parameters: Tensors) -> None:
        mine = {p: [p, *self._state(p)] for p in parameters if _plain(p)}
        tensors = [t for each in mine.values() for t in each]
        marks = dict(zip(tensors, _marks(tensors), strict=True))
        for p, each in mine.items():
            self._seen[p] = [marks[t] for t in each]
            self._before.pop(p, None)

    def was_written(self, p: torch.Tensor) -> bool:
        """Whether p was written in place since the last note."""
        return p in self._seen and self._seen[p][0].version != p._version

    @torch.no_grad()
    def check(self, parameters: Tensors) -> None:
        """
        Raises:
            RuntimeError: a weight is not what it was after the last step; or it still is, though the
                state that was loaded has another P.
        """
        for p in parameters:
            now = {id(t): t for t in [p, *self._state(p)]} if p in self._seen else {}
            for mark in self._seen.get(p, []):
                if id(mark.tensor) in now and mark.differs():
                    raise RuntimeError(_WRITTEN.format(tuple(p.shape)) if mark.tensor is p else _MOMENTUM)
            if p in self._before and self._before[p][0].is_what_it_was():
                raise RuntimeError(f"the optimizer's state was loaded, and the converted weight of shape {tuple(p.shape)} is "
                                   "still that of before, though its scale is another now. Load the model's state of the same "
                                   "checkpoint, too")


class Mark(NamedTuple):
    """A tensor, and what it was."""

    tensor: torch.Tensor
    version: int
    ends: torch.Tensor
    norm: torch.Tensor

    def differs(self) -> bool:
        """Whether the numbers are others now. On the CPU, what was written through `.data` is noticed at the ends only."""
        if self.tensor._version != self.version:
            return not self.is_what_it_was()
        return self.tensor.device.type == "cpu" and not same(_ends(self.tensor), self.ends)

    def is_what_it_was(self) -> bool:
        rounding = 1e-10 if self.tensor.dtype.itemsize > 4 else 1e-5
        return same(_ends(self.tensor), self.ends) and torch.allclose(_norms([self.tensor])[0], self.norm, rtol=rounding,
                                                                     equal_nan=True)


_WRITTEN = ("a converted weight of shape {} was changed between steps (load_state_dict of the model alone, a new "
            "initialisation, weights that are clamped, pruned, cast or perturbed). Held weights are 1/P times the script's, so "
            "set them inside `with handle.original():`, or load the state of the optimizer of the same checkpoint, too. "
            "handle.remove() takes what is there for held weights")
_MOMENTUM = ("the momentum of a converted weight was changed between steps. It is held in another form than the script's: change "
             "it inside `with handle.original():`, or clear optimizer.state")


def _marks(tensors):
    return [Mark(t, t._version, _ends(t), norm) for t, norm in zip(tensors, _norms(tensors), strict=True)]


def _norms(tensors):
    """Their norms, in at least float32."""
    real = [torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in tensors]
    wide = [t if t.dtype.itemsize > 2 else t.float() for t in real]
    return torch._foreach_norm(wide) if wide else []


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, bit for bit; NaN equals NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _plain(p):
    return type(p.data) is torch.Tensor and p.numel() > 0


def _ends(p):
    first, last = p.detach()[(0,) * p.ndim], p.detach()[(-1,) * p.ndim]
    return torch.stack([first, last])
