"""BatchNorm's running averages, kept in step with weights that a conversion makes larger.

The *script's* weights and averages are those of the run with weight decay, the *held* ones those
that the model holds. The mean of a convolution's output is proportional to its weights, and the
variance to their square. So each entry of a running average has a degree k in the scale of each
converted set. If the script's weights are P times the held ones, the script's average is P**k times
the held one. After a step from P to P' the held average is multiplied by (P/P')**k, and evaluation
agrees with the script's at every step. The degrees are measured, entry by entry.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from minibn.pytorch.loss import Loss
from minibn.pytorch.warned import warn

Groups = Sequence[Sequence[str]]
Degrees = dict[str, list[tuple[int, torch.Tensor]]]  # {buffer: [(number of a set, degree of each entry in its scale)]}
FIT = 1e-6
TOGETHER = 3  # sets whose degrees are measured in one pass: 2**16 times a rounding error is still next to nothing


class Carried(NamedTuple):
    """What can be converted together with the running averages.

    Attributes:
        sets: as `groups`, without norms' γ and β whose conversion no running average could follow;
            a bias before BatchNorm stands in the set of its convolution, since the average is a sum
            of both.
        degrees: {buffer: [(number of the set, degree of each entry)]}.
        left_out: the groups that are not in `sets`.
        unfit: buffers that follow no power of the scales.
        evaluation: relative change of the loss in evaluation mode when the sets are rescaled and the
            averages carried along. Above `FIT`, the model keeps something of its batches that is no
            buffer. None if the loss cannot be computed in evaluation mode.
    """

    sets: list[tuple[str, ...]]
    degrees: Degrees
    left_out: list[tuple[str, ...]]
    unfit: list[str]
    evaluation: float | None


def carried(loss: Loss, groups: Groups, affine: Callable[[Sequence[str]], bool], cancelled: set[str]) -> Carried:
    """Measure the degrees at the point where `loss` stands, and choose what to convert.

    Args:
        loss: of the model.
        groups: the scale-invariant sets.
        affine: whether a group is a norm's γ and β.
        cancelled: biases that BatchNorm takes out with the mean.
    """
    all_sets = [tuple(group) for group in groups]
    loss.averages = _moved(loss, all_sets)
    idle = {i for i, names in enumerate(all_sets) if cancelled.issuperset(names)}
    touching = _touching(loss, all_sets, loss.averages) if idle else {}
    matrices = {_layer(name) for name, p in loss.parameters.items() if p.ndim > 1}
    norms = {i for i, names in enumerate(all_sets)  # γ, or a β that a later norm takes out
             if affine(names) or i in idle and not matrices & set(map(_layer, names))}

    def of_no_layer_of(owners: list[int], reach: set[int]) -> set[int]:
        layers = {_layer(name) for i in owners for name in all_sets[i]}
        return {i for i in reach if layers and not layers & set(map(_layer, all_sets[i]))}

    def of_other_layers(reach: set[int]) -> set[int]:  # than those whose bias is in reach
        return of_no_layer_of(sorted(reach & idle), reach)

    def of_earlier_layers(reach: set[int]) -> set[int]:  # W₁ and b₁ of W₂ (W₁ x + b₁) + b₂, which has three scales
        return of_no_layer_of(sorted(reach & idle)[-1:], reach)

    def fitted() -> tuple[list[tuple[str, ...]], Degrees, list[str]]:  # without the sets in `left`
        sets = _united(all_sets, sums, left)
        return sets, *_degrees(loss, sets)

    sums = {name: reach for name, reach in touching.items() if reach & idle}  # of what a layer makes of its input, and its bias
    left = {i for reach in sums.values() for i in reach if affine(all_sets[i])}
    sets, degrees, unfit = fitted()
    for spoiling in (norms.intersection, of_other_layers, of_earlier_layers):  # a bias goes with its own layer
        if unfit:
            touching = touching or _touching(loss, all_sets, loss.averages)
            left |= {i for name in unfit for i in spoiling(touching[name] - left)}
            sums |= {name: touching[name] for name in unfit}
            sets, degrees, unfit = fitted()
    evaluation = _evaluation(loss, sets, degrees, range(len(sets)))
    if evaluation and evaluation > FIT:  # an average lags behind a shift that only the batch's own mean takes out
        bad = [set(names) for k, names in enumerate(sets) if (_evaluation(loss, sets, degrees, [k]) or 0.0) > FIT]
        left |= {i for i in norms if any(names.issuperset(all_sets[i]) for names in bad)}
        sets, degrees, unfit = fitted()
        evaluation = _evaluation(loss, sets, degrees, range(len(sets)))
    return Carried(sets, degrees, [all_sets[i] for i in sorted(left)], unfit, evaluation)


def _layer(name):
    """The module that a parameter belongs to."""
    return name.rpartition(".")[0]


def _moved(loss, sets):
    """The buffers that a forward pass changes, and by other amounts if the sets are multiplied by numbers of their own."""
    loss.averages = loss.changed()
    base, after = loss.running(), _at(loss, sets, _random_exponents(sets), loss.running)
    return [name for name in base if not torch.allclose(after[name], base[name], rtol=FIT, atol=1e-12)]


def _degrees(loss, sets):
    """(degrees, buffers that have none)."""
    rest, base = _rest(loss)
    degrees: Degrees = {name: [] for name in base}
    for start in range(0, len(sets), TOGETHER):  # the digits to the base 4 of one exponent are the degrees in TOGETHER scales
        part = range(start, min(start + TOGETHER, len(sets)))
        exponents = np.zeros(len(sets))
        exponents[list(part)] = [4.0 ** (i - start) for i in part]
        after = _at(loss, sets, exponents, loss.running)
        for name, statistic in base.items():
            power = torch.nan_to_num(torch.log2((after[name] - rest[name]) / statistic), 0.0, 0.0, 0.0).round()
            for i in part:
                digit = power.div(4.0 ** (i - start), rounding_mode="floor").remainder(4)
                if digit.any():
                    degrees[name].append((i, _filled(digit, statistic)))
    return degrees, _misfits(loss, sets, rest, base, degrees)


def _rest(loss):
    """(what a running average keeps of its old value, what it takes in of the batch's statistic), each by buffer.

    A running average is linear: (1 - m) old + m new. Twice the old value tells the two apart.
    """
    after, twice = loss.running(), loss.running(2.0)
    rest = {name: twice[name] - after[name] for name in after}
    return rest, {name: after[name] - rest[name] for name in after}


def _misfits(loss, sets, rest, base, degrees):
    """Buffers that do not move as their degrees say, when each set is multiplied by a number of its own."""
    exponents = _random_exponents(sets)
    after, bad = _at(loss, sets, exponents, loss.running), []
    factors = _factors(degrees, exponents)
    for name, statistic in base.items():
        gap = after[name] - rest[name] - statistic * factors.get(name, 1.0)
        if not float(gap.abs().max()) <= FIT * float(after[name].abs().max()) + 1e-300:  # NaN is a misfit, too
            bad.append(name)
    return bad


def _evaluation(loss, sets, degrees, chosen):
    """See `Carried.evaluation`; only the sets with these numbers are rescaled."""
    exponents = _random_exponents(sets) * np.isin(np.arange(len(sets)), list(chosen))
    try:
        before = loss.evaluated({})
        after = _at(loss, sets, exponents, lambda: loss.evaluated(_factors(degrees, exponents)))
    except Exception:  # the script's own code, which may not be made for this mode
        return None
    return abs(after - before) / max(abs(before), 1e-300)


def _random_exponents(sets):
    """All different, so that no two sets change alike."""
    return np.random.default_rng(0).uniform(0.5, 3, len(sets))


def _factors(degrees, exponents):
    """{buffer: what to multiply it by}, where each set has been multiplied by 2**exponent."""
    return {name: 2 ** sum(k * exponents[i] for i, k in parts) for name, parts in degrees.items() if parts}


def _at(loss, sets, exponents, function):
    """`function()` with each set multiplied by 2**exponent."""
    factors = {name: 2.0**e for group, e in zip(sets, exponents, strict=True) for name in group if e}
    loss.scale(factors)
    try:
        return function()
    finally:
        loss.scale({name: 1 / factor for name, factor in factors.items()})


def _filled(degree, statistic):
    """Entries without a statistic on this batch (dead channels) get the degree of the others, if these have one."""
    known = degree[degree != 0].unique()
    return torch.where(statistic == 0, known[0], degree) if len(known) == 1 else degree


def _touching(loss, sets, buffers):
    """{buffer: numbers of the sets that it depends on}."""
    base = loss.running()
    after = [_at(loss, sets, np.eye(len(sets))[i], loss.running) for i in range(len(sets))]
    return {name: {i for i, a in enumerate(after) if not torch.allclose(a[name], base[name], rtol=FIT, atol=1e-12)}
            for name in buffers}


def _united(sets, touching, left):
    """The sets but for those in `left`; those that one buffer depends on become one set."""
    home = {i: {i} for i in range(len(sets)) if i not in left}
    for reach in touching.values():
        together = set().union(*(home[i] for i in reach if i in home))
        for i in together:
            home[i] = together
    united = {min(together): together for together in home.values()}
    return [tuple(name for i in sorted(together) for name in sets[i]) for together in united.values()]


class Averages:
    """The running averages of a model, to be moved along with the scales of the converted sets.

    Buffers are looked up in the model each time, since a module may replace them, and a script a
    module.

    Args:
        model: which they belong to.
        degrees: as in `Carried`.
    """

    def __init__(self, model: torch.nn.Module, degrees: Degrees) -> None:
        self.model, self.degrees = model, degrees
        self.entries = {name: [(i, _plain(k)) for i, k in parts] for name, parts in degrees.items()}
        self._norms = {_layer(name) for name in degrees}
        self._batches: dict[str, int] = {}  # {module: how many batches its averages are of}

    def forget(self) -> None:
        """The averages are others from now on."""
        self._batches = {}

    def check(self) -> None:
        """Warn if BatchNorm counts fewer batches than before. Only on the CPU: a GPU would have to be waited for."""
        for name in self._norms:
            count = self.model.get_submodule(name)._buffers.get("num_batches_tracked")
            if count is not None and count.device.type == "cpu":
                if int(count) < self._batches.get(name, 0):
                    warn(f"the running averages of {name} were reset between steps. The model holds those of the "
                         "converted weights: unless all of them were computed again (update_bn), evaluation is wrong "
                         "for a while. Reset them inside `with handle.original():`")
                self._batches[name] = int(count)

    @torch.no_grad()
    def multiply(self, factors: Sequence[float]) -> None:
        """Multiply each entry by the product of factor**degree; `factors` has one number per set."""
        if all(f == 1 for f in factors):
            return
        for buffer, parts in zip(self.buffers, self.entries.values(), strict=True):
            for i, degree in parts:
                if factors[i] != 1:
                    buffer.mul_(factors[i] ** degree.to(buffer.device, buffer.dtype))

    @property
    def buffers(self) -> list[torch.Tensor]:
        """
        Raises:
            RuntimeError: one is not in the model any more.
        """
        try:
            return [self.model.get_buffer(name) for name in self.entries]
        except AttributeError as error:
            raise RuntimeError(f"a running average is not in the model any more ({error}): call handle.remove() before such a "
                               "change, and report again after it") from error


def _plain(degree):
    """One number in place of many equal ones."""
    return degree.flatten()[0] if bool((degree == degree.flatten()[0]).all()) else degree
