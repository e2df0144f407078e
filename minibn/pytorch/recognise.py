"""Which rule an optimizer's weight decay follows: known classes by name, the others by measurement.

Only *decoupled* decay, which multiplies the weights and does nothing else, can be taken out of an
adaptive method. Decay that is added to the gradient goes through the method's averages and square
roots, and cannot be separated from them.
"""

from typing import Any

import torch

from minibn.pytorch import copies
from minibn.pytorch.l2 import L2
from minibn.pytorch.rules import Decoupled, Delta, Group, Relative, alone, product
from minibn.pytorch.selftest import measured_rule

Optimizer = torch.optim.Optimizer
REMEDY = "use an optimizer with decoupled weight decay, such as AdamW, or SGD"


class Adafactor(Relative):
    """`torch.optim.Adafactor`: its second eps is a lower bound of the weights' root mean square."""

    floor = 1


KNOWN = {name: rule for name, rule in [("AdamW", Decoupled), ("Muon", Decoupled), ("Adafactor", Adafactor), ("SGD", L2)]
         if hasattr(torch.optim, name)}
BY_FLAG = ("Adam", "NAdam", "RAdam")  # decoupled if their param groups say so
COUPLED = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD")


def rule_of(optimizer: Optimizer, form: str, weight_decay: float = 0.0, decay: str | Delta | None = None) -> L2 | Decoupled:
    """The rule by which `optimizer` is converted.

    Args:
        decay: "l2": the decay of SGD. "lr*wd", "wd": the fraction by which the weights shrink in a
            step; or a function f(group, step) that returns it. None: find out.

    Raises:
        TypeError: its weight decay cannot be taken out, or it is no optimizer; the message has the
            reason.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch optimizer, got {type(optimizer).__name__}")
    inner = copies.inside(optimizer)
    if inner:
        raise TypeError(f"{type(optimizer).__name__} wraps another optimizer, its attribute {next(iter(inner))!r}: what it does "
                        "between that one's steps is not known. If it only calls these steps, convert the inner one")
    if decay is not None:
        return _given(optimizer, form, weight_decay, decay)
    name = _known(optimizer)
    if not all("weight_decay" in group for group in optimizer.param_groups):
        raise TypeError(f"{type(optimizer).__name__} has no weight decay: its param groups have no 'weight_decay'")
    if name in BY_FLAG and all(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        return Decoupled(optimizer, form, weight_decay)
    if name in COUPLED:
        flag = f"give {name} decoupled_weight_decay=True, or " if name in BY_FLAG else ""
        raise TypeError(f"{name} adds weight decay to the gradient (L2), and so to its averages: it cannot be removed; {flag}"
                        f"{REMEDY}")
    if name:
        return KNOWN[name](optimizer, form, weight_decay)
    return measured_rule(optimizer, form, weight_decay)


def _given(optimizer, form, weight_decay, decay):
    if decay == "l2":
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError(f'decay="l2" is for torch.optim.SGD and its subclasses, got {type(optimizer).__name__}')
        return L2(optimizer, form, weight_decay)
    rules: dict[Any, Delta] = {"lr*wd": product, "wd": alone}
    if not callable(decay) and decay not in rules:
        raise ValueError(f'decay must be None, "l2", "lr*wd", "wd" or a function of (group, step), got {decay!r}')
    return Decoupled(optimizer, form, weight_decay, decay if callable(decay) else rules[decay])


def _known(optimizer: Optimizer) -> str | None:
    """The name of the torch class whose step this is; None for a step of its own."""
    for cls in type(optimizer).__mro__:
        known = getattr(torch.optim, cls.__name__, None)
        if known is cls and _code(type(optimizer).step) is _code(cls.step):
            own = getattr(type(optimizer), "_init_group", None) is getattr(cls, "_init_group", None)
            return cls.__name__ if own else None
    return None


def _code(step):
    """The function inside torch's wrappers."""
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step


def settings(group: Group) -> dict[str, float]:
    """The numbers of a param group that say how it decays."""
    return {name: float(group[name]) for name in ("lr", "momentum", "weight_decay")
            if isinstance(group.get(name), int | float | torch.Tensor)}
