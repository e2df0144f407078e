"""Whether an optimizer of an unknown class can be converted: tried on a toy problem.

A clone of the optimizer trains three small tensors of a scale-invariant toy loss, two of them
converted, with decay so strong that the weights shrink to a third in 12 steps, and lr and decay
change at each step. If the rule is right, the two runs agree up to rounding, which in float64 is
1e-9 of the angle by which the weights turn. Wrong rules are off by 4e-4 and more. The test is
repeated with weights that are `LARGE` times as large, since a conversion lets weights grow that
far: a clamp of their norm shows there. It is also repeated for each decayed param group and for
each number of dimensions that its tensors have, as many optimizers decay matrices only. Twelve
steps on a toy prove nothing about what an optimizer does later; `handle.check` tries the conversion
on the network itself.
"""

import copy
import math
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import torch

from minibn.pytorch.conversion import Conversion
from minibn.pytorch.parts import Part, Set
from minibn.pytorch.rules import Decoupled, Delta, Relative, alone, product
from minibn.pytorch.stand_in import Group

STEPS, SHRINK, SAME, LARGE = 12, 0.3, 1e-4, 2.0**8


class Candidate(NamedTuple):
    """A rule that is tried: its name, class, δ, and whether weights without gradient are decayed."""

    name: str
    rule: type[Decoupled]
    delta: Delta
    without_gradient: bool


CANDIDATES = [Candidate(name, rule, delta, without)
              for name, rule, delta in [("lr*wd", Decoupled, product), ("wd", Decoupled, alone), ("lr*wd", Relative, product)]
              for without in (False, True)]


class Toy(NamedTuple):
    """What a rule is tried on: the settings of a param group, the shape of its tensors, and the size of their numbers.

    Attributes:
        skipping: whether one tensor has no gradient at some steps. Some optimizers cannot take that.
        together: whether the two tensors are scale-invariant only together. An optimizer may look at
            the part of the gradient along the weights.
    """

    settings: Group
    shape: tuple[int, ...]
    size: float
    skipping: bool = True
    together: bool = False


def measured_rule(optimizer: torch.optim.Optimizer, form: str, weight_decay: float) -> Decoupled:
    """The first rule that converts a clone of `optimizer` exactly.

    Raises:
        TypeError: there is none, or no clone can be made.
    """
    name, gaps, failure = type(optimizer).__name__, dict[Candidate, list[float]](), None
    with torch.random.fork_rng(devices=[]):
        toys = [Toy(settings, shape, size) for settings, shape in _kinds(optimizer) for size in (1.0, LARGE)]
        if toys and not _takes(optimizer, toys[0]):
            toys = [toy._replace(skipping=False) for toy in toys]
        toys += [toy._replace(skipping=False, together=True) for toy in toys]
        for candidate in CANDIDATES:
            gaps[candidate] = []
            for toy in toys:
                try:
                    gap = _gap(optimizer, candidate, toy)
                except Exception as error:  # of the optimizer on a toy, or of a conversion that is not its own
                    gap, failure = math.inf, error
                gaps[candidate].append(gap)
            if max(gaps[candidate]) <= SAME:
                rule = candidate.rule(optimizer, form, weight_decay, candidate.delta)
                rule.steps_without_gradient = candidate.without_gradient
                return rule
    least = min(map(max, gaps.values()))
    fitting = max(gaps.values(), key=lambda each: sum(gap <= SAME for gap in each))
    good, bad = ({toy.shape for toy, gap in zip(toys, fitting, strict=True) if (gap <= SAME) == fits} for fits in (True, False))
    if good - bad:
        raise TypeError(f"{name} does not decay all tensors alike: on copies with tensors of the shapes {sorted(good - bad)} its "
                        f"decay can be removed, with {sorted(bad)} it cannot in that way. Give those that it does not decay a "
                        "param group of their own with weight_decay=0, and others an optimizer of their own")
    if least == math.inf:
        raise TypeError(f"whether the weight decay of {name} can be removed was tried on a copy with a small model, and "
                        f"that failed ({type(failure).__name__}: {failure}). Give decay=\"lr*wd\" or \"wd\" if you know by how "
                        "much it multiplies the weights in each step") from failure
    own = ", a subclass of torch.optim.SGD with a step of its own," if isinstance(optimizer, torch.optim.SGD) else ""
    raise TypeError(f"the weight decay of {name}{own} cannot be removed: on a copy with a small model the converted weights "
                    f"differ by {least:.0e}. It is not decoupled (added to the gradient, inside a trust ratio, masked), another "
                    "one in another param group, by another fraction than lr*wd or wd, or the update looks at the weights. If "
                    "you know the fraction, give decay= as a function of (param group, step)"
                    + (': decay="l2" if it calls the step of SGD and leaves the gradients as they are' if own else ""))


