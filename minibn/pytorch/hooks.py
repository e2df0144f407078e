"""Weight decay removed from, or added to, a live `torch.optim.SGD`, through its step hooks.

Before each step the hooks read lr, momentum and weight decay as the script's scheduler left them, convert them with
`equivalence.streams`, and update the converted parameters themselves; their gradients are hidden meanwhile, so torch's own
step updates the others. The script's param groups keep the script's numbers throughout: schedulers, logs and checkpoints see
nothing else. Where the change of variables stands is kept in the param group under the key "minibn", as plain numbers, so
`state_dict` saves it and `load_state_dict` brings it back.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from minibn.equivalence import streams
from minibn.equivalence.streams import Frame
from minibn.optim import Step
from minibn.schedules import nesterov

KEY = "minibn"


def remove_weight_decay(optimizer: torch.optim.SGD, groups: Iterable, *, band: float | None = 2.0**8) -> "Conversion":
    """From its next step on, `optimizer` trains without weight decay the network that it would have trained with it.

    One line, after the optimizer was made, or in the middle of training. Heavy-ball and Nesterov momentum, any scheduler,
    closures, gradient accumulation, `torch.amp.GradScaler` and DDP need nothing more. The weights are 1/P times as large as
    they would be, the function is the same: exactly for normalisations with next to no eps, 1e-30 (see `report`).

    A checkpoint has weights, momentum and P in their converted form. Call this in every script that goes on from one, before
    or after `optimizer.load_state_dict`: without it training goes on wrongly, and nothing says so. `handle.remove()` before
    saving makes an ordinary checkpoint. One from before the conversion may be loaded as well.

    What the hooks cannot do for a script:

    - *Clip gradients by norm.* At w / P they are P times as large as the script's threshold expects (`handle.ratio(group)`
      is P). Clip each gradient relative to its weight's norm instead (adaptive gradient clipping): that knows no scale.
    - *Keep BatchNorm's running averages in step.* They lag behind weights that grow, and far behind when these are brought
      back (see `band`): call `torch.optim.swa_utils.update_bn` before evaluating.
    - *Share a scale between param groups.* Weights that are scale-invariant only together must see the same numbers; where
      they do not, and `groups` tells which belong together, a step raises ValueError.

    Args:
        optimizer: `torch.optim.SGD`, without dampening and maximize.
        groups: which parameters, each scale-invariant alone or with others of these: `report(model, loss_fn)`, or an iterable
            of Parameters, of lists of Parameters that belong together, or of param groups (`optimizer.param_groups[:1]`).
            Of parameters with requires_grad=False nothing is converted.
        band: as in `equivalence.remove_weight_decay`. The weights become at most so many times as large as they would be, then
            are brought back, by a power of two. That must leave room to activations in float16, which end at 65504. A smaller
            band would bring them back more often, and each time spoils BatchNorm's running averages: for some 160 steps with
            2**8, 50 with 2. At lr 0.1, momentum 0.9 and weight decay 5e-4 that is once in 11,000 steps, or 1,400.

    Returns:
        Conversion, a handle: `.remove()` goes back.

    Raises:
        TypeError: another optimizer: adaptive methods mix gradients of different scales, and have no conversion.
        ValueError: the optimizer is converted already, no or unknown parameters, or a param group that has no conversion. Also
            at a step, where the numbers of the param group have no conversion; nothing is changed by that step then.
    """
    streams.remove_weight_decay((), band=band)  # raises if band is not one
    return Conversion(optimizer, groups, "removed", lambda step, frame, t: streams.remove_step(step, frame, band, t))


def add_weight_decay(optimizer: torch.optim.SGD, weight_decay: float, groups: Iterable) -> "Conversion":
    """From its next step on, `optimizer` trains with `weight_decay` the network that it would have trained without any.

    The inverse of `remove_weight_decay`, for scripts with an exponential schedule: their weights stay of ordinary size.
    Arguments, limits and errors are those above; P is then the factor by which the weights are smaller.
    """
    Step(0.0, weight_decay=weight_decay)
    return Conversion(optimizer, groups, "added", lambda step, frame, t: streams.add_step(step, frame, weight_decay, 0.0, t))


def effective_lr(optimizer: torch.optim.Optimizer, groups: Iterable | None = None) -> list[float]:
    """`η / |w|²` of each param group, for logging: with the same `groups`, a number that a conversion does not change.

    η is the script's own learning rate and w the weights as they would be in the script's own form.

    Args:
        groups: which parameters make up w, as in `remove_weight_decay`. None: the converted ones of a param group, of a param
            group that has none all.

    Returns:
        a float for each param group; infinite where the weights are zero, or none are chosen.
    """
    conversion: Conversion | None = getattr(optimizer, "_minibn", None)
    chosen = None if groups is None else {p for together in _listed(groups) for p in together}
    rates = []
    for group in optimizer.param_groups:
        converted = conversion.members(group) if conversion else []
        weights = (converted or group["params"]) if chosen is None else [p for p in group["params"] if p in chosen]
        ratio = dict.fromkeys(converted, conversion.ratio(group)) if conversion and converted else {}
        norm = math.hypot(*(ratio.get(p, 1.0) * float(torch.linalg.vector_norm(p.detach())) for p in weights))
        rates.append(float(group["lr"]) / norm**2 if norm else math.inf)
    return rates


class Conversion:
    """A converted optimizer's handle.

    Attributes:
        optimizer: the `torch.optim.SGD`.
        parameters: the set of its converted parameters.
    """

    def __init__(self, optimizer: torch.optim.SGD, groups: Iterable, form: str,
                 convert: Callable[[Step, Frame, int], tuple[Step, Frame]]) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError(f"only torch.optim.SGD can be converted, got {type(optimizer).__name__}: the averages of adaptive "
                            "methods mix gradients of different scales, and no learning-rate schedule makes up for that")
        if getattr(optimizer, "_minibn", None):
            raise ValueError("this optimizer is converted already; call .remove() of its handle first, or give all parameters "
                             "at once")
        self.optimizer, self._form, self._convert = optimizer, form, convert
        together = _listed(groups)
        home = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        unknown = [tuple(p.shape) for group in together for p in group if p not in home]
        if unknown:
            raise ValueError(f"{len(unknown)} of the parameters are not in the optimizer, of shapes {unknown[:4]}; give "
                             "parameters of the model that this optimizer trains")
        self.parameters = {p for group in together for p in group if p.requires_grad}
        if not self.parameters:
            raise ValueError("there is nothing to convert: no parameters were given that require gradients (a report of a model "
                             "without normalisation has none)")
        spans = [{home[p] for p in group if p.requires_grad} for group in together]
        self._spans = [sorted(span) for span in spans if len(span) > 1]
        for group, record in [(group, self._record(group)) for group in self._groups() if _step_of(group)]:
            group[KEY] = record
        self._hidden: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]
        vars(optimizer)["_minibn"] = self  # not copied or pickled with the optimizer, as its hooks are not

    def __repr__(self) -> str:
        scales = ", ".join(f"P = {self.frame(group).scale:.3g}" for group in self._groups())
        return f"Conversion(weight decay {self._form}, {len(self.parameters)} parameters, {scales})"

    def members(self, group: dict[str, Any]) -> list[torch.nn.Parameter]:
        """The converted parameters of a param group."""
        return [p for p in group["params"] if p in self.parameters]

    def frame(self, group: dict[str, Any]) -> Frame:
        """Where the change of variables of a converted param group stands."""
        record = self._record(group)
        return Frame(record["scale"], record["kappa"], record["q"])

    def ratio(self, group: dict[str, Any]) -> float:
        """How many times as large the weights would be in the script's own form."""
        scale = self.frame(group).scale
        return scale if self._form == "removed" else 1 / scale

    @torch.no_grad()
    def remove(self) -> None:
        """Carry weights, momentum and gradients back to the script's own form, in which training goes on, without hooks."""
        if getattr(self.optimizer, "_minibn", None) is not self:
            return
        for group, frame, ratio in [(group, self.frame(group), self.ratio(group)) for group in self._groups()]:
            back = frame.add if self._form == "removed" else frame.remove
            for p in self.members(group):
                buffer = self._buffer(p)
                weight, velocity = back(p, 0.0 if buffer is None else buffer)
                p.copy_(weight)
                if buffer is not None:
                    buffer.copy_(velocity)
                if p.grad is not None:
                    p.grad.div_(ratio)
            group.pop(KEY, None)  # not there if a checkpoint from before the conversion was loaded
        for hook in self._hooks:
            hook.remove()
        del vars(self.optimizer)["_minibn"]

    def _groups(self):
        return [group for group in self.optimizer.param_groups if self.members(group)]

    def _record(self, group):
        """What is saved with the group; the identity if it is new, or loaded from a run that was not converted."""
        chosen = [i for i, p in enumerate(group["params"]) if p in self.parameters]
        fresh = {"form": self._form, "params": chosen, "steps": 0, "scale": 1.0, "kappa": 0.0, "q": 1.0}
        record = group.get(KEY, fresh)
        if (record["form"], record["params"]) != (self._form, chosen):
            raise ValueError(f"the optimizer's state is of a run with weight decay {record['form']} for parameters "
                             f"{record['params']} of a param group; now it is to be {self._form} for {chosen}. Convert as in the "
                             "run that was saved")
        return record

    def _buffer(self, p):
        return self.optimizer.state.get(p, {}).get("momentum_buffer")

    def _before(self, optimizer, args, kwargs):
        """Update the converted parameters, as soon as their gradients are there: with a closure, after it."""
        self._after()  # if the step before was broken off
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._step()
            return None

        def closure_and_step():
            loss = closure()
            self._step()
            return loss

        return args[:1], {**kwargs, "closure": closure_and_step}

    def _after(self, *_):
        for p, grad in self._hidden:
            p.grad = grad if p.grad is None else p.grad
        self._hidden = []

    @torch.no_grad()
    def _step(self):
        plans = [plan for group in self._groups() if (plan := self._plan(group))]
        self._check_scales(plans)
        scaler, overflow = (getattr(self.optimizer, name, None) for name in ("grad_scale", "found_inf"))  # GradScaler, if fused
        for group, members, step, record in plans:
            grads = [p.grad for p in members]
            if not overflow:
                if scaler is not None:
                    torch._foreach_div_(grads, float(scaler))
                _update(step, members, grads, self._velocities(members) if step.momentum else [])
                group[KEY] = record
            self._hidden += zip(members, grads, strict=True)
            for p in members:
                p.grad = None

    def _plan(self, group):
        """(group, its converted parameters, their Step, the record after it), or None where torch would not step; no effect."""
        members, record = self.members(group), self._record(group)
        missing = [p for p in members if p.grad is None]
        sparse = [p for p in members if p.grad is not None and p.grad.is_sparse]
        if len(missing) == len(members):
            return None
        if missing or sparse:
            bad, what = (missing, "no") if missing else (sparse, "a sparse")
            raise RuntimeError(
                f"{len(bad)} of the {len(members)} converted parameters of a param group, of shapes "
                f"{[tuple(p.shape) for p in bad[:4]]}, have {what} gradient at this step, so their weight decay differs from the "
                "others'. Give them a param group of their own, or do not convert them")
        step, frame = _step_of(group), self.frame(group)
        buffers = [self._buffer(p) is not None for p in members]
        if step.momentum and not any(buffers):
            frame = Frame(record["scale"])  # torch starts with a velocity of 0, whatever went before
        elif any(buffers) and not step.momentum or not all(buffers) and step.momentum and frame[1:] != (0.0, 1.0):
            raise ValueError("momentum went to 0, or came to some parameters later than to others: what torch's SGD does then to "
                             "the momentum buffers has no counterpart. Keep momentum above 0, or clear optimizer.state")
        step, (scale, kappa, q) = self._convert(step, frame, record["steps"])
        return group, members, step, record | {"steps": record["steps"] + 1, "scale": scale, "kappa": kappa, "q": q}

    def _check_scales(self, plans):
        """Weights that are scale-invariant only together must keep a common scale."""
        after = {id(group): record["scale"] for group, _, _, record in plans}
        for span in self._spans:
            groups = [self.optimizer.param_groups[i] for i in span]
            scales = [after.get(id(group), self.frame(group).scale) for group in groups]
            if not all(math.isclose(scale, scales[0], rel_tol=1e-9) for scale in scales):
                numbers = [{name: float(group[name]) for name in ("lr", "momentum", "weight_decay")} for group in groups]
                raise ValueError(f"param groups {span} have weights that are scale-invariant only together, but decay them in "
                                 f"different ways: {numbers}. Put these weights into one param group, or do not convert them")

    def _velocities(self, members):
        for p in members:
            if self._buffer(p) is None:
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return [self._buffer(p) for p in members]


