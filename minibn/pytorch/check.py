"""`handle.check`: train the original, the conversion and a control side by side, on copies."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch

from minibn import arguments
from minibn.pytorch.averages import Averages
from minibn.pytorch.conversion import Conversion
from minibn.pytorch.loss import copy_of
from minibn.pytorch.parts import Part, Set
from minibn.pytorch.selftest import clone_of


class Check(NamedTuple):
    """Largest differences of the losses of three runs from the same point, over some steps.

    The control is the original run with its weights disturbed by one rounding. Some networks
    magnify any difference. In these, the conversion cannot be distinguished from the control.

    Attributes:
        gap: |converted - original|.
        control: |control - original|.
        between: |converted - control|.
        steps: number of steps.
    """

    gap: float
    control: float
    between: float
    steps: int

    def __str__(self):
        return (f"largest difference of the loss over {self.steps} steps: converted and original {self.gap:.1e}, control "
                f"(weights disturbed by one rounding) and original {self.control:.1e}, converted and control "
                f"{self.between:.1e}")


def check(handle: Conversion, loss_fn: Callable[[torch.nn.Module], torch.Tensor], steps: int = 50) -> Check:
    """Train copies of the model in three runs: the original, the conversion and a control.

    Args:
        handle: of a conversion that was made from a report.
        loss_fn: `loss_fn(model)` returns a loss, which may be that of another batch in each call.
            All three runs call it with the same random seeds, so let it draw its batch from torch's
            generator.
        steps: number of steps, at the present lr and weight decay.

    Raises:
        ValueError: the conversion was made without a report, steps is below 1, or the model or the
            optimizer cannot be copied.
        TypeError: the loss is no tensor.
    """
    steps = arguments.whole("handle.check: steps", steps, 1)
    if handle.found is None:
        raise ValueError("handle.check needs the model: convert with report(model, loss_fn), not with parameters")
    runs = {name: _losses(handle, loss_fn, steps, name) for name in ("original", "converted", "control")}

    def largest(one, other):
        return max(abs(a - b) for a, b in zip(runs[one], runs[other], strict=True))

    return Check(largest("converted", "original"), largest("control", "original"), largest("converted", "control"), steps)


def _losses(handle, loss_fn, steps, form):
    model, optimizers, twin = _copies(handle)
    if form != "converted":
        twin.remove()
    if form == "control":
        _disturb(twin.parameters)
    losses = []
    with torch.random.fork_rng(), torch.enable_grad():
        for t in range(steps):
            torch.manual_seed(t)

            def closure():
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss = loss_fn(model)
                if not isinstance(loss, torch.Tensor):
                    raise TypeError(f"loss_fn(model) must return the loss, a tensor of one number, got {type(loss).__name__}")
                loss.backward()
                return loss

            losses.append(closure().item())
            for optimizer in optimizers:
                optimizer.step()
    return losses


def _copies(handle):
    """(model, optimizers, Conversion) as they are now, on new tensors."""
    memo: dict = {}
    model = copy_of(handle.found.model, memo)
    for p in handle.parameters:
        memo[id(p)].requires_grad_(True)  # one that is frozen now has no gradient either
    other = {old: _copied(old, memo) for old in handle.optimizers}
    sets = [Set(s.name, [Part(other[part.optimizer], part.index, part.places,
                              [other[part.optimizer].param_groups[part.index]["params"][i] for i in part.places])
                         for part in s.parts], {memo[id(p)] for p in s.free}) for s in handle.sets]
    rules = {}
    for old, new in other.items():
        rules[new] = copy.copy(handle.rules[old])
        rules[new].optimizer = new
    averages = handle.averages and Averages(model, handle.averages.degrees)
    twin = Conversion(rules, sets, handle.form, handle.band, handle.moving, averages)
    for p in handle.parameters:
        memo[id(p)].requires_grad_(p.requires_grad)
    return model, list(other.values()), twin


def _copied(optimizer, memo):
    """`optimizer` on the tensors in `memo`. (Torch's own deepcopy leaves out the attributes of a class of the script's own.)"""
    new = clone_of(optimizer, copy.deepcopy(optimizer.param_groups, memo))
    new.state = copy.deepcopy(optimizer.state, memo)
    return new


@torch.no_grad()
def _disturb(parameters):
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        p.mul_((1 + torch.finfo(p.dtype).eps * noise).to(p.dtype))
