"""Faults in a script with converted weights that would go unseen, and are noticed here.

These are: gradients that did not pass through a parameter's hook; weights that something else has
written; a loss whose first gradients say that the weights are not scale-invariant; parameters that
had no effect in `report` and have one now; copies of an optimizer without its hooks.
"""

import math
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from minibn.pytorch.scales import APPROXIMATE

NOTICED = 1e-2  # of the gradient: less may be the rounding of bfloat16
LEAST = 1e-3  # of the largest gradient: what is smaller may be rounding, or an effect of eps
PATIENCE = 100  # so many gradients of a set are looked at, while they are that small: behind a head that starts at 0
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


class Along:
    """Compares the first gradients with the lemma: those of scale-invariant weights have no part along the weights.

    That part is `<∂L/∂w, w> / (|∂L/∂w| |w|)`. It is seen if the loss of the training is another one than
    that of `report` (with a regularisation of the weights, or with frozen statistics), or if
    parameters were given that are not scale-invariant.

    It is computed twice: of what backward passes gave, and of `p.grad` when the step is taken. The first
    is not changed by a script that clips each number. The second has what DDP averages over processes,
    and not what a script threw away. The smaller one counts.

    Args:
        usual: {set: the part that `report` found, or None without a report}; only these sets are
            looked at.
    """

    def __init__(self, usual: dict[Any, float | None]) -> None:
        self._usual = dict(usual)
        self._seen: dict[Any, tuple[Any, Any]] = {}  # what `_products` gives
        self._waited = dict.fromkeys(usual, 0)  # {set: how many of its gradients were next to nothing}
        self._largest = 0.0  # the largest |∂L/∂w| |w| of a set so far

    @torch.no_grad()
    def saw(self, s: Any, p: torch.Tensor, gradient: torch.Tensor) -> None:
        """Called with each gradient of a backward pass."""
        if s in self._usual and not gradient.is_sparse:
            self._seen[s] = _sum([self._seen.get(s, (0.0, 0.0)), _products(gradient, p)])

    @torch.no_grad()
    def check(self, sets: Iterable) -> None:
        """
        Raises:
            RuntimeError: the part is above 0.1, where a conversion would not even be approximate.
        """
        seen = {s: self._seen.pop(s) for s in sets if s in self._seen and all(p.grad is not None for p in s.members)}
        self._largest = max([self._largest, *(float(size) for _, size in seen.values() if torch.isfinite(size))])
        for s, backward in seen.items():
            if not float(backward[1]) < math.inf:  # a GradScaler will refuse it: wait for the next one
                continue
            usual = self._usual[s]
            if not float(backward[1]) > LEAST * self._largest:  # rounding, or an effect of eps alone: it says nothing
                self._waited[s] += 1
                if self._waited[s] == PATIENCE:
                    del self._usual[s]
                continue
            both = [backward, _sum([_products(p.grad, p) for p in s.members])]
            part = min(abs(float(product / size)) for product, size in both if size > 0)
            if part > APPROXIMATE and part > 10 * (usual or 0.0):
                raise RuntimeError(f"the first gradient of {s.title} is not orthogonal to these weights, so they are not "
                                   f"scale-invariant: <gradient, weights> is {part:.2g} of |gradient| |weights|. "
                                   f"{_NO_REPORT if usual is None else _OTHER_LOSS}")
            del self._usual[s]
            if usual is not None and part > max(10 * usual, NOTICED):
                warnings.warn(f"the first gradient of {s.title} is less orthogonal to these weights than in the report: "
                              f"<gradient, weights> is {part:.1g} of |gradient| |weights|, in the report {usual:.1g}. "
                              f"{_OTHER_LOSS}", stacklevel=2)


def _products(gradient, p):
    """(<gradient, p>, |gradient| |p|), in at least float32."""
    gradient, p = (t if t.dtype.itemsize > 2 else t.float() for t in (gradient.detach(), p.detach()))
    size = torch.linalg.vector_norm(gradient) * torch.linalg.vector_norm(p)
    return torch.sum(gradient * p.conj()).real.double(), size.double()


def _sum(pairs):
    return tuple(map(sum, zip(*pairs, strict=True)))


_NO_REPORT = "Give report(model, loss_fn) in place of parameters: it finds those that are"
_OTHER_LOSS = ("Is the loss the one that report(model, loss_fn) saw, with the same penalties on the weights and the same "
               "layers in training mode? Call handle.remove(), and report with the loss of the training")


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
            pairs = [_products(p.grad, p) for p in s.members if p.grad is not None]
            product, size = map(float, _sum([(0.0, 0.0), *pairs]))
            if abs(product) > 1e-2 * size:
                raise RuntimeError("parameters that had no effect on the batch of report(...) take part now, and with them "
                                   f"{s.title} are not scale-invariant any more: <gradient, weights> is {product / size:.1e} "
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
