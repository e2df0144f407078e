"""The optimisers of a converted run: scale-invariant parameters follow one schedule, the rest another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import tee
from typing import Any

from minibn import arguments, nn
from minibn.equivalence import optimizer_for
from minibn.equivalence.methods import method_of
from minibn.invariance import Symmetries, symmetries
from minibn.optim import Optimizer
from minibn.training.apart import check_apart

Make = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`. `str()` lists the converted parameters, and why the others are not.

    Attributes:
        optimizers: {"invariant": `Optimizer`, "rest": `Optimizer`} for `fit`. "rest" is missing if
            nothing is left for it.
        names: the converted parameters, in network order.
        reasons: {name of every other parameter: why it keeps the given schedule}.
        eps: the largest eps of the network's normalisations. Above 0 the conversion is approximate.
        groups: {name: parameters}: the sets of converted parameters that are each scale-invariant
            on their own, named after their first parameter. `fit(…, groups=…)` measures each of
            them.
    """

    optimizers: dict[str, Optimizer]
    names: tuple[str, ...]
    reasons: dict[str, str]
    eps: float = 0.0
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self):
        kept = [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        near = [f"approximate: the normalisations have eps of up to {self.eps:g}; with eps=0 it is exact"] if self.eps else []
        return "\n".join(["converted: " + ", ".join(self.names), "as they were:" if kept else "as they were: none", *kept, *near])


def convert(model: nn.Module, schedule: Iterable[Any], names: Iterable[str] | None = None, *,
            rest: Iterable[Any] | None = None, band: float | None = 2.0**32) -> Conversion:
    """Optimisers that train `model` as `schedule` would, without weight decay on the scale-invariant parameters.

    The scale-invariant parameters are trained without weight decay (`equivalence.converted_for`),
    all others as `schedule` says. If the normalisations have eps = 0, the network is the same at
    every step.

    Args:
        model: an `nn.Module`.
        schedule: iterable of step objects: `Step` for SGD, `AdamStep`, `LionStep` or `MuonStep`. It
            is read once, for both optimisers. Its first step, read now, says which optimiser it is.
        names: the parameters to convert. None: all groups of `invariance.symmetries(model)`; for
            Muon, which trains matrices and kernels only, all groups of matrices and kernels.
        rest: schedule of all other parameters, of any kind. None: `schedule`. With Muon give one
            for the vectors, such as `AdamStep`s.
        band: as in `equivalence.converted_for`.

    Returns:
        Conversion

    Raises:
        ValueError: `names` are not scale-invariant together (the message says why), or the network
            has no scale-invariant parameters; an optimiser cannot train its parameters; or `rest`
            is made from the same generator as `schedule`.

    Example:
        >>> import numpy as np
        >>> from minibn import models, schedules
        >>> from minibn.optim import AdamStep
        >>> net = models.mlp((8,), in_features=64, eps=0.0, rng=np.random.default_rng(0))
        >>> warm = schedules.warmup(10, schedules.cosine(1e-3, 100))
        >>> found = convert(net, schedules.like(AdamStep(1e-3, weight_decay=0.1), warm))
        >>> found.names, {name: type(one).__name__ for name, one in found.optimizers.items()}
        (('linear1.weight',), {'invariant': 'Reframed', 'rest': 'AdamW'})
    """
    method, steps = method_of(schedule)
    first, second = tee(steps)
    return assign(model, partial(method.converted, schedule=first, band=band),
                  partial(optimizer_for, schedule=second if rest is None or rest is schedule else rest),
                  _chosen(model, method, names))


def split(model: nn.Module, invariant: Iterable[Any], rest: Iterable[Any] | None,
          names: Iterable[str] | None = None) -> Conversion:
    """One optimiser for the scale-invariant parameters of `model` and one for all others.

    Args:
        model: an `nn.Module`.
        invariant: schedule of the scale-invariant parameters, of any optimiser's step objects.
        rest: schedule of all other parameters. None: they get no optimiser and keep their values.
        names: the parameters that follow `invariant`. None: as in `convert`.

    Returns:
        Conversion

    Raises:
        ValueError: as in `convert`.
    """
    method, steps = method_of(invariant)
    if rest is invariant:
        steps, rest = tee(steps)
    return assign(model, partial(method.optimizer, schedule=steps),
                  None if rest is None else partial(optimizer_for, schedule=rest), _chosen(model, method, names))


def _chosen(model, method, names):
    """`names`; if there are none, for a method that trains matrices only, all groups of matrices."""
    if names is not None or not method.others:
        return names
    parameters = dict(model.named_parameters())
    groups = [group for group in symmetries(model).groups if all(len(parameters[name].data.shape) > 1 for name in group)]
    return [name for group in groups for name in group]


def assign(model: nn.Module, invariant: Make, rest: Make | None, names: Iterable[str] | None = None) -> Conversion:
    """Like `split`, but with functions in place of the schedules. Each makes the optimiser from a list of parameters."""
    found = symmetries(model)
    if names is not None:
        names = list(arguments.iterable("names", names, "a list of names of parameters, such as ['linear1.weight']"))
        if not names:
            raise ValueError("names is empty; give the names of the parameters to convert, or None for all that can be")
    chosen = {name for group in found.groups for name in group} if names is None else set(names)
    if not chosen or not found.is_scale_invariant(chosen):
        listed = sorted(chosen, key=found.names.index)
        why = "; ".join(found.explain(name) for name in listed) or "the network has no scale-invariant parameters"
        raise ValueError(f"weight decay cannot be removed from {listed}, which are not scale-invariant together: {why}")
    parameters = dict(model.named_parameters())
    converted = [name for name in parameters if name in chosen]
    others = [name for name in parameters if name not in chosen]
    optimizers = {"invariant": invariant([parameters[name] for name in converted])}
    if others and rest is not None:
        optimizers["rest"] = rest([parameters[name] for name in others])
    check_apart(optimizers)
    finest = {name for group in found.groups for name in group}
    reasons = {name: "not among those to convert" if name in finest else found.explain(name) for name in others}
    return Conversion(optimizers, tuple(converted), reasons, max(found.eps.values(), default=0.0), _groups(found, converted))


def _groups(found: Symmetries, names: list[str]) -> dict[str, tuple[str, ...]]:
    """The finest groups within `names`; what is left over is invariant together, and one more group."""
    groups = [group for group in found.groups if set(group) <= set(names)]
    inside = {name for group in groups for name in group}
    left = tuple(name for name in names if name not in inside)
    return {group[0]: group for group in [*groups, *([left] if left else [])]}
