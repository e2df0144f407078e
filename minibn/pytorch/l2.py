"""How `torch.optim.SGD` takes a step in converted form: L2 decay and momentum, by `equivalence.streams`."""

from collections.abc import Iterable

import torch

from minibn.equivalence import streams
from minibn.equivalence.streams import Frame
from minibn.optim import Step
from minibn.pytorch.rules import Move, Plan, number, product
from minibn.pytorch.stand_in import Group, StandIns
from minibn.schedules import nesterov


class L2:
    """`torch.optim.SGD`: the hooks update the converted weights themselves, after torch's own step, which does not see them."""

    steps_without_gradient = False

    def __init__(self, optimizer: torch.optim.Optimizer, form: str, weight_decay: float) -> None:
        self.optimizer, self.form, self.weight_decay = optimizer, form, weight_decay
        self.groups = StandIns(optimizer)

    def check(self, group: Group) -> None:
        if group["differentiable"]:
            raise ValueError("a param group with differentiable=True cannot be converted: the hooks do not record the step "
                             "for autograd")

    def delta(self, group: Group, step: int) -> float:
        return product(group, step)

    def plan(self, group: Group, members: list[torch.Tensor], frame: Frame, t: int) -> Plan:
        buffers = [self._buffer(p) is not None for p in members]
        step = self._step(group, first=not any(buffers))
        if step.momentum and not any(buffers):
            frame = Frame(frame.scale)  # torch starts with a velocity of 0, whatever went before
        elif not step.momentum and any(buffers) or step.momentum and not all(buffers) and (
                frame[1:] != (0.0, 1.0) or group["dampening"]):  # torch does not damp the first gradient of each weight
            raise ValueError("momentum went to 0, or came to some parameters later than to others: what torch's SGD does "
                             "then to the momentum buffers has no counterpart. Keep momentum above 0, or clear "
                             "optimizer.state")
        if self.form == "removed":
            step, frame = streams.remove_step(step, frame, None, t)
            return Plan(Frame(*frame), frame[0], step)
        step, frame = streams.add_step(step, frame, self.weight_decay, 0.0, t)
        return Plan(Frame(*frame), 1 / frame[0], step)

    def start(self, moves: list[Move]) -> None:
        """Before torch's own step, which leaves the converted weights alone."""
        moved = {p for move in moves for p in move.members}
        self.groups = StandIns(self.optimizer)
        self.groups.enter([self.groups.part(group, [p for p in group["params"] if p not in moved])
                           for group in self.optimizer.param_groups])

    @torch.no_grad()
    def finish(self, moves: list[Move]) -> None:
        """After it, the converted weights take theirs."""
        self.groups.leave()
        scaler = getattr(self.optimizer, "grad_scale", None)  # of GradScaler, if fused
        for group, members, plan, before, _, growth in moves:
            step, grads = plan.step, [p.grad for p in members if p.grad is not None]
            assert step is not None
            assert (step.kick, step.shrink, step.rescale) == (0, 0, 1)  # which `_update` does not know
            factor = before * self._damping(group, self._buffer(members[0]) is None) / (1.0 if scaler is None else float(scaler))
            forces = torch._foreach_mul(grads, -factor if group["maximize"] else factor)
            _update(step, members, forces, self._velocities(members) if step.momentum else [])
            self.rescale(members, growth)

    @torch.no_grad()
    def rescale(self, members: Iterable[torch.Tensor], factor: float) -> None:
        """Move the weights to another scale: w̃ <- factor w̃, ṽ <- ṽ / factor."""
        members = list(members)
        if factor != 1:
            torch._foreach_mul_(members, factor)
            velocities = [b for b in map(self._buffer, members) if b is not None]
            if velocities:
                torch._foreach_mul_(velocities, 1 / factor)

    def state(self, p: torch.Tensor) -> list[torch.Tensor]:
        """The part of the optimizer's state that depends on the form."""
        buffer = self._buffer(p)
        return [] if buffer is None else [buffer]

    @torch.no_grad()
    def carry(self, p: torch.Tensor, frame: Frame, back: bool) -> None:
        """Turn weights and velocity into those of the script, or back."""
        buffer = self._buffer(p)
        go = frame.add if (self.form == "removed") == back else frame.remove
        weight, velocity = go(p, 0.0 if buffer is None else buffer)
        p.copy_(weight)
        if buffer is not None:
            buffer.copy_(velocity)

    def _step(self, group, first):
        lr, momentum, weight_decay = (number(group, name, 0) for name in ("lr", "momentum", "weight_decay"))
        step = Step(lr, momentum, weight_decay * self._damping(group, first))
        return next(nesterov([step])) if group["nesterov"] else step

    def _damping(self, group, first):
        """Torch leaves the first gradient undamped, and all without momentum, which have no buffer either."""
        return 1.0 if first else 1 - float(group["dampening"])

    def _buffer(self, p):
        return self.optimizer.state.get(p, {}).get("momentum_buffer")

    def _velocities(self, members):
        for p in members:
            if self._buffer(p) is None:
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return [self._buffer(p) for p in members]


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
