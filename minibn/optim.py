"""SGD, one Step at a time.

A *schedule* is any iterable of `Step`: a generator, a list, an `itertools.islice` of either. It need not know how long
training is, and a conversion (`minibn.equivalence`) is a generator that reads one schedule and yields another.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from math import frexp, inf
from typing import TYPE_CHECKING, Any, TypeAlias

from minibn import backend
from minibn.backend import array_namespace

if TYPE_CHECKING:
    from minibn.nn import Parameter


@dataclass(frozen=True, slots=True)
class Step:
    """The numbers of one SGD update of weights w with gradient g and velocity v:

        w <- c w;   v <- v / c;   g <- g / c            c = rescale
        v <- v + k w                                    k = kick
        v <- γ v + g + λ w                              γ = momentum, λ = weight_decay
        w <- (1 - δ) w - η (v + ν (g + λ w))            η = lr, δ = shrink, ν = lookahead

    With the defaults this is PyTorch's `SGD(lr, momentum, weight_decay)`. `lookahead` and `shrink` make Nesterov's and
    quasi-hyperbolic momentum and decoupled weight decay out of it: see `schedules.nesterov` and `schedules.decoupled`.
    `kick` and `rescale` are what an exact conversion needs: see `minibn.equivalence`.

    Args:
        lr: learning rate η, at least 0.
        momentum: γ, at least 0.
        weight_decay: λ, at least 0 (L2: a gradient of λ|w|²/2).
        kick: multiple of the weights that is added to the velocity first.
        rescale: power of two. `g` was taken at the weights before, and a scale-invariant loss has a gradient 1/c times
            as large at c w (the paper's lemma on scale invariance); for a power of two none of this rounds.
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

    def __post_init__(self) -> None:
        total = self.lr + self.momentum + self.weight_decay + self.kick + self.rescale + self.lookahead + self.shrink
        if type(total) is not float:  # NumPy's numbers would bring schedules, and weights, to their own precision
            for field in fields(self):
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        good = (0 <= self.lr < inf and 0 <= self.momentum < inf and 0 <= self.weight_decay < inf and -inf < self.kick < inf
                and (self.rescale == 1 or (0 < self.rescale < inf and frexp(self.rescale)[0] == 0.5))
                and -1 < self.lookahead < inf and 0 <= self.shrink < 1)  # NaN is in no range
        if not good:
            raise ValueError("a Step needs finite lr, momentum and weight_decay of at least 0, a finite kick, rescale a "
                             f"power of two, lookahead above -1 and 0 <= shrink < 1; got {self}")


Schedule: TypeAlias = Iterable[Step]


class SGD:
    """Stochastic gradient descent with momentum, weight decay and whatever else a `Step` says.

    Args:
        parameters: list of `nn.Parameter`, as from `module.parameters()`.
        schedule: iterable of `Step`; one is drawn for each update. Give each SGD a schedule of its own: a generator
            can be read only once.

    Example:
        >>> import numpy as np
        >>> from minibn import nn, schedules
        >>> w = nn.Parameter(np.array([1.0, 2.0]))
        >>> sgd = SGD([w], schedules.constant(0.1, weight_decay=0.5))
        >>> sgd.step().lr, w.data
        (0.1, array([0.95, 1.9 ]))

    Raises:
        ValueError: no parameters.
    """

    def __init__(self, parameters: Iterable["Parameter"], schedule: Schedule) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("SGD needs at least one parameter")
        self.velocity = [array_namespace(p.data).zeros_like(p.data) for p in self.parameters]
        self.schedule = iter(schedule)
        self.steps = 0
        self.last: Step | None = None  # the Step of the latest update

    def step(self) -> Step:
        """Update every parameter with the schedule's next `Step`, and return that.

        Raises:
            RuntimeError: the schedule has ended.
        """
        s = next(self.schedule, None)
        if s is None:
            raise RuntimeError(f"the schedule ended after {self.steps} steps; train for fewer steps or give SGD a longer one")
        for i, (parameter, v) in enumerate(zip(self.parameters, self.velocity, strict=True)):
            w, g = parameter.data, parameter.grad
            if s.rescale != 1:
                w, v, g = w * s.rescale, v / s.rescale, g / s.rescale
            if s.kick:
                v = v + s.kick * w
            force = g + s.weight_decay * w if s.weight_decay else g
            v = s.momentum * v + force
            update = v + s.lookahead * force if s.lookahead else v
            parameter.data = ((1 - s.shrink) * w if s.shrink else w) - s.lr * update
            self.velocity[i] = v
        self.steps += 1
        self.last = s
        return s

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to zero."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """{"steps": number of updates so far, "velocity": list of copies of the velocities}."""
        return {"steps": self.steps, "velocity": [backend.asarray(v, v) for v in self.velocity]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the schedule, which must be fresh, is read up to the same step.

        Raises:
            ValueError: velocities do not fit the parameters, or the schedule is too short.
            RuntimeError: this SGD has already taken steps.
        """
        if self.steps:
            raise RuntimeError(f"load_state_dict needs a fresh SGD with a fresh schedule; this one has taken {self.steps} steps")
        shapes = [tuple(v.shape) for v in state["velocity"]]
        wanted = [tuple(v.shape) for v in self.velocity]
        if shapes != wanted:
            raise ValueError(f"velocities of shapes {shapes} do not fit parameters of shapes {wanted}")
        drawn = sum(1 for _ in islice(self.schedule, state["steps"]))
        if drawn < state["steps"]:
            raise ValueError(f"the schedule has {drawn} steps, but the state was saved after {state['steps']}")
        self.velocity = [backend.asarray(v, own) for v, own in zip(state["velocity"], self.velocity, strict=True)]
        self.steps = state["steps"]
