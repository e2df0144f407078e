"""The hooks of a conversion are the innermost: those of the script, whenever it registers them, see its own gradients and lr."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch


def first_hook(p: torch.Tensor, function: Callable) -> Any:
    """`p.register_hook(function)`, before the hooks that are there: these clamp or log the gradient that comes out of ours."""
    others = dict(p._backward_hooks or {})
    hook = p.register_hook(function)
    hooks = cast(OrderedDict, p._backward_hooks)  # autograd goes through it in the order of insertion
    for key in others:
        del hooks[key]
    hooks.update(others)
    return hook


class Innermost:
    """The hooks around the steps of an optimizer: `before` is called after all other pre-hooks, `after` before all post-hooks."""

    def __init__(self, optimizer: torch.optim.Optimizer, before: Callable, after: Callable) -> None:
        self.optimizer = optimizer
        self.hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def restore_before(self) -> None:
        """`before` is the last pre-hook again, if the script has registered one meanwhile. Not to be called by a pre-hook."""
        if not self._is_last():
            self._before.move_to_end(self.hooks[0].id)

    def restore_after(self) -> None:
        """`after` is the first post-hook again. Not to be called by a post-hook."""
        self._after.move_to_end(self.hooks[1].id, last=False)

    def require(self) -> None:
        """
        Raises:
            RuntimeError: a hook was registered since the last backward pass.
        """
        if not self._is_last():
            raise RuntimeError("a step hook was registered on this optimizer after the backward pass, and would see the "
                               "converted step. Register it before the backward pass")

    def _is_last(self):
        return next(reversed(self._before)) == self.hooks[0].id

    @property
    def _before(self) -> OrderedDict:
        return cast(OrderedDict, self.optimizer._optimizer_step_pre_hooks)

    @property
    def _after(self) -> OrderedDict:
        return cast(OrderedDict, self.optimizer._optimizer_step_post_hooks)
