"""How far the measured symmetries reach: over the whole range of scales that a conversion uses, and with the model's own eps.

`measure` uses derivatives, so it sees only the neighbourhood of a point. A convolution before
`ReLU6` and BatchNorm looks scale-invariant there as long as no activation reaches 6. With larger
weights it is not.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch

from minibn.pytorch.loss import Loss, inner, size

RANGE = 8  # weights are multiplied by up to 2**8 and 2**-8: `band`
AWAY = 2.0**-16  # what makes biases that cancel so small that they leave next to no rounding errors
EXACT = 1e-8  # a gap
NOISE = 1e-9  # of the largest product: what rounding leaves of a bias that cancels, at 2**8 times its size
APPROXIMATE = 0.1  # a gap above this one is no approximation any more
Groups = Sequence[Sequence[str]]


class Gaps(NamedTuple):
    """What the model's own eps does; all are 0, up to rounding, where a conversion is exact.

    Attributes:
        groups: for each, `|dL/d log c| / (|∂L/∂w| |w|)`: the change of the loss when its weights w
            are multiplied by c. For biases that cancel, whose ∂L/∂w is rounding alone, it is
            compared with the largest `|∂L/∂w| |w|`. Where eps is above a tenth of a normalisation's variance,
            `|2 ∇L(2w) - ∇L(w)| / |∇L(w)|`, if that is larger.
        value: `|L(2w) - L(w)| / |L(w)|`, with all groups doubled.
        gradient: `|2 ∇L(2w) - ∇L(w)| / |∇L(w)|`, with all groups doubled.
    """

    groups: list[float]
    value: float
    gradient: float


def holding(loss: Loss, groups: Groups, cancelled: Collection[str]) -> list[bool]:
    """For each group, whether multiplying it by c leaves the loss as it is for c from 2**-8 to 2**8.

    Args:
        cancelled: biases whose gradient is rounding alone. They are tested by the loss, and while
            nothing else is moved: a norm cannot take a bias out that is 2**16 times as large as the
            rest. For the same reason they are next to 0 while the derivatives of others are looked at.
    """
    idle = np.array([set(group) <= set(cancelled) for group in groups], bool)
    largest = _largest(loss)
    good = _holding(loss, groups, ~idle, cancelled, largest)
    alone = np.zeros(len(groups), bool)
    for i in np.flatnonzero(~good & ~idle):  # moving another group may have spoilt its test
        alone |= _holding(loss, groups, np.arange(len(groups)) == i, cancelled, largest)
    if alone.any():
        good = _holding(loss, groups, good | alone, cancelled, largest)
    return (good | _constant_ones(loss, groups, idle)).tolist()


def _holding(loss, groups, chosen, cancelled, largest):
    """Which of the chosen groups hold, while these are moved together."""
    good = chosen
    loss.scale(dict.fromkeys(cancelled, AWAY))
    for exponents in _exponents(np.random.default_rng(0), len(groups)):
        if good.any():
            good = good & _flat(loss, groups, exponents * chosen, largest)
    loss.scale(dict.fromkeys(cancelled, 1 / AWAY))
    return _constant_ones(loss, groups, good)


def _constant_ones(loss, groups, good):
    """Which of the good groups leave the loss as it is, while these are moved together."""
    rng = np.random.default_rng(1)
    while good.any() and not _constant(loss, groups, good, rng):  # a jump between the places that were looked at
        alone = np.array([not g or _constant(loss, groups, np.arange(len(groups)) == i, rng) for i, g in enumerate(good)])
        good = good & alone if not alone[good].all() else np.zeros(len(groups), bool)
    return good


def own_gaps(loss: Loss, groups: Groups, cancelled: Collection[str]) -> Gaps:
    """The gaps at the model's own weights, with its own eps."""
    members = [name for group in groups for name in group]
    loss.tiny = False
    loss.reset()
    value, gradients = loss.gradients(members)
    inners, sizes = _products(loss, groups, gradients)
    largest = _largest(loss)
    least = [largest if set(group) <= set(cancelled) else EXACT * largest for group in groups]
    gaps = [abs(t) / max(s, low) if s else 0.0 for t, s, low in zip(inners, sizes, least, strict=True)]
    loss.scale(dict.fromkeys(members, 2.0))
    doubled, after = loss.gradients(members)
    loss.scale(dict.fromkeys(members, 0.5))
    top = _norm(gradients.values())
    heavy = loss.share > APPROXIMATE  # else a change is that of a network that magnifies everything, as with few images
    for i, group in enumerate(groups if heavy else ()):  # a set whose gradient changes: by its own scale, or that of others?
        if _change(gradients, after, group, top) > APPROXIMATE:
            loss.scale(dict.fromkeys(group, 2.0))
            gaps[i] = max(gaps[i], _change(gradients, loss.gradients(group)[1], group, top))
            loss.scale(dict.fromkeys(group, 0.5))
    loss.tiny = True
    return Gaps(gaps, abs(doubled - value) / max(abs(value), 1e-300), _change(gradients, after, members, top))


def _change(before, after, names, top):
    """`|2 ∇L(2w) - ∇L(w)| / |∇L(w)|` of some weights; gradients that only rounding left over do not count."""
    names = [n for n in names if n in before and n in after]
    return _norm(2 * after[n] - before[n] for n in names) / max(_norm(before[n] for n in names), EXACT * top, 1e-300)


def _exponents(rng, count):
    """Vectors of exponents between -8 and 8, each followed by its opposite; the first with ±8 alone."""
    for sizes in (np.full(count, RANGE), rng.integers(1, RANGE, count), rng.integers(1, RANGE, count)):
        signed = rng.choice([-1, 1], count) * sizes
        yield from (signed, -signed)


def _moved(loss, groups, exponents):
    loss.scale({name: 2.0 ** float(e) for group, e in zip(groups, exponents, strict=True) for name in group})


def _largest(loss):
    """The largest |∂L/∂w| |w| of a parameter, be it in a group or not: what rounding errors are compared with."""
    _, gradients = loss.gradients(loss.parameters)
    return max(size(g, loss.parameters[name]) for name, g in gradients.items())


def _flat(loss, groups, exponents, largest):
    """For each group, whether its derivative is 0 where the groups are multiplied by 2**exponents."""
    _moved(loss, groups, exponents)
    _, gradients = loss.gradients([name for group in groups for name in group])
    inners, sizes = _products(loss, groups, gradients)
    _moved(loss, groups, -exponents)
    return np.array([abs(t) <= EXACT * s + NOISE * largest for t, s in zip(inners, sizes, strict=True)], bool)


def _constant(loss, groups, chosen, rng):
    """Whether the loss is the same wherever the chosen groups are scaled to."""
    with torch.no_grad():
        value = loss.value().item()
        for exponents in _exponents(rng, len(groups)):
            _moved(loss, groups, exponents * chosen)
            gap = abs(loss.value().item() - value)
            _moved(loss, groups, -exponents * chosen)
            if gap > EXACT * abs(value):
                return False
    return True


def _products(loss, groups, gradients):
    """(<∂L/∂w, w>, |∂L/∂w| |w|) of each group."""
    each = {n: (inner(g, loss.parameters[n]), size(g, loss.parameters[n])) for n, g in gradients.items()}
    found = [[each.get(n, (0.0, 0.0)) for n in group] for group in groups]
    return [sum(t for t, _ in group) for group in found], [sum(s for _, s in group) for group in found]


def _norm(tensors):
    return float(np.sqrt(sum(float(torch.linalg.vector_norm(t)) ** 2 for t in tensors)))
