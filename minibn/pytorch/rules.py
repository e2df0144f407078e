"""How each kind of optimizer takes a step in converted form: `L2` for torch's SGD, `Decoupled` for every optimizer that only
multiplies the weights by 1 - δ, `Relative` for those whose update is proportional to the weights (Adafactor).

In all three the script's weights are w = R w̃, where w̃ are the held ones, and p.grad is the script's own gradient.

**Theorem** (decoupled decay, no assumption on the optimizer). Let  w' = (1 - δ) w - η u,  with u any function of the gradients
so far. Put R' = (1 - δ) R. Then dividing by R' gives

    w̃' = w̃ - (η / R') u

So the optimizer, given the script's own gradients, lr / R' and no weight decay, trains the same network: eps, clipping, bias
corrections and averages included, since u is the same. Where members of a set decay differently, R' follows the largest δ and
the others grow:  w̃' = (1 - δ_i) / (1 - δ_max) w̃ - (η / R') u.  SGD with L2 decay and momentum: `equivalence.streams`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from minibn.equivalence import streams
from minibn.equivalence.streams import Frame
from minibn.optim import Step
from minibn.schedules import nesterov

Group = dict[str, Any]
Delta = Callable[[Group, int], float]
SCRIPTS = {"params", "param_names", "lr", "weight_decay", "eps"}  # what an optimizer does not change in its param groups
PRODUCT: Delta = lambda group, step: float(group["lr"]) * float(group["weight_decay"])  # noqa: E731
ALONE: Delta = lambda group, step: float(group["weight_decay"])  # noqa: E731


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


class L2:
    """`torch.optim.SGD`: the hooks update the converted weights themselves, and torch's own step does not see them."""

    def __init__(self, optimizer: torch.optim.Optimizer, form: str, weight_decay: float) -> None:
        self.optimizer, self.form, self.weight_decay = optimizer, form, weight_decay
        self.hidden: list[tuple[torch.Tensor, torch.Tensor]] = []

    def check(self, group: Group) -> None:
        if group["differentiable"]:
            raise ValueError("a param group with differentiable=True cannot be converted: the hooks do not record the "
                             "step for "
                             "autograd")

    def delta(self, group: Group, step: int) -> float:
        return float(group["lr"]) * float(group["weight_decay"])

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        buffers = [self._buffer(p) is not None for p in members]
        step = self._step(group, first=not any(buffers))
        if step.momentum and not any(buffers):
            frame = Frame(frame.scale)  # torch starts with a velocity of 0, whatever went before
        elif any(buffers) and not step.momentum or not all(buffers) and step.momentum and frame[1:] != (0.0, 1.0):
            raise ValueError("momentum went to 0, or came to some parameters later than to others: what torch's SGD "
                             "does then to "
                             "the momentum buffers has no counterpart. Keep momentum above 0, or clear optimizer.state")
        if self.form == "removed":
            step, frame = streams.remove_step(step, frame, None, t)
            return Plan(Frame(*frame), frame[0], step)
        step, frame = streams.add_step(step, frame, self.weight_decay, 0.0, t)
        return Plan(Frame(*frame), 1 / frame[0], step)

    @torch.no_grad()
    def start(self, moves: list[Move]) -> None:
        scaler = getattr(self.optimizer, "grad_scale", None)  # of GradScaler, if fused
        for group, members, plan, before, _, growth in moves:
            step, grads = plan.step, [p.grad for p in members if p.grad is not None]
            assert step is not None
            assert (step.kick, step.shrink, step.rescale) == (0, 0, 1)  # which `_update` does not know
            factor = before * (1 - self._dampening(group, members)) / (1.0 if scaler is None else float(scaler))
            forces = torch._foreach_mul(grads, -factor if group["maximize"] else factor)
            _update(step, members, forces, self._velocities(members) if step.momentum else [])
            self.rescale(members, growth)
            self.hidden += zip(members, grads, strict=True)
            for p in members:
                p.grad = None

    def complete(self, moves: list[Move]) -> bool:
        """After a step that was broken off: whether it is complete for the converted weights. Else nothing of it is left."""
        return True

    def finish(self) -> None:
        for p, grad in self.hidden:
            p.grad = grad if p.grad is None else p.grad
        self.hidden = []

    @torch.no_grad()
    def rescale(self, members: Iterable[torch.Tensor], factor: float) -> None:
        """Move the weights to another scale: w̃ <- factor w̃, ṽ <- ṽ / factor."""
        members = list(members)
        if factor != 1:
            torch._foreach_mul_(members, factor)
            velocities = [b for b in map(self._buffer, members) if b is not None]
            if velocities:
                torch._foreach_mul_(velocities, 1 / factor)

    @torch.no_grad()
    def back(self, p: torch.Tensor, frame: Frame) -> None:
        """Bring weights and velocity to the script's own form."""
        buffer = self._buffer(p)
        go = frame.add if self.form == "removed" else frame.remove
        weight, velocity = go(p, 0.0 if buffer is None else buffer)
        p.copy_(weight)
        if buffer is not None:
            buffer.copy_(velocity)

    def _step(self, group, first):
        damping = 1.0 if first or not group["momentum"] else 1 - float(group["dampening"])
        step = Step(float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]) * damping)
        return next(nesterov([step])) if group["nesterov"] else step

    def _dampening(self, group, members):
        """Torch leaves the first gradient undamped."""
        return float(group["dampening"]) if group["momentum"] and self._buffer(members[0]) is not None else 0.0

    def _buffer(self, p):
        return self.optimizer.state.get(p, {}).get("momentum_buffer")

    def _velocities(self, members):
        for p in members:
            if self._buffer(p) is None:
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return [self._buffer(p) for p in members]


