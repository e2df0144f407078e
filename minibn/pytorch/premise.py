"""The premise of the conversion, looked at again in training: <∂L/∂w, w> = 0 for the converted weights.

It fails if the loss of the training is another one than that of `report`, or if parameters take part
that had no effect there.
"""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch

from minibn.pytorch.scales import APPROXIMATE
from minibn.pytorch.warned import warn

NOTICED, NOTICED_IN_FLOAT64 = 1e-2, 1e-5  # of the gradient: less may be the rounding of bfloat16, in autocast, or of float64
LEAST = 1e-3  # of the largest gradient: what is smaller may be rounding, or an effect of eps
LATER = 1e-2  # the same for later gradients, which rounding may have a larger part in
PATIENCE = 100  # so many gradients of a set are looked at, while they are that small: behind a head that starts at 0


class Along:
    """Compares the first gradients with the lemma: those of scale-invariant weights have no part along the weights.

    That part is `<∂L/∂w, w> / (|∂L/∂w| |w|)`. It is seen if the loss of the training is another one than
    that of `report` (with a regularisation of the weights, or with frozen statistics), or if
    parameters were given that are not scale-invariant.

    It is computed twice: of what backward passes gave, and of `p.grad` when the step is taken. The first
    is not changed by a script that clips each number. The second has what DDP averages over processes,
    and not what a script threw away. The smaller one counts.

    The gradients of later steps, the 2nd, 4th, 8th, … and each 100th, are looked at as well: a script may
    add a penalty, or a layer.

    Args:
        usual: {set: the part that `report` found, or None without a report}; only these sets are
            looked at.
    """

    def __init__(self, usual: dict[Any, float | None]) -> None:
        self._all, self._steps = dict(usual), dict.fromkeys(usual, 0)
        self._usual = dict(usual)  # of the sets whose next gradient is looked at
        self._passed: set = set()
        self._warned: set = set()
        self._seen = _Seen()
        self._waited = dict.fromkeys(usual, 0)  # {set: how many of its gradients were next to nothing}
        self._largest = 0.0  # the largest |∂L/∂w| |w| of a set so far

    @torch.no_grad()
    def saw(self, s: Any, p: torch.Tensor, gradient: torch.Tensor) -> None:
        """Called with each gradient of a backward pass."""
        if s in self._usual:
            self._seen.add(s, p, gradient)

    @torch.no_grad()
    def check(self, sets: Collection) -> None:
        """
        Raises:
            RuntimeError: the part is above 0.1, where a conversion would not even be approximate.
        """
        seen = {s: self._seen.pop(s) for s in sets if s in self._seen and all(p.grad is not None for p in s.members)}
        self._largest = max([self._largest, *(float(size) for _, size in seen.values() if torch.isfinite(size))])
        for s, backward in seen.items():
            if not float(backward[1]) < math.inf:  # a GradScaler will refuse it: wait for the next one
                continue
            usual, later = self._usual[s], s in self._passed
            if not float(backward[1]) > (LATER if later else LEAST) * self._largest:  # rounding, or eps: it says nothing
                self._waited[s] += 1
                if later or self._waited[s] >= PATIENCE:
                    del self._usual[s]
                continue
            part = _part(s, backward)
            if part > APPROXIMATE and part > 10 * (usual or 0.0):
                raise RuntimeError(f"the {'' if later else 'first '}gradient of {s.title} is not orthogonal to these weights, "
                                   f"so they are not scale-invariant: <gradient, weights> is {part:.2g} of |gradient| |weights|. "
                                   f"{_NO_REPORT if usual is None else _OTHER_LOSS}")
            del self._usual[s]
            self._passed.add(s)
            if usual is not None and part > max(10 * usual, _noticed(s)) and s not in self._warned:
                self._warned.add(s)
                warn(f"the {'' if later else 'first '}gradient of {s.title} is less orthogonal to these weights than in "
                     f"the report: <gradient, weights> is {part:.1g} of |gradient| |weights|, in the report "
                     f"{usual:.1g}. {_OTHER_LOSS}")
        for s in self._all.keys() & set(sets):
            self._steps[s] += 1
            if (coming := self._steps[s] + 1) % 100 == 0 or coming & (coming - 1) == 0:
                self._usual[s] = self._all[s]


class _Seen(dict):
    """{set: what `_products` gives, summed over its weights and the backward passes so far}."""

    def add(self, s, p, gradient):
        if not gradient.is_sparse:
            self[s] = _sum([self.get(s, (0.0, 0.0)), _products(gradient, p)])


def _part(s, backward):
    """|<∂L/∂w, w>| / (|∂L/∂w| |w|) of what backward passes gave, if that is known, and of p.grad: the smaller one."""
    taken = _sum([(0.0, 0.0), *(_products(p.grad, p) for p in s.members if p.grad is not None)])
    return min((abs(float(product / size)) for product, size in (backward or taken, taken) if size > 0), default=0.0)


def _noticed(s):
    return NOTICED_IN_FLOAT64 if all(p.dtype.itemsize >= 8 for p in s.members) else NOTICED


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


class Newcomers:
    """Parameters that `report` did not measure: they were frozen then, or were not there. Their first step is noted by a warning.

    They may end a scale-invariance: that of weights whose bias was frozen, or that a LoRA adds to.
    """

    def __init__(self, found: Any) -> None:
        self._model = found.model if found is not None else torch.nn.Module()
        self._known = {p for name, p in self._model.named_parameters() if name in found.measured} if found else set()

    def check(self) -> None:
        new = [p for p in self._model.parameters() if p.requires_grad and p.grad is not None and p not in self._known]
        if new:
            names = {p: name for name, p in self._model.named_parameters()}
            self._known |= set(new)
            listed = ", ".join([names[p] for p in new[:4]] + ["…"] * (len(new) > 4))
            warn(f"{listed} had no part in the report, and are trained now. If converted weights are no longer "
                 "scale-invariant with them, the conversion is wrong: call handle.remove() before such a change, and "
                 "report again after it")


class Asleep:
    """Parameters that had no effect on the batch of `report`. When one takes part, the sets are tested, as `Along` tests them."""

    def __init__(self, found: Any) -> None:
        self.hooks, self._woken, self._found = [], False, found
        self._seen = _Seen()
        names = set(getattr(found, "unknown", ()))
        for name, p in found.model.named_parameters() if names else ():
            if name in names and p.requires_grad:
                self.hooks.append(p.register_hook(self._fired))

    def _fired(self, gradient):
        self._woken = self._woken or bool(gradient.any())

    @torch.no_grad()
    def saw(self, s: Any, p: torch.Tensor, gradient: torch.Tensor) -> None:
        """Called with each gradient of a backward pass."""
        if self.hooks:
            self._seen.add(s, p, gradient)

    def check(self, sets: Iterable) -> None:
        """
        Raises:
            RuntimeError: with all parameters awake, a set is not scale-invariant: <∂L/∂w, w> is not
                0.
        """
        backward, self._seen = self._seen, _Seen()
        if not self._woken:
            return
        for s in sets:
            part = _part(s, backward.get(s))
            if part > max(_noticed(s), 10 * self._found.gap(s.name)):
                raise RuntimeError("parameters that had no effect on the batch of report(...) take part now, and with them "
                                   f"{s.title} are not scale-invariant any more: <gradient, weights> is {part:.1e} "
                                   "of what it could be. Call handle.remove(), and report with a batch that uses all "
                                   "parameters")
        for hook in self.hooks:
            hook.remove()
        self.hooks, self._woken = [], False
