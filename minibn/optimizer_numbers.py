"""The numbers of each optimiser's steps, as fields of `Experiment` and as flags: which optimiser takes which, and the defaults.

Each user has a table of defaults of its own, {name of an optimiser: step object}.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from minibn.equivalence.methods import METHODS
from minibn.optim import StepNumbers


class Number(NamedTuple):
    """One number: what it means, and below what it must be. All are at least 0."""

    text: str
    below: float = math.inf


NUMBERS = {
    "lr": Number("highest learning rate, with weight decay"),
    "momentum": Number("from 0 to below 1", 1),
    "beta1": Number("what the mean of gradients keeps per step, from 0 to below 1", 1),
    "beta2": Number("what AdamW's mean of squares, or Lion's mean, keeps per step, from 0 to below 1", 1),
    "eps": Number("added to the root of AdamW's mean of squares"),
    "weight_decay": Number("L2 for sgd, as PyTorch has it; decoupled, lr x weight decay, for the others"),
}


def takers(name: str) -> tuple[str, ...]:
    """The optimisers whose steps have this number.

    Example:
        >>> takers("beta2")
        ('adamw', 'lion')
    """
    return tuple(optimizer for optimizer, method in METHODS.items() if name in method.numbers)


def when(name: str) -> dict[str, tuple[str, ...]]:
    """{"optimizer": those with which the number acts}, as `Parser.flag` takes it; empty if that is all of them."""
    return {} if len(takers(name)) == len(METHODS) else {"optimizer": takers(name)}


def described(name: str, defaults: Mapping[str, StepNumbers]) -> str:
    """The help of a number, with its default for each optimiser."""
    values = ", ".join(f"{getattr(defaults[optimizer], name):g} for {optimizer}" for optimizer in takers(name))
    return f"{NUMBERS[name].text}; default: {values}"


def chosen(defaults: Mapping[str, StepNumbers], optimizer: str, given: Mapping[str, float | None],
           called: Mapping[str, str] | None = None) -> StepNumbers:
    """The step object of `optimizer` with the given numbers, and its defaults for those that are None or not given.

    Args:
        defaults: {name of an optimiser: step object}.
        optimizer: one of `METHODS`.
        given: {number: value}.
        called: {number: its name in error messages}, where that is another one.

    Raises:
        ValueError: there is no such optimiser, it has no such number, or the number is out of
            range.

    Example:
        >>> from minibn.optim import Step
        >>> chosen({"sgd": Step(0.1, 0.9)}, "sgd", {"lr": 0.5, "momentum": None, "beta1": None})
        Step(lr=0.5, momentum=0.9, weight_decay=0.0, kick=0.0, rescale=1.0, lookahead=0.0, shrink=0.0)
    """
    if optimizer not in METHODS:
        raise ValueError(f"optimizer must be one of {list(METHODS)}, got {optimizer!r}")
    numbers = {name: value for name, value in given.items() if value is not None}
    for name, value in numbers.items():
        if name not in METHODS[optimizer].numbers:
            raise ValueError(f"{(called or {}).get(name, name)}={value} has no effect with optimizer={optimizer!r}; it is for "
                             f"{', '.join(takers(name))}")
    step: Any = defaults[optimizer]
    return replace(step, **numbers)
