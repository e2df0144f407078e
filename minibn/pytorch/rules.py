"""How an optimizer takes a step in converted form.

`Decoupled` is for every optimizer whose weight decay multiplies the weights by 1 - δ and does
nothing else, `Relative` for optimizers whose update is proportional to the weights (Adafactor). For
torch's SGD see `l2`.

The *script's* weights w are those of the run with weight decay. The *held* weights w̃ are those
that the model's parameters hold, with w = R w̃. `p.grad` is the gradient at w.

**Theorem** (decoupled decay, no assumption on the optimizer). Let  w' = (1 - δ) w - η u,  with u
any function of the gradients so far. Put R' = (1 - δ) R. Then dividing by R' gives

    w̃' = w̃ - (η / R') u

So the optimizer, given the script's own gradients, lr / R' and no weight decay, trains the same
network: eps, clipping, bias corrections and averages included, since u is the same. If members of a
set decay differently, R' follows the largest δ, and the other members grow after their step:

    w̃' = g (w̃ - η / (g R') u),    g = (1 - δ_i) / (1 - δ_max)
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from minibn.equivalence.streams import Frame
from minibn.optim import Step
from minibn.pytorch.stand_in import Group, StandIns

Delta = Callable[[Group, int], float]


def number(group: Group, name: str, least: float = -math.inf) -> float:
    """A number of a param group.

    Raises:
        ValueError: it is below `least`, not finite, or no number.
    """
    value = group[name]
    try:
        if least <= float(value) and math.isfinite(float(value)):
            return float(value)
    except (TypeError, ValueError):
        pass
    needed = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
    raise ValueError(f"{name} of a param group must be {needed}, got {value!r}: set it before the step")


def product(group: Group, step: int) -> float:
    """δ = lr x weight decay, as in torch's own."""
    return number(group, "lr") * number(group, "weight_decay")


def alone(group: Group, step: int) -> float:
    """δ = weight decay, whatever lr is ("independent" decay)."""
    return number(group, "weight_decay")


class Plan(NamedTuple):
    """One step of some weights with equal numbers: where it leads.

    Attributes:
        frame: the change of variables after it.
        leaves: script's weights / held weights, right after the update: g R'.
        step: the converted numbers of SGD, or None.
    """

    frame: Frame
    leaves: float
    step: Step | None = None


class Move(NamedTuple):
    """A plan, and what it is for.

    Attributes:
        before: the set's R before the step.
        after: R' after it.
        growth: what the held weights are multiplied by after their update, to stand in the set's
            common scale.
    """

    group: Group
    members: list[torch.Tensor]
    plan: Plan
    before: float
    after: float
    growth: float


class Decoupled:
    """Any optimizer whose weight decay multiplies the weights by 1 - δ and does nothing else.

    During its step the converted members of each param group stand in a group of their own, with
    lr / (g R') and without weight decay.
    """

    steps_without_gradient = False  # whether it moves, and decays, weights without gradient, which torch's own leave alone

    def __init__(self, optimizer: torch.optim.Optimizer, form: str, weight_decay: float, delta: Delta = product) -> None:
        self.optimizer, self.form, self.weight_decay, self.delta = optimizer, form, weight_decay, delta
        self.groups = StandIns(optimizer)

    def check(self, group: Group) -> None:
        if group.get("differentiable"):
            raise ValueError("a param group with differentiable=True cannot be converted: the hooks do not record the step "
                             "for autograd")

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        scale = frame.scale
        if self.form == "removed":
            after = scale * (1 - _below_one(self.delta(group, t), group, t))
            return Plan(Frame(after), after)
        if number(group, "weight_decay"):
            raise ValueError(f"step {t} already has weight_decay={float(group['weight_decay'])}: apply "
                             f"remove_weight_decay first")
        share = number(group, "lr") * scale * self.weight_decay
        return Plan(Frame(scale / (1 + share)), 1 / scale)

    def start(self, moves: list[Move]) -> None:
        """Before torch's own step."""
        self.groups, groups = StandIns(self.optimizer), []
        moved = {p for move in moves for p in move.members}
        for group in self.optimizer.param_groups:
            buckets: dict[float, list[Move]] = {}
            for move in moves:
                if move.group is group:
                    buckets.setdefault(move.plan.leaves, []).append(move)
            for alike in buckets.values():
                members = [p for move in alike for p in move.members]
                groups.append(self.groups.part(group, members, **self.numbers(group, alike[0])))
            rest = [p for p in group["params"] if p not in moved]
            groups.append(group if len(rest) == len(group["params"]) else self.groups.part(group, rest))
        self.groups.enter([group for group in groups if group["params"]])

    def numbers(self, group: Group, move: Move) -> Group:
        """What the converted members' own group has in place of the script's numbers."""
        return {"lr": group["lr"] / move.plan.leaves, "weight_decay": 0.0}

    def finish(self, moves: list[Move]) -> None:
        """After torch's own step."""
        self.groups.leave()
        for move in moves:
            self.rescale(move.members, move.growth)

    @torch.no_grad()
    def rescale(self, members: Iterable[torch.Tensor], factor: float) -> None:
        if factor != 1:
            torch._foreach_mul_(list(members), factor)

    def state(self, p: torch.Tensor) -> list[torch.Tensor]:
        return []

    @torch.no_grad()
    def carry(self, p: torch.Tensor, frame: Frame, back: bool) -> None:
        p.mul_(frame.scale if (self.form == "removed") == back else 1 / frame.scale)


class Relative(Decoupled):
    """An optimizer whose update is proportional to the weights: at w̃ = w / R it is what it would be, divided by R.

    So lr and weight decay stay as they are, and the weights are multiplied by R / R' after the
    step. A bound that has the unit of weights (Adafactor's second eps, `floor` its place in
    group["eps"]) is divided by R.
    """

    floor: int | None = None

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        if self.form == "added":
            raise ValueError("an optimizer whose update is proportional to the weights has the same learning rate with and "
                             "without weight decay: there is none to add")
        return super().plan(group, members, frame, t)._replace(leaves=frame.scale)

    def numbers(self, group: Group, move: Move) -> Group:
        if self.floor is None:
            return {}
        return {"eps": tuple(e / move.before if i == self.floor else e for i, e in enumerate(group["eps"]))}


def _below_one(delta, group, t):
    if not delta < 1:
        raise ValueError(f"step {t} cannot be converted: weight decay would carry the weights through zero, multiplying "
                         f"them by 1 - {delta:.4g} (lr={float(group['lr'])}, weight_decay={float(group['weight_decay'])}). "
                         "Lower the learning rate or the weight decay")
    return delta
