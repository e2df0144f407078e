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
set decay differently, R' follows the largest δ, and the other members grow:

    w̃' = (1 - δ_i) / (1 - δ_max) w̃ - (η / R') u
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from minibn.equivalence.streams import Frame
from minibn.optim import Step

Group = dict[str, Any]
Delta = Callable[[Group, int], float]
SCRIPTS = {"params", "param_names", "lr", "weight_decay", "eps"}  # what an optimizer does not change in its param groups


def product(group: Group, step: int) -> float:
    """δ = lr x weight decay, as in torch's own."""
    return float(group["lr"]) * float(group["weight_decay"])


def alone(group: Group, step: int) -> float:
    """δ = weight decay, whatever lr is ("independent" decay)."""
    return float(group["weight_decay"])


class Plan(NamedTuple):
    """One step of some weights with equal numbers: where it leads.

    Attributes:
        frame: the change of variables after it.
        leaves: script's weights / held weights, after the update itself.
        step: the converted numbers of SGD, or None.
    """

    frame: Frame
    leaves: float
    step: Step | None = None


class Move(NamedTuple):
    """A plan, and what it is for. `growth` is what the held weights are multiplied by to stand in their set's common scale."""

    group: Group
    members: list[torch.Tensor]
    plan: Plan
    before: float
    after: float
    growth: float


class Decoupled:
    """Any optimizer whose weight decay multiplies the weights by 1 - δ and does nothing else.

    During its step the converted members of each param group stand in a group of their own, with
    lr / R' and without weight decay. What the optimizer writes into that group is copied back.
    """

    is_taken = False  # the hooks leave the step to torch
    steps_without_gradient = False  # whether it moves, and decays, weights without gradient, which torch's own leave alone

    def __init__(self, optimizer: torch.optim.Optimizer, form: str, weight_decay: float, delta: Delta = product) -> None:
        self.optimizer, self.form, self.weight_decay, self.delta = optimizer, form, weight_decay, delta
        self.saved: list[Group] | None = None
        self.parts: list[tuple[Group, Group, Group]] = []

    def check(self, group: Group) -> None:
        if group.get("differentiable"):
            raise ValueError("a param group with differentiable=True cannot be converted: the hooks do not record the step "
                             "for autograd")

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        scale = frame.scale
        if self.form == "removed":
            after = scale * (1 - _below_one(self.delta(group, t), group, t))
            return Plan(Frame(after), after)
        if float(group["weight_decay"]):
            raise ValueError(f"step {t} already has weight_decay={float(group['weight_decay'])}: apply "
                             f"remove_weight_decay first")
        share = float(group["lr"]) * scale * self.weight_decay
        return Plan(Frame(scale / (1 + share)), 1 / scale)

    @torch.no_grad()
    def start(self, moves: list[Move]) -> None:
        self.saved, self.parts = list(self.optimizer.param_groups), []
        buckets: dict[tuple[int, float], list[torch.Tensor]] = {}
        for move in moves:
            self.grow(move)
            buckets.setdefault((id(move.group), move.after), []).extend(move.members)
        moved = {p for move in moves for p in move.members}
        before = {move.after: move.before for move in moves}
        new = []
        for group in self.saved:
            for (home, after), members in buckets.items():
                if home == id(group):
                    new.append(self._part(group, members, self.numbers(group, before[after], after)))
            rest = [p for p in group["params"] if p not in moved]
            new.append(group if len(rest) == len(group["params"]) else self._part(group, rest, {}))
        self.optimizer.param_groups[:] = [group for group in new if group["params"]]

    def grow(self, move: Move) -> None:
        self.rescale(move.members, move.growth)

    def shrink(self, move: Move) -> None:
        self.rescale(move.members, 1 / move.growth)

    def numbers(self, group: Group, before: float, after: float) -> Group:
        """What the converted members' own group has in place of the script's numbers."""
        return {"lr": group["lr"] / after, "weight_decay": 0.0}

    def finish(self) -> None:
        if self.saved is None:
            return
        self.optimizer.param_groups[:], self.saved = self.saved, None
        for group, part, given in self.parts:
            group |= {key: value for key, value in part.items() if key not in SCRIPTS and value is not given.get(key, group)}

    def complete(self, moves: list[Move]) -> bool:
        """After a step that was interrupted: it is undone."""
        if self.saved is not None:
            self.optimizer.param_groups[:], self.saved = self.saved, None
            for move in moves:
                self.shrink(move)
        return False

    @torch.no_grad()
    def rescale(self, members: Iterable[torch.Tensor], factor: float) -> None:
        if factor != 1:
            torch._foreach_mul_(list(members), factor)

    def state(self, p: torch.Tensor) -> list[torch.Tensor]:
        return []

    @torch.no_grad()
    def carry(self, p: torch.Tensor, frame: Frame, back: bool) -> None:
        p.mul_(frame.scale if (self.form == "removed") == back else 1 / frame.scale)

    def _part(self, group, members, numbers):
        part = {**group, "params": members, **numbers}
        if "param_names" in group:
            names = dict(zip(group["params"], group["param_names"], strict=True))
            part["param_names"] = [names[p] for p in members]
        self.parts.append((group, part, dict(part)))
        return part


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

    def start(self, moves: list[Move]) -> None:
        self.moves = moves
        super().start(moves)

    def grow(self, move: Move) -> None:
        """After the step."""

    def shrink(self, move: Move) -> None:
        """Nothing was done before it."""

    def numbers(self, group: Group, before: float, after: float) -> Group:
        if self.floor is None:
            return {}
        return {"eps": tuple(e / before if i == self.floor else e for i, e in enumerate(group["eps"]))}

    def finish(self) -> None:
        if self.saved is not None:
            super().finish()
            for move in self.moves:
                self.rescale(move.members, move.growth)


def _below_one(delta, group, t):
    if not delta < 1:
        raise ValueError(f"step {t} cannot be converted: weight decay would carry the weights through zero, multiplying "
                         f"them by 1 - {delta:.4g} (lr={float(group['lr'])}, weight_decay={float(group['weight_decay'])}). "
                         "Lower the learning rate or the weight decay")
    return delta
