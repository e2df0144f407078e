"""`Conversion`: the handle of converted optimizers, and what happens around each of their steps.

The gradient of each converted parameter is divided by P in a hook of that parameter, during backward. So `p.grad` is always
the script's own gradient, and clipping, accumulation, GradScaler and logs need nothing more. `rules` takes the step.
The present change of variables is kept in the param groups under the key "minibn", as plain
numbers, so `state_dict` saves it and `load_state_dict` brings it back.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from minibn.equivalence.streams import Frame
from minibn.pytorch import copies, order, premise, records, script_form, watch
from minibn.pytorch.averages import Averages
from minibn.pytorch.l2 import L2
from minibn.pytorch.parts import Set, check_common, is_live, merged, uneven
from minibn.pytorch.rules import Decoupled, Group, Move

if TYPE_CHECKING:
    from minibn.pytorch.check import Check

Rule = L2 | Decoupled


class Conversion:
    """The handle of converted optimizers. `remove_weight_decay` makes it.

    Attributes:
        optimizers: those that are converted.
        optimizer: the first of them.
        parameters: the set of all converted parameters.
        sets: the sets of weights that have a common scale.
        band: how far P may leave 1, or None.
    """

    def __init__(self, rules: dict[torch.optim.Optimizer, Rule], sets: Sequence[Set], form: str, band: float | None, moving: bool,
                 averages: Averages | None, found: Any = None, along: premise.Along | None = None) -> None:
        self.optimizers, self.sets, self.band = list(rules), list(sets), band
        self.optimizer = self.optimizers[0]
        self.rules, self.form, self.moving, self.averages, self.found = rules, form, moving, averages, found
        self.home = {p: s for s in sets for p in s.members}
        self.parameters, self.inside = set(self.home), False
        self._stepping: tuple[torch.optim.Optimizer, list[Move]] | None = None
        self._read()
        rule_of = {p: rules[part.optimizer] for s in sets for part in s.parts for p in part.members}
        self._gradients, self.weights = watch.Gradients(), watch.Weights(lambda p: rule_of[p].state(p))
        self._asleep, self._newcomers = premise.Asleep(found), premise.Newcomers(found)
        self._along = along or premise.Along({})
        self._hooks = [order.first_hook(p, partial(self._divided, s, p)) for p, s in self.home.items()]
        self._orders = {optimizer: order.Innermost(optimizer, self._before, self._after) for optimizer in self.optimizers}
        for optimizer in self.optimizers:
            self._hooks += [*self._orders[optimizer].hooks,
                            optimizer.register_state_dict_pre_hook(self._saving),
                            optimizer.register_load_state_dict_pre_hook(self._loading),
                            optimizer.register_load_state_dict_post_hook(self._loaded)]
            vars(optimizer)["_minibn"] = self  # not copied or pickled with the optimizer, as its hooks are not
        copies.remember(self.parameters, self)
        script_form.watch_averages()
        records.write(self.sets, self.form)

    def __repr__(self) -> str:
        scales = sorted({f"{frame.scale:.3g}" for s in self.sets for frame in [s.parts[0].frame]})
        return f"Conversion(weight decay {self.form}, {len(self.parameters)} parameters, P = {', '.join(scales[:6])})"

    def __getstate__(self) -> None:
        raise TypeError("the handle of a conversion belongs to live optimizers: it cannot be copied or pickled. Save the states "
                        "of model and optimizer, which hold P, and call remove_weight_decay again where they are loaded")

    # ---- where it stands ----

    @property
    def scales(self) -> dict[Any, float]:
        """P of each set. The key is the names of the parameters of the set, or its number if there are no names."""
        return {s.name: s.parts[0].frame.scale for s in self.sets}

    def frame(self, which: torch.Tensor | Group) -> Frame:
        """The change of variables at present: of a parameter, or of a param group's converted parameters.

        Raises:
            ValueError: those of this param group have different ones; ask for one parameter's.
        """
        if not isinstance(which, torch.Tensor | dict):
            raise TypeError(f"give a parameter or a param group of the optimizer, got {which!r} of type {type(which).__name__}")
        chosen = {which} if isinstance(which, torch.Tensor) else set(self.members(which))
        frames = {part.frame for s in self.sets for part in s.parts if chosen & set(part.members)}
        if len(frames) != 1:
            raise ValueError(f"there are {len(frames)} frames here; ask for that of one parameter in handle.parameters")
        return frames.pop()

    def members(self, group: Group) -> list[torch.Tensor]:
        """The converted parameters of a param group."""
        return [p for p in group["params"] if p in self.parameters]

    def ratio(self, which: torch.Tensor | Group) -> float:
        """How many times as large the script's own weights would be: of a parameter or param group, as for `frame`."""
        return self._ratio(self.frame(which))

    def _read(self) -> None:
        records.read(self.sets, self.form)
        for s in self.sets:
            s.ratio = self._ratio(s.parts[0].frame)

    def _ratio(self, frame):
        return frame.scale if self.form == "removed" else 1 / frame.scale

    def _saving(self, _):
        self._undo_broken_step()
        if not self.inside:  # again, since a script may put the numbers of its param groups back
            records.write(self.sets, self.form)

    def _loading(self, _, state):
        if self.inside and any(records.KEY in group for group in state["param_groups"]):
            raise RuntimeError("the state of a converted optimizer would be loaded inside `handle.original()`, where the "
                               "script's own weights are: load model and optimizer outside")

    def _loaded(self, _):
        before = {s: s.ratio for s in self.sets}
        self._read()
        if self.averages:
            self.averages.forget()
        self.weights.forget(p for s in self.sets if s.ratio != before[s] for p in s.members if p not in s.free)

    # ---- a step ----

    @torch._disable_dynamo
    def _divided(self, s, p, gradient):
        """The hook: from the gradient at the held weights to the script's own."""
        for each in self._orders.values():
            each.restore_before()
        if self.inside:
            self._gradients.fired(p)  # it is the script's own already
            return gradient
        if s.half_stepped:
            raise RuntimeError(f"the weights {s.title} are scale-invariant only together, but only some of their optimizers "
                               "have stepped. Call .step() of all after each backward pass (did GradScaler skip one?)")
        if self.weights.was_written(p):
            self.weights.check([p])
        self._gradients.fired(p)
        self._along.saw(s, p, gradient)
        self._asleep.saw(s, p, gradient)
        return gradient if s.ratio == 1 else gradient / s.ratio

    @torch._disable_dynamo
    def _before(self, optimizer, args, kwargs):
        """Prepare the step, as soon as the gradients are there: with a closure, after it."""
        self._orders[optimizer].restore_after()
        self._undo_broken_step()  # or, if the step of a subclass calls that of its parent, begin again here
        if self.inside:
            raise RuntimeError("a step inside `handle.original()`: the weights are in the script's own form there. Step "
                               "outside")
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._orders[optimizer].require()
            return self._begin(optimizer)

        def closure_and_step():
            with torch.enable_grad():
                loss = closure()
            self._begin(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": closure_and_step}

    @torch.no_grad()
    def _begin(self, optimizer):
        self._undo_broken_step()  # or one that calls its closure twice
        if bool(getattr(optimizer, "found_inf", None)):  # of GradScaler, if fused: torch's step will do nothing
            return
        mine = [s for s in self.sets if any(part.optimizer is optimizer for part in s.parts)]
        self.weights.check([p for s in mine for p in s.members])
        self.unscale_(optimizer)
        self._newcomers.check()
        if self.averages:
            self.averages.check()
        self._asleep.check(self.sets)
        self._along.check(mine)
        plans = {s: plan for s in mine if (plan := self._plan(s, optimizer))}
        for s, plan in plans.items():
            if not s.half_stepped:
                s.plans, s.waiting = plan, {part.optimizer for part in plan}
        moves = merged([move for s in plans for move in self._moves(s, optimizer)])
        self._stepping = optimizer, moves
        self.rules[optimizer].start(moves)

    def _plan(self, s, optimizer):
        """{part: Plan} of the set's next step, or None if this optimizer does not move it; no effect."""
        live = [part for part in s.parts if is_live(s, part, self.rules[part.optimizer])]
        if not any(part.optimizer is optimizer for part in live):
            return None
        if len(live) < len(s.parts) and not self.moving:
            raise uneven(s, [p for part in s.parts if part not in live for p in part.members], "no")
        plans = {part: self.rules[part.optimizer].plan(part.group, part.members, part.frame, part.steps)
                 for part in live if not s.half_stepped or part.optimizer is optimizer}
        if s.half_stepped and (optimizer not in s.waiting or any(plan != s.plans.get(part) for part, plan in plans.items())):
            raise RuntimeError(f"the optimizers of {s.title}, which are scale-invariant only together, do not take turns, or "
                               "lr or weight decay changed between their steps. Call .step() of each once after a backward "
                               "pass")
        if not self.moving:
            check_common(s, plans)
        return plans

    def _undo_broken_step(self):
        """If an exception ended the last step before `_after`, what `_begin` had done is undone."""
        if self._stepping:
            (optimizer, _), self._stepping = self._stepping, None
            for s in [s for s in self.sets if not s.half_stepped]:
                s.plans, s.waiting = {}, set()
            self.rules[optimizer].groups.undo()

    def _moves(self, s, optimizer):
        """What the rule of `optimizer` has to do for the set."""
        after = self._target(s)
        return [Move(part.group, part.members, plan, s.ratio, after, plan.leaves / after)
                for part, plan in s.plans.items() if part.optimizer is optimizer]

    def _target(self, s):
        """The set's ratio after the step: that of its most decayed members."""
        fixed = [plan.frame for part, plan in s.plans.items() if not set(part.members) <= s.free]
        ratios = list(map(self._ratio, fixed or [plan.frame for plan in s.plans.values()]))
        return min(ratios) if len(s.plans) == len(s.parts) else min(*ratios, s.ratio)

    @torch._disable_dynamo
    @torch.no_grad()
    def _after(self, optimizer, *_):
        self._orders[optimizer].restore_before()
        if self._stepping:
            self.rules[optimizer].finish(self._stepping[1])
            self._stepping = None
        done = [s for s in self.sets if optimizer in s.waiting]
        factors = [1.0] * len(self.sets)
        for s in done:
            s.waiting.discard(optimizer)
            if not s.waiting:
                factors[self.sets.index(s)] = self._commit(s)
        if self.averages:
            self.averages.multiply(factors)
        records.write(self.sets, self.form)
        self._gradients.stepped(p for group in optimizer.param_groups for p in self.members(group))
        self.weights.note([p for s in done for p in s.members])

    def _commit(self, s):
        """Make the step's frames those of the set, bring the weights back into the band; the factor by which they grew."""
        before, after = s.ratio, self._target(s)
        back = 1.0
        if self.band and not 1 / self.band <= after <= self.band:
            back = 2.0 ** (math.frexp(after)[1] - 1)
        s.ratio = after / back
        for part in s.parts:
            rule, plan = self.rules[part.optimizer], s.plans.get(part)
            if plan is None:  # it did not move: its held weights grow by what the common scale has shrunk
                rule.rescale(part.members, before / after)
            part.steps += plan is not None
            rule.rescale(part.members, back)
            frame = plan.frame if plan else part.frame
            part.frame = frame._replace(scale=s.ratio if self.form == "removed" else 1 / s.ratio)
        s.plans = {}
        return before / s.ratio

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Make p.grad the script's own gradient now, if backward did not pass through the hooks of the parameters.

        That is so for FSDP (fully_shard) and `torch.func`. Call it before gradients are clipped there; else the step does it.
        """
        for s in self.sets:
            for part in s.parts:
                if optimizer is None or part.optimizer is optimizer:
                    self._gradients.divide(part.members, s.ratio)

    # ---- the script's own form ----

    def original(self) -> AbstractContextManager[None]:
        """In `with handle.original():` the model has the script's own weights and running averages: for exports, averages, logs.

        What you write into the weights inside is kept. So load or re-initialise converted weights
        there.
        """
        return script_form.original(self)

    @torch.no_grad()
    def remove(self) -> None:
        """Turn weights, momentum and running averages back into those of the script, which then trains on without hooks."""
        if not any(vars(optimizer).get("_minibn") is self for optimizer in self.optimizers):
            return
        script_form.go_back(self)

    def averaged(self, model: torch.nn.Module, **options: Any) -> torch.optim.swa_utils.AveragedModel:
        """`torch.optim.swa_utils.AveragedModel(model, **options)`, of the script's own weights from the start."""
        return script_form.averaged(self, model, **options)

    def check(self, loss_fn: Callable[[torch.nn.Module], torch.Tensor], steps: int = 50) -> "Check":
        """Train copies for some steps: original, converted, and a control. See `minibn.pytorch.check`."""
        from minibn.pytorch.check import check

        return check(self, loss_fn, steps)
