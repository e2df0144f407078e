"""`Conversion`: the handle of converted optimizers, and what happens around each of their steps.

The gradient of each converted parameter is divided by P in a hook of that parameter, during backward. So `p.grad` is always
the script's own gradient, and clipping, accumulation, GradScaler and logs need nothing more. `rules` takes the step.
Where the change of variables stands is kept in the param groups under the key "minibn", as plain numbers, so `state_dict`
saves it and `load_state_dict` brings it back.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from minibn.equivalence.streams import Frame
from minibn.pytorch import watch
from minibn.pytorch.averages import Averages
from minibn.pytorch.rules import Decoupled, Group, L2, Move, Plan

KEY = "minibn"
Rule = L2 | Decoupled


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
        return self.optimizer.param_groups[self.index]


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
    def half_stepped(self) -> bool:
        return any(part.optimizer not in self.waiting for part in self.plans)

    @property
    def members(self) -> list[torch.Tensor]:
        return [p for part in self.parts for p in part.members]


class Conversion:
    """The handle of converted optimizers. `remove_weight_decay` makes it.

    Attributes:
        optimizers: those that are converted.
        optimizer: the first of them.
        parameters: the set of their converted parameters.
        sets: what has a common scale.
        band: how far P may leave 1, or None.
    """

    def __init__(self, rules: dict[torch.optim.Optimizer, Rule], sets: Sequence[Set], form: str, band: float | None, moving: bool,
                 averages: Averages | None, found: Any = None) -> None:
        self.optimizers, self.sets, self.band = list(rules), list(sets), band
        self.optimizer = self.optimizers[0]
        self.rules, self.form, self.moving, self._averages, self.found = rules, form, moving, averages, found
        self.home = {p: s for s in sets for p in s.members}
        self.parameters = set(self.home)
        self._inside, self._stepping = False, None
        self._read()
        self._gradients = watch.Gradients()
        self._weights = watch.Weights()
        self._asleep = watch.Asleep(found)
        self._hooks = [p.register_hook(partial(self._divided, s, p)) for p, s in self.home.items()]
        for optimizer in self.optimizers:
            self._hooks += [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after),
                            optimizer.register_load_state_dict_post_hook(self._loaded)]
            vars(optimizer)["_minibn"] = self  # not copied or pickled with the optimizer, as its hooks are not
        watch.remember(self.parameters)
        self._write()

    def __repr__(self) -> str:
        scales = sorted({f"{frame.scale:.3g}" for s in self.sets for frame in [s.parts[0].frame]})
        return f"Conversion(weight decay {self.form}, {len(self.parameters)} parameters, P = {', '.join(scales[:6])})"

    # ---- where it stands ----

    @property
    def scales(self) -> dict[Any, float]:
        """{set: P}, the set as names of parameters, or as its number where there are no names."""
        return {s.name: s.parts[0].frame.scale for s in self.sets}

    def members(self, group: Group) -> list[torch.Tensor]:
        """The converted parameters of a param group."""
        return [p for p in group["params"] if p in self.parameters]

    def ratio(self, which: torch.Tensor | Group) -> float:
        """How many times as large the weights would be in the script's own form: of a parameter, or of a param group's.

        Raises:
            ValueError: the converted parameters of this param group have different ratios; ask for one parameter.
        """
        ratios = {self.home[p].ratio for p in ([which] if isinstance(which, torch.Tensor) else self.members(which))}
        if len(ratios) != 1:
            raise ValueError(f"this param group has {len(ratios)} ratios: {sorted(ratios)[:4]}. Ask for one parameter's")
        return ratios.pop()

    def _read(self) -> None:
        """From the param groups: where a run that is gone on with stands. The identity if it was not converted."""
        for s in self.sets:
            for part in s.parts:
                record = part.group.get(KEY)
                number = [q for other in self.sets for q in other.parts if q.group is part.group].index(part)
                places = [q.places for other in self.sets for q in other.parts if q.group is part.group]
                if record is None:
                    part.frame, part.steps = Frame(), 0
                elif (record["form"], record["params"]) != (self.form, places):
                    raise ValueError(f"the optimizer's state is of a run with weight decay {record['form']} for parameters "
                                     f"{record['params']} of a param group; now it is to be {self.form} for {places}. Convert as "
                                     "in the run that was saved")
                else:
                    part.frame, part.steps = Frame(*(record[n][number] for n in Frame._fields)), record["steps"][number]
            s.ratio = self._ratio(s.parts[0].frame)

    def _write(self) -> None:
        groups: dict[int, list[Part]] = {}
        for s in self.sets:
            for part in s.parts:
                groups.setdefault(id(part.group), []).append(part)
        for parts in groups.values():
            numbers = {n: [getattr(part.frame, n) for part in parts] for n in Frame._fields}
            parts[0].group[KEY] = {"form": self.form, "params": [part.places for part in parts],
                                   "steps": [part.steps for part in parts], **numbers}

    def _ratio(self, frame):
        return frame.scale if self.form == "removed" else 1 / frame.scale

    def _loaded(self, _):
        self._read()
        self._weights.forget()

    # ---- a step ----

    def _divided(self, s, p, gradient):
        """The hook: from the gradient at the held weights to the script's own."""
        if self._inside:
            return gradient
        if s.half_stepped:
            raise RuntimeError(f"the weights {s.name} are scale-invariant only together, but only some of their optimizers have taken "
                               "a step. Call .step() of all of them after each backward pass (did GradScaler skip one?)")
        self._gradients.fired(p)
        return gradient if s.ratio == 1 else gradient / s.ratio

    @torch._disable_dynamo
    def _before(self, optimizer, args, kwargs):
        """Prepare the step, as soon as the gradients are there: with a closure, after it."""
        self._clear_broken_step()
        if self._inside:
            raise RuntimeError("a step inside `handle.original()`: the weights are in the script's own form there. Step outside")
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin(optimizer)
            return None

        def closure_and_step():
            with torch.enable_grad():
                loss = closure()
            self._begin(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": closure_and_step}

    @torch.no_grad()
    def _begin(self, optimizer):
        if bool(getattr(optimizer, "found_inf", None)):  # of GradScaler, if fused: torch's step will do nothing
            return
        mine = [s for s in self.sets if any(part.optimizer is optimizer for part in s.parts)]
        self._weights.check([p for s in mine for p in s.members])
        self.unscale_(optimizer)
        self._asleep.check(self.sets)
        plans = {s: plan for s in mine if (plan := self._plan(s, optimizer))}
        for s, plan in plans.items():
            if not s.half_stepped:
                s.plans, s.waiting = plan, {part.optimizer for part in plan}
        moves = _merged([move for s in plans for move in self._moves(s, optimizer)])
        self._stepping = optimizer, moves
        self.rules[optimizer].start(moves)

    def _plan(self, s, optimizer):
        """{part: Plan} of the set's next step, or None if this optimizer does not move it; no effect."""
        live = [part for part in s.parts if self._is_live(s, part)]
        if not any(part.optimizer is optimizer for part in live):
            return None
        if len(live) < len(s.parts) and not self.moving:
            raise _uneven(s, [p for part in s.parts if part not in live for p in part.members], "no")
        plans = {part: self.rules[part.optimizer].plan(part.group, part.members, part.frame, part.steps)
                 for part in live if not s.half_stepped or part.optimizer is optimizer}
        if s.half_stepped and (optimizer not in s.waiting or any(plan != s.plans.get(part) for part, plan in plans.items())):
            raise RuntimeError(f"the optimizers of {s.name}, which are scale-invariant only together, do not take turns, or lr or weight "
                               "decay changed between their steps. Call .step() of each once after a backward pass")
        self._check_common(s, plans)
        return plans

    def _is_live(self, s, part):
        """Whether the optimizer moves these weights in its next step."""
        if getattr(self.rules[part.optimizer], "steps_without_gradient", False):
            return True
        missing = [p for p in part.members if p.grad is None]
        sparse = [p for p in part.members if p.grad is not None and p.grad.is_sparse]
        if sparse or 0 < len(missing) < len(part.members):
            raise _uneven(s, sparse or missing, "a sparse" if sparse else "no")
        return not missing

    @torch.no_grad()
    def _clear_broken_step(self):
        """If an exception ended the last step, what the hooks had done is completed or undone."""
        if self._stepping:
            optimizer, moves = self._stepping
            if self.rules[optimizer].complete(moves):
                self._after(optimizer)
            else:
                self._stepping = None
                for s in self.sets:
                    if not s.half_stepped:
                        s.plans, s.waiting = {}, set()

    def _check_common(self, s, plans):
        scales = [plan.frame.scale for part, plan in plans.items() if not set(part.members) <= s.free]
        if not self.moving and scales and not math.isclose(min(scales), max(scales), rel_tol=1e-9):
            numbers = [{n: float(part.group[n]) for n in ("lr", "momentum", "weight_decay") if n in part.group} for part in plans]
            raise ValueError(f"the weights {s.name} are scale-invariant only together, but at this step they are decayed in different "
                             f"ways: {numbers}. Give them the same lr and weight decay, or convert with mixed=\"move\" or "
                             "mixed=\"skip\"")

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
        self._stepping = None
        self.rules[optimizer].finish()
        done = [s for s in self.sets if optimizer in s.waiting]
        factors = [1.0] * len(self.sets)
        for s in done:
            s.waiting.discard(optimizer)
            if not s.waiting:
                factors[self.sets.index(s)] = self._commit(s)
        if self._averages:
            self._averages.multiply(factors)
        self._write()
        self._gradients.stepped(p for group in optimizer.param_groups for p in self.members(group))
        self._weights.note([p for s in done for p in s.members])

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
        """Make p.grad the script's own gradient now, where backward did not come through the parameters.

        That is so for FSDP (fully_shard) and `torch.func`. There, call it before gradients are clipped; the step does it otherwise.
        """
        for s in self.sets:
            for part in s.parts:
                if optimizer is None or part.optimizer is optimizer:
                    self._gradients.divide(part.members, s.ratio)

    # ---- the script's own form ----

    @contextmanager
    def original(self) -> Iterator[None]:
        """`with handle.original():` the model has the script's own weights and running averages: for averaging, export, logs.

        What is written into the weights inside is kept: load or re-initialise converted weights here.
        """
        if self._inside or any(s.half_stepped for s in self.sets):
            raise RuntimeError("handle.original() inside itself, or between the steps of two optimizers")
        held = {p: p.detach().clone() for p in self.parameters}
        kept = [b.clone() for b in self._averages.buffers] if self._averages else []
        self._scaled(1)
        own = {p: p.detach().clone() for p in self.parameters}
        buffers = [b.clone() for b in self._averages.buffers] if self._averages else []
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            written = [p for p in self.parameters if not watch.same(p.detach(), own[p])]
            averaged = self._averages.buffers if self._averages else []
            same = [watch.same(b, own_b) for b, own_b in zip(averaged, buffers, strict=True)]
            self._scaled(-1)
            with torch.no_grad():
                for p in self.parameters - set(written):
                    p.copy_(held[p])  # not a bit is lost
                for b, old, unchanged in zip(averaged, kept, same, strict=True):
                    if unchanged:
                        b.copy_(old)
            self._weights.note(self.parameters)

    @torch.no_grad()
    def _scaled(self, sign):
        for s in self.sets:
            for p in s.members:
                p.mul_(s.ratio**sign)
        if self._averages:
            self._averages.multiply([s.ratio**sign for s in self.sets])

    @torch.no_grad()
    def remove(self) -> None:
        """Carry weights, momentum and running averages back to the script's own form, in which training goes on, without hooks."""
        if not any(vars(optimizer).get("_minibn") is self for optimizer in self.optimizers):
            return
        self._read()
        if self._averages:
            self._averages.multiply([s.ratio for s in self.sets])
        for s in self.sets:
            for part in s.parts:
                for p in part.members:
                    self.rules[part.optimizer].back(p, part.frame)
                part.group.pop(KEY, None)
        for hook in [*self._hooks, *self._asleep.hooks]:
            hook.remove()
        watch.forget(self.parameters)
        for optimizer in self.optimizers:
            del vars(optimizer)["_minibn"]

    def averaged(self, model: torch.nn.Module, **options: Any) -> torch.optim.swa_utils.AveragedModel:
        """`torch.optim.swa_utils.AveragedModel(model, **options)` of the script's own weights: exact SWA and EMA.

        A plain AveragedModel would weigh late weights more, since held weights grow.
        """
        handle = self

        class Averaged(torch.optim.swa_utils.AveragedModel):
            def update_parameters(self, model: torch.nn.Module) -> None:
                with handle.original():
                    super().update_parameters(model)

        with self.original():
            return Averaged(model, **options)

    def check(self, loss_fn, steps: int = 50):
        """Train copies for some steps: original, converted, and a control. See `check.Check`."""
        from minibn.pytorch.check import check

        return check(self, loss_fn, steps)


def _uneven(s, bad, what):
    return RuntimeError(
        f"{len(bad)} of the {len(s.members)} weights {s.name}, which are scale-invariant only together, of shapes "
        f"{[tuple(p.shape) for p in bad[:4]]}, have {what} gradient at this step, so their weight decay differs from the others'. "
        "Do not convert this set, or convert with mixed=\"move\"")


def _merged(moves):
    """Moves with equal numbers as one, so that torch handles their tensors together."""
    merged: dict = {}
    for move in moves:
        key = (id(move.group), move.plan, move.before, move.after, move.growth)
        merged.setdefault(key, move._replace(members=[])).members.extend(move.members)
    return list(merged.values())
