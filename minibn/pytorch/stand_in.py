"""Param groups that stand in for an optimizer's own during one step."""

from typing import Any

import torch

Group = dict[str, Any]
SCRIPTS = {"params", "param_names", "lr", "weight_decay", "eps"}  # what an optimizer does not change in its param groups


class StandIns:
    """The optimizer's own param groups are put aside by `enter`, and are back after `leave` or `undo`.

    An exception in the step may leave them aside. So until then `zero_grad` brings them back first.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._own: list[Group] | None = None
        self._entered: list[Group] = []
        self._parts: list[tuple[Group, Group, Group]] = []  # (an own group, what stands in for it, as it was at first)

    def part(self, group: Group, members: list[torch.Tensor], **numbers: Any) -> Group:
        """A group of some members of `group`, with other numbers. A tensor there, such as a count of steps, is a copy."""
        own = {key: value.clone() for key, value in group.items() if _is_written(key, value)}
        part = {**group, **own, "params": members, **numbers}
        if "param_names" in group:
            names = dict(zip(group["params"], group["param_names"], strict=True))
            part["param_names"] = [names[p] for p in members]
        self._parts.append((group, part, dict(part)))
        return part

    def enter(self, groups: list[Group]) -> None:
        self._own, self._entered = list(self.optimizer.param_groups), groups
        self.optimizer.param_groups[:] = groups
        self._patched = vars(self.optimizer).get("zero_grad")
        vars(self.optimizer)["zero_grad"] = self._zero_grad

    def leave(self) -> None:
        """After the step: what the optimizer wrote into its groups is copied back."""
        self._restore()
        for group, part, given in self._parts:
            for key in given.keys() & group.keys():
                if _is_written(key, group[key]) and part[key] is given[key]:
                    group[key].copy_(part[key])
            group |= {key: value for key, value in part.items() if key not in SCRIPTS and value is not given.get(key, group)}

    def undo(self) -> None:
        """After a step that an exception broke off. Nothing happens if the own groups are there.

        Raises:
            RuntimeError: since then, the script has written into a group that stood in, or has added one.
        """
        known = list(map(id, self._entered))
        changed = {"params" for group in self._restore() if id(group) not in known}
        changed |= {key for _, part, given in self._parts for key in part.keys() & SCRIPTS if part[key] is not given.get(key)}
        self._parts = []
        if changed:
            raise RuntimeError(f"{', '.join(sorted(changed))} of the optimizer's param groups was changed right after a step "
                               "that an exception broke off. That change is lost, as the converted step's own groups were still "
                               "there. Now the script's are there again: make the change again, and go on")

    def _restore(self):
        """Bring the own groups back; the groups that stood there."""
        if self._own is None:
            return []
        there = list(self.optimizer.param_groups)
        self.optimizer.param_groups[:], self._own = self._own, None
        del vars(self.optimizer)["zero_grad"]
        if self._patched is not None:
            vars(self.optimizer)["zero_grad"] = self._patched
        return there

    def _zero_grad(self, *args, **kwargs):
        self.undo()
        return self.optimizer.zero_grad(*args, **kwargs)


def _is_written(key, value):
    """Whether this is a tensor that the optimizer may write in place."""
    return key not in SCRIPTS and isinstance(value, torch.Tensor)
