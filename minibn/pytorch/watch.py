"""Faults in a script with converted weights that would go unseen, and are noticed here.

These are: gradients that did not pass through a parameter's hook; weights that something else has
written; parameters that had no effect in `report` and have one now; copies of an optimizer without
its hooks.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

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
    """Notices weights that changed between two steps."""

    def __init__(self) -> None:
        self._seen: dict[torch.Tensor, tuple[int, torch.Tensor]] = {}

    def forget(self) -> None:
        self._seen = {}

    @torch.no_grad()
    def note(self, parameters: Tensors) -> None:
        for p in parameters:
            if _plain(p):
                self._seen[p] = (p._version, _ends(p))

    @torch.no_grad()
    def check(self, parameters: Tensors) -> None:
        """
        Raises:
            RuntimeError: a weight is not what it was after the last step.
        """
        for p in parameters:
            if p in self._seen:
                version, ends = self._seen[p]
                if (p._version != version or p.device.type == "cpu") and not same(_ends(p), ends):
                    raise RuntimeError(
                        f"a converted weight of shape {tuple(p.shape)} was changed between steps (load_state_dict of the "
                        "model alone, a new initialisation). Held weights are 1/P times the script's, so set them inside "
                        "`with handle.original():`, or load the state of the optimizer of the same checkpoint, too")


class Asleep:
    """Parameters that had no effect on the batch of `report`. When one takes part, the sets are tested by its gradient."""

    def __init__(self, found: Any) -> None:
        self.hooks, self._woken = [], False
        names = set(getattr(found, "unknown", ()))
        for name, p in found.model.named_parameters() if names else ():
            if name in names and p.requires_grad:
                self.hooks.append(p.register_hook(self._fired))

    def _fired(self, gradient):
        self._woken = self._woken or bool(gradient.any())

    def check(self, sets: Iterable) -> None:
        """
        Raises:
            RuntimeError: with all parameters awake, a set is not scale-invariant: <∂L/∂w, w> is not
                0.
        """
        if not self._woken:
            return
        for s in sets:
            pairs = [(p.grad.detach(), p.detach()) for p in s.members if p.grad is not None]
            product = sum(float(torch.sum(g * p.conj()).real) for g, p in pairs)
            size = sum(float(torch.linalg.vector_norm(g) * torch.linalg.vector_norm(p)) for g, p in pairs)
            if abs(product) > 1e-2 * size:
                raise RuntimeError("parameters that had no effect on the batch of report(...) take part now, and with them "
                                   f"{s.name} are not scale-invariant any more: <gradient, weights> is {product / size:.1e} "
                                   "of what it could be. Call handle.remove(), and report with a batch that uses all "
                                   "parameters")
        for hook in self.hooks:
            hook.remove()
        self._woken = False


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, bit for bit; NaN equals NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _plain(p):
    return type(p.data) is torch.Tensor and p.numel() > 0


def _ends(p):
    first, last = p.detach()[(0,) * p.ndim], p.detach()[(-1,) * p.ndim]
    return torch.stack([first, last])


# ---- copies ----

_hooked: dict[int, tuple[weakref.ref, weakref.ref]] = {}  # {id of a parameter: (itself, its Conversion)}, of live ones
_watching: list = []


def remember(parameters: Tensors, handle: Any) -> None:
    """From now on, an optimizer whose state says that it is converted, and whose parameters have no hooks, is refused."""
    _hooked.update({id(p): (weakref.ref(p), weakref.ref(handle)) for p in parameters})
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_notice_copies))


def forget(parameters: Tensors) -> None:
    for p in parameters:
        _hooked.pop(id(p), None)


def _notice_copies(optimizer, args, kwargs):
    if "_minibn" in vars(optimizer):  # it has its hooks; copies have neither
        return
    for group in optimizer.param_groups:
        record = group.get("minibn")
        if record and any(handle_of(group["params"][i]) is None for places in record["params"] for i in places):
            raise RuntimeError("this optimizer is a copy of a converted one, without its hooks (deepcopy, pickle or "
                               "load_state_dict made it): call remove_weight_decay(optimizer, report(model, ...)) for the "
                               "copy as well")


def handle_of(p: torch.Tensor) -> Any:
    """The Conversion that has a hook on this parameter, or None."""
    itself, handle = _hooked.get(id(p), (None, None))
    return handle() if itself and handle and itself() is p else None