class Decoupled:
    """Any optimizer whose weight decay multiplies the weights by 1 - δ and does nothing else.

    During its step the converted members of each param group stand in a group of their own, with lr / R' and without weight
    decay. What the optimizer writes into that group is copied back.
    """

    steps_without_gradient = False  # whether it moves, and decays, weights without gradient, which torch's own leave alone

    def __init__(self, optimizer: torch.optim.Optimizer, form: str, weight_decay: float, delta: Delta = PRODUCT) -> None:
        self.optimizer, self.form, self.weight_decay, self.delta = optimizer, form, weight_decay, delta
        self.saved: list[Group] | None = None
        self.parts: list[tuple[Group, Group, Group]] = []

    def check(self, group: Group) -> None:
        if group.get("differentiable"):
            raise ValueError("a param group with differentiable=True cannot be converted: the hooks do not record the "
                             "step for "
                             "autograd")

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        scale = frame.scale
        if self.form == "removed":
            after = scale * (1 - _below_one(self.delta(group, t), group, t))
            return Plan(Frame(after), after)
        if float(group["weight_decay"]):
            raise ValueError(f"step {t} already has weight_decay={float(group['weight_decay'])}: apply "
                             f"remove_weight_decay first")
        product = float(group["lr"]) * scale * self.weight_decay
        return Plan(Frame(scale / (1 + product)), 1 / scale)

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
        """After a step that was broken off: nothing of it is left."""
        if self.saved is not None:
            self.optimizer.param_groups[:], self.saved = self.saved, None
            for move in moves:
                self.shrink(move)
        return False

    @torch.no_grad()
    def rescale(self, members: Iterable[torch.Tensor], factor: float) -> None:
        if factor != 1:
            torch._foreach_mul_(list(members), factor)

    @torch.no_grad()
    def back(self, p: torch.Tensor, frame: Frame) -> None:
        p.mul_(frame.scale if self.form == "removed" else 1 / frame.scale)

    def _part(self, group, members, numbers):
        part = {**group, "params": members, **numbers}
        if "param_names" in group:
            names = dict(zip(group["params"], group["param_names"], strict=True))
            part["param_names"] = [names[p] for p in members]
        self.parts.append((group, part, dict(part)))
        return part


class Relative(Decoupled):
    """An optimizer whose update is proportional to the weights: at w̃ = w / R it is what it would be, divided by R.

    So lr and weight decay stay as they are, and the weights are multiplied by R / R' after the step. A bound that has the
    unit of weights (Adafactor's second eps, `floor` its place in group["eps"]) is divided by R.
    """

    floor: int | None = None

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        if self.form == "added":
            raise ValueError("an optimizer whose update is proportional to the weights has the same learning rate with "
                             "and without "
                             "weight decay: there is none to add")
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
                         f"them by "
                         f"1 - {delta:.4g} (lr={float(group['lr'])}, weight_decay={float(group['weight_decay'])}). Lower the "
                         "learning rate or the weight decay")
    return delta


def _update(step, weights, forces, velocities):
    """The update of `optim.sgd`, for lists of tensors, in place. Without momentum the velocities are the forces."""
    if step.weight_decay:
        torch._foreach_add_(forces, weights, alpha=step.weight_decay)
    if velocities:
        torch._foreach_mul_(velocities, step.momentum)
        torch._foreach_add_(velocities, forces)
    torch._foreach_add_(weights, velocities or forces, alpha=-step.lr)
    if step.lookahead:
        torch._foreach_add_(weights, forces, alpha=-step.lr * step.lookahead)
