"""Which parameters are converted, in this process: other optimizers that step them are noticed."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

Tensors = Iterable[torch.Tensor]
_hooked: dict[int, tuple[weakref.ref, weakref.ref]] = {}  # {id of a parameter: (itself, its Conversion)}, of live ones
_watching: list = []


def remember(parameters: Tensors, handle: Any) -> None:
    """From now on, steps of other optimizers on these parameters are refused, and of copies of their optimizer."""
    for key in [key for key, (itself, _) in _hooked.items() if itself() is None]:
        del _hooked[key]
    _hooked.update({id(p): (weakref.ref(p), weakref.ref(handle)) for p in parameters})
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_refuse_others))


def forget(parameters: Tensors) -> None:
    for p in parameters:
        _hooked.pop(id(p), None)


def _refuse_others(optimizer, args, kwargs):
    if "_minibn" in vars(optimizer):  # it has its hooks; copies have neither
        return
    handles = {handle_of(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None} - {None}
    inner = set(inside(optimizer).values())  # of a wrapper, which calls its step
    if any(inner.isdisjoint(handle.optimizers) for handle in handles):
        raise RuntimeError(f"this {type(optimizer).__name__} steps weights that another optimizer's conversion holds in its own "
                           "form. Call .remove() of that handle first, which brings the script's weights back; then convert "
                           "the new optimizer, if it is to be")
    for group in optimizer.param_groups:
        record = group.get("minibn")
        if record and any(handle_of(group["params"][i]) is None for places in record["params"] for i in places):
            raise RuntimeError("this optimizer is a copy of a converted one, without its hooks (deepcopy, pickle or "
                               "load_state_dict made it): call remove_weight_decay(optimizer, report(model, ...)) for the "
                               "copy as well")


def inside(optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """{attribute: the optimizer that it holds}, of one that wraps others."""
    return {name: value for name, value in vars(optimizer).items() if isinstance(value, torch.optim.Optimizer)}


def handle_of(p: torch.Tensor) -> Any:
    """The Conversion that has a hook on this parameter, or None."""
    itself, handle = _hooked.get(id(p), (None, None))
    return handle() if itself and handle and itself() is p else None
