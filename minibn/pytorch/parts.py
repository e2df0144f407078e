"""What a conversion works on: sets of weights with a common scale, and their parts, one per param group."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from minibn.equivalence.streams import Frame
from minibn.pytorch.rules import Group, Move, Plan


@dataclass(eq=False)
class Part:
    """The members of one set in one param group: weights that are decayed alike."""

    optimizer: torch.optim.Optimizer
    index: int  # of the param group
    places: list[int]  # in the param group
    members: list[torch.Tensor]
    frame: Frame = Frame()
    steps: int = 0

    @property
    def group(self) -> Group:
        """
        Raises:
            RuntimeError: the param groups are not those of the conversion any more.
        """
        groups = self.optimizer.param_groups
        params = groups[self.index]["params"] if self.index < len(groups) else []
        if not all(i < len(params) and params[i] is p for i, p in zip(self.places, self.members, strict=True)):
            raise RuntimeError("the optimizer's param groups were reordered, or converted parameters were moved between them. "
                               "Call handle.remove() before, and convert again after it. (New param groups may be added at "
                               "the end)")
        return groups[self.index]


@dataclass(eq=False)
class Set:
    """Weights that are scale-invariant together, and so have one scale: the script's weights are `ratio` times the held ones."""

    name: Any
    parts: list[Part]
    free: set[torch.Tensor]  # biases without effect, which may follow any decay
    ratio: float = 1.0
    plans: dict[Part, Plan] = field(default_factory=dict)  # of the step that is being taken, for those parts that it moves
    waiting: set[torch.optim.Optimizer] = field(default_factory=set)  # which have not taken it yet

    @property
    def title(self) -> str:
        """What messages call it: the names of its members, or where they were given, with their shapes."""
        shapes = ", ".join(str(tuple(p.shape)) for p in self.members[:4])
        return str(self.name) if isinstance(self.name, tuple) else f"{shapes} (given at place {self.name})"

    @property
    def half_stepped(self) -> bool:
        return any(part.optimizer not in self.waiting for part in self.plans)

    @property
    def members(self) -> list[torch.Tensor]:
        return [p for part in self.parts for p in part.members]


def is_live(s: Set, part: Part, rule: Any) -> bool:
    """Whether the optimizer moves these weights in its next step.

    Raises:
        RuntimeError: it moves some of them.
    """
    if rule.steps_without_gradient:
        return True
    missing = [p for p in part.members if p.grad is None]
    sparse = [p for p in part.members if p.grad is not None and p.grad.is_sparse]
    if sparse or 0 < len(missing) < len(part.members):
        raise uneven(s, sparse or missing, "a sparse" if sparse else "no")
    return not missing


def check_common(s: Set, plans: dict[Part, Plan]) -> None:
    """Raise ValueError unless the plans of a set's parts lead to one scale."""
    scales = [plan.frame.scale for part, plan in plans.items() if not set(part.members) <= s.free]
    if scales and not math.isclose(min(scales), max(scales), rel_tol=1e-9):
        numbers = [{n: float(part.group[n]) for n in ("lr", "momentum", "weight_decay") if n in part.group} for part in plans]
        raise ValueError(f"the weights {s.title} are scale-invariant only together, but at this step they are decayed in "
                         f"different ways: {numbers}. Give them the same lr and weight decay, or convert with "
                         "mixed=\"move\" or mixed=\"skip\"")


def uneven(s: Set, bad: list[torch.Tensor], what: str) -> RuntimeError:
    """The error for members of a set that do not step with the others."""
    return RuntimeError(
        f"{len(bad)} of the {len(s.members)} weights {s.title}, which are scale-invariant only together, of shapes "
        f"{[tuple(p.shape) for p in bad[:4]]}, have {what} gradient at this step, so their weight decay differs from the "
        "others'. Do not convert this set, or give these weights a param group of their own and convert with mixed=\"move\"")


def merged(moves: list[Move]) -> list[Move]:
    """Moves with equal numbers as one, so that torch handles their tensors together."""
    merged: dict = {}
    for move in moves:
        key = (id(move.group), move.plan, move.before, move.after, move.growth)
        merged.setdefault(key, move._replace(members=[])).members.extend(move.members)
    return list(merged.values())
