"""SGD with momentum and weight decay: `Step`, the numbers of one update, and the update itself in four lines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import frexp, inf
from typing import Any, ClassVar, TypeAlias

from minibn.backend import Array
from minibn.optim.base import ANY_NUMBER, FRACTION, NOT_NEGATIVE, Optimizer, StepNumbers


@dataclass(frozen=True, slots=True)
class Step(StepNumbers):
    """The numbers of one SGD update of weights w with gradient g and velocity v:

        w <- c w;   v <- v / c;   g <- g / c            c = rescale
        v <- v + k w                                    k = kick
        v <- γ v + g + λ w                              γ = momentum, λ = weight_decay
        w <- (1 - δ) w - η (v + ν (g + λ w))            η = lr, δ = shrink, ν = lookahead

    With the defaults this is PyTorch's `SGD(lr, momentum, weight_decay)`. `lookahead` and `shrink`
    give Nesterov's and quasi-hyperbolic momentum and decoupled weight decay: see
    `schedules.nesterov` and `schedules.decoupled`. An exact conversion needs `kick` and `rescale`:
    see `minibn.equivalence`.

    Args:
        lr: learning rate η, at least 0.
        momentum: γ, at least 0.
        weight_decay: λ, at least 0 (L2: a gradient of λ|w|²/2).
        kick: multiple of the weights that is added to the velocity first.
        rescale: c, a power of two, so that nothing here rounds. The given g belongs to the weights
            before rescaling. A scale-invariant loss has a gradient 1/c times as large at c w, so g
            is divided by c.
        lookahead: ν, above -1.
        shrink: δ, from 0 to below 1.

    Raises:
        ValueError: a number is outside these limits, infinite or NaN.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    kick: float = 0.0
    rescale: float = 1.0
    lookahead: float = 0.0
    shrink: float = 0.0

    degree: ClassVar[int] = 1
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "lr": NOT_NEGATIVE, "momentum": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE, "kick": ANY_NUMBER,
        "rescale": NOT_NEGATIVE, "lookahead": (-1, inf), "shrink": FRACTION}

    def __post_init__(self) -> None:
        StepNumbers.__post_init__(self)
        if self.rescale != 1 and frexp(self.rescale)[0] != 0.5:
            raise ValueError(f"Step needs a power of two as rescale; got rescale={self.rescale}")


Schedule: TypeAlias = Iterable[Step]


class _OpenStep(StepNumbers):
    """A `Step` whose numbers can still be set, since Python makes such objects much faster."""

    __slots__ = Step.__slots__


def step_of(lr: float, momentum: float, weight_decay: float, rescale: float, lookahead: float, shrink: float) -> Step:
    """`Step(lr, momentum, weight_decay, 0.0, rescale, lookahead, shrink)`, five times as fast.

    For the inner loops of the conversions, which make a Step from Python floats nearly always.
    Floats within `Step.limits` are stored as they are. Everything else goes to `Step`, which
    converts or refuses it.
    """
    if not (type(lr) is type(momentum) is type(weight_decay) is type(lookahead) is type(shrink) is float
            and 0.0 <= lr < inf and 0.0 <= momentum < inf and 0.0 <= weight_decay < inf and -1.0 < lookahead < inf
            and 0.0 <= shrink < 1.0 and rescale == 1.0):
        return Step(lr, momentum, weight_decay, 0.0, rescale, lookahead, shrink)
    step: Any = _OpenStep()
    step.lr = lr
    step.momentum = momentum
    step.weight_decay = weight_decay
    step.kick = 0.0
    step.rescale = 1.0
    step.lookahead = lookahead
    step.shrink = shrink
    step.__class__ = Step  # from here on frozen
    return step


def update(step: Step, w: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """What `Step` says, as code: (weights, velocity, gradient) -> (weights, velocity), for arrays of any library or floats."""
    w, v, g = step.rescale * w, v / step.rescale, g / step.rescale
    v = v + step.kick * w
    force = g + step.weight_decay * w
    v = step.momentum * v + force
    return (1 - step.shrink) * w - step.lr * (v + step.lookahead * force), v


class SGD(Optimizer[Step]):
    """Stochastic gradient descent with momentum, weight decay and whatever else a `Step` says.

    Arguments, attributes and errors are those of `Optimizer`; the schedule is an iterable of
    `Step`.

    Attributes:
        velocity: list of arrays, one per parameter.

    Example:
        >>> import numpy as np
        >>> from minibn import nn, schedules
        >>> w = nn.Parameter(np.array([1.0, 2.0]))
        >>> sgd = SGD([w], schedules.constant(0.1, weight_decay=0.5))
        >>> sgd.step().lr, w.data
        (0.1, array([0.95, 1.9 ]))
    """

    step_type = Step
    entries = ("velocity",)
    velocity: list[Array]

    def update(self, step: Step, weight: Array, gradient: Array, *state: Array) -> tuple[Array, Array]:
        """The function `update`, without the operations that change nothing at this step: equal to it for finite numbers."""
        w, g, (v,) = weight, gradient, state
        if step.rescale != 1:
            w, v, g = w * step.rescale, v / step.rescale, g / step.rescale
        if step.kick:
            v = v + step.kick * w
        force = g + step.weight_decay * w if step.weight_decay else g
        v = step.momentum * v + force
        direction = v + step.lookahead * force if step.lookahead else v
        return ((1 - step.shrink) * w if step.shrink else w) - step.lr * direction, v
