"""From a report, or from parameters, to the sets that a conversion works on, and whether a set's members are decayed alike."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from minibn.pytorch.conversion import Rule
from minibn.pytorch.l2 import L2
from minibn.pytorch.parts import Part, Set
from minibn.pytorch.reporting import Report

Optimizer = torch.optim.Optimizer


def sets_of(optimizers: Sequence[Optimizer], found: Any, with_averages: bool = False) -> list[Set]:
    """The sets of a `Report`, or of Parameters, lists of Parameters that belong together, or param groups.

    Raises:
        TypeError: `found` is none of these.
        ValueError: a parameter is not in the optimizers, or there are none.
    """
    named: list[tuple[Any, list[torch.Tensor]]]
    free: set[torch.Tensor]
    if isinstance(found, Report):
        own: dict[str, torch.Tensor] = dict(found.model.named_parameters())
        named = [(names, [own[name] for name in names]) for names in found.sets(with_averages)]
        frozen = [name for names, _ in named for name in names if not own[name].requires_grad]
        if frozen:
            raise ValueError(f"{frozen[:4]} do not require gradients any more, as they did for the report: make a new report")
        free = {own[name] for name in found.cancelled}
    else:
        named = [(i, [p for p in group if p.requires_grad]) for i, group in enumerate(listed(found))]
        free = set()
    home = {p: (optimizer, i, place) for optimizer in optimizers for i, group in enumerate(optimizer.param_groups)
            for place, p in enumerate(group["params"])}
    counts = Counter(p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    twice = [tuple(p.shape) for _, members in named for p in members if counts[p] > 1]
    if twice:
        raise ValueError(f"{len(twice)} of the parameters, of shapes {twice[:4]}, are in two of these optimizers, or twice in "
                         "one: each would decay them. Give each parameter to one of them")
    unknown = [tuple(p.shape) for _, members in named for p in members if p not in home]
    if unknown:
        raise ValueError(f"{len(unknown)} of the parameters are not in the optimizer, of shapes {unknown[:4]}; give "
                         "parameters of the model that this optimizer trains (all optimizers in a list, if there are "
                         "several)")
    sets = [Set(name, _parts(members, home), free & set(members)) for name, members in named if members]
    if not sets:
        raise ValueError(f"there is nothing to convert: {_why_none(found)}")
    return sets


def _why_none(found):
    if not isinstance(found, Report):
        return "no parameters were given that require gradients"
    unknown = [f"without effect on the batch of the report: {', '.join(found.unknown[:4])}"] if found.unknown else []
    reasons = [f"{', '.join(names[:4])}: {reason}" for names, reason in list(found.refused.items())[:4]]
    return "; ".join(["the report found no scale-invariant weights", *unknown, *reasons, *found.hints[:4]]) + (
        ". A model without normalisation has none. Print the report for the whole table")


def listed(groups: Any) -> list[list[torch.Tensor]]:
    """`groups` as lists of parameters, those of each list scale-invariant together as far as that was said."""
    lists = []
    for item in _items(groups):
        members = item["params"] if isinstance(item, dict) else item  # of a param group
        lists.append(_items(members))
        for p in lists[-1]:
            if not isinstance(p, torch.Tensor):
                raise _unknown(p)
    return lists


def _items(groups):
    """A list of them; a single Parameter or param group is a list of one."""
    if isinstance(groups, (dict, torch.Tensor)):
        return [groups]
    if isinstance(groups, (str, torch.nn.Module)) or not isinstance(groups, Iterable):
        raise _unknown(groups)
    return list(groups)


def _unknown(given):
    name = "; for names, make a report and give found.of(model)" if isinstance(given, str) else ""
    return TypeError("groups must be report(model, loss_fn), Parameters, or param groups of the optimizer; got "
                     f"{type(given).__name__}{name}")


def decays(s: Set, rules: Mapping[Optimizer, Rule]) -> list[float]:
    """lr x weight decay of each part, by which its weights shrink in a step. Decay of biases without effect does not count."""
    return [rules[part.optimizer].delta(part.group, part.steps) for part in _counting(s)]


def is_mixed(s: Set, rules: Mapping[Optimizer, Rule]) -> bool:
    """Whether the members are decayed in different ways, now or when lr is not 0 any more."""
    parts = _counting(s)
    if len(parts) < 2:
        return False
    deltas = decays(s, rules)
    alike = math.isclose(min(deltas), max(deltas), rel_tol=1e-9)
    decay = {float(part.group["weight_decay"]) for part in parts}
    kinds = {(float(part.group["momentum"]), part.group["nesterov"], float(part.group["dampening"]))
             if isinstance(rules[part.optimizer], L2) else None for part in parts}
    return not alike or len(decay) > 1 and max(deltas) == 0 or len(kinds) > 1 and max(decay) > 0


def _counting(s):
    return [part for part in s.parts if not set(part.members) <= s.free] or s.parts[:1]


def _parts(members, home):
    found: dict = {}
    for p in members:
        optimizer, i, place = home[p]
        found.setdefault((id(optimizer), i), Part(optimizer, i, [], []))
        part = found[id(optimizer), i]
        part.places.append(place)
        part.members.append(p)
    return list(found.values())