def _kinds(optimizer):
    """[(settings, shape)]: each decayed param group, with each number of dimensions that its tensors have.

    Groups that differ in lr and weight decay alone count as one. A tensor of one number has no
    direction, and is not tried.
    """
    kinds: dict[tuple[str, tuple[int, ...]], tuple[Group, tuple[int, ...]]] = {}
    for group in [group for group in optimizer.param_groups if float(group["weight_decay"])] or optimizer.param_groups:
        settings = {k: _copied(v) for k, v in group.items() if k not in ("params", "param_names", "minibn")}
        for dimensions in sorted({p.ndim for p in group["params"]} - {0}) or [2]:
            shapes = [(4, 3), (3, 4)] if dimensions == 2 else [(4, 3, *[2] * (dimensions - 2))[:dimensions]]
            others = repr(sorted((key, value) for key, value in settings.items() if key not in ("lr", "weight_decay")))
            kinds |= {(others, shape): (settings, shape) for shape in shapes}
    return list(kinds.values())


def _takes(optimizer, toy):
    """Whether the optimizer steps where one tensor has no gradient."""
    try:
        _train(optimizer, CANDIDATES[0], False, toy)
    except Exception:
        return False
    return True


def _gap(optimizer, candidate, toy):
    """The largest difference of the weights, with and without the conversion, relative to how far they turn.

    Turning is what an update does. A decay that only flips the sign of the weights does not count:
    it is not the one tried.
    """
    usual, converted = (_train(optimizer, candidate, convert, toy) for convert in (False, True))
    gap = max(float((a - b).norm() / a.norm()) for a, b in zip(usual, converted, strict=True))
    start, end = usual[0] / usual[0].norm(), usual[-3] / usual[-3].norm()  # of the first tensor
    turned = float((end - (end * start).sum() * start).norm())
    return gap / turned if turned else math.inf


def _train(optimizer, candidate, convert, toy):
    """The script's weights after each step. Where updates do not grow with the weights, lr does."""
    draw = torch.Generator().manual_seed(5)
    weights = [torch.nn.Parameter(toy.size * torch.randn(toy.shape, generator=draw, dtype=torch.float64)) for _ in range(3)]
    clone = clone_of(optimizer, [_copied(toy.settings) | {"params": weights}])
    group, lr = clone.param_groups[0], float(clone.param_groups[0]["lr"]) or 1e-3
    lr *= 1.0 if issubclass(candidate.rule, Relative) else toy.size
    top = SHRINK if candidate.delta is alone else SHRINK / lr
    handle = None
    if convert:
        rule = candidate.rule(clone, "removed", 0.0, candidate.delta)
        rule.steps_without_gradient = candidate.without_gradient
        places = [[0, 1]] if toy.together else [[0], [1]]
        sets = [Set(i, [Part(clone, 0, each, [weights[k] for k in each])], set()) for i, each in enumerate(places)]
        handle = Conversion({clone: rule}, sets, "removed", None, False, None)
    path = []
    for t in range(STEPS):
        factors = torch.rand(2, generator=draw, dtype=torch.float64) * 0.9 + 0.1
        group["lr"], group["weight_decay"] = lr * float(factors[0]), top * float(factors[1])
        noise = [torch.randn(toy.shape, generator=draw, dtype=torch.float64) for _ in weights]
        skip = toy.skipping and t % 5 == 3  # the second tensor has no gradient then

        def closure(noise=noise, skip=skip):
            for w in weights:
                w.grad = None
            inside = [weights[0] + weights[1], weights[2]] if toy.together else weights
            losses = [((w / w.norm() - a) ** 2 * (1 + a**2)).sum() for w, a in zip(inside, noise, strict=False)]
            loss = losses[0] + losses[2] if skip else sum(losses)
            loss.backward()
            return loss

        closure()
        torch.manual_seed(t)
        try:
            clone.step()
        except TypeError:  # it needs a closure
            clone.step(closure)
        path += [w.detach() * (handle.ratio(w) if handle and w in handle.parameters else 1) for w in weights]
    if handle:
        handle.remove()
    return path


def clone_of(optimizer: torch.optim.Optimizer, groups: list[Group]) -> torch.optim.Optimizer:
    """Class and attributes of `optimizer`, with other param groups; without its state and its hooks.

    It is not constructed: settings that are attributes, and not in the param groups, would be lost.

    Raises:
        ValueError: an attribute holds the model's parameters.
    """
    clone = object.__new__(type(optimizer))
    real = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, value in vars(optimizer).items():
        if key in ("state", "param_groups", "step", "_minibn"):
            continue
        if _reaches(value, real):
            raise ValueError(f"its attribute {key!r} holds the model's parameters")
        vars(clone)[key] = OrderedDict() if "hook" in key and isinstance(value, OrderedDict) else _copied(value)
    clone.state, clone.param_groups = defaultdict(dict), groups
    return clone


def _copied(value):
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock, a stream, a process group: shared with the original
        return value


def _reaches(value, real, depth=0):
    if isinstance(value, torch.Tensor):
        return id(value) in real
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set):
        return False
    return depth < 5 and any(_reaches(v, real, depth + 1) for v in value)