def _listed(groups):
    """`groups` as lists of parameters, those of each list scale-invariant together as far as that was said."""
    if isinstance(groups, (str, torch.nn.Module)) or not isinstance(groups, Iterable):
        raise TypeError("groups must be report(model, loss_fn), Parameters, or param groups of the optimizer; got "
                        f"{type(groups).__name__}")
    lists = []
    for item in [groups] if isinstance(groups, (dict, torch.Tensor)) else groups:
        if isinstance(item, dict):  # a param group, which has one scale in any case
            item = item["params"]
        lists.append([item] if isinstance(item, torch.Tensor) else list(item))
    return lists


def _step_of(group):
    """The numbers of a param group as a `Step`."""
    reasons = {"dampening": "torch leaves the first gradient undamped; use a lower lr instead",
               "maximize": "minimise the negative loss instead",
               "differentiable": "the hooks do not record the step for autograd"}
    for name, reason in reasons.items():
        if group[name]:
            raise ValueError(f"a param group with {name}={group[name]} cannot be converted: {reason}")
    step = Step(float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]))
    return next(nesterov([step])) if group["nesterov"] else step


def _update(step, weights, grads, velocities):
    """What `optim.Step` says, for lists of tensors. Without momentum there are no velocities: they are the forces then."""
    if step.rescale != 1:
        torch._foreach_mul_(weights, step.rescale)
        grads = torch._foreach_div(grads, step.rescale)
    forces = torch._foreach_add(grads, weights, alpha=step.weight_decay) if step.weight_decay else grads
    if velocities:
        torch._foreach_mul_(velocities, step.momentum / step.rescale)
        torch._foreach_add_(velocities, forces)
    torch._foreach_add_(weights, velocities or forces, alpha=-step.lr)
    if step.lookahead:
        torch._foreach_add_(weights, forces, alpha=-step.lr * step.lookahead)
