"""Theorem A: decoupled weight decay can be removed from any optimiser, exactly. Not in the paper.

Decoupled decay shrinks the weights directly, apart from the update. AdamW, Lion, Muon and SGD with
`shrink` have it:

    w' = (1 - δ) w - η u        δ = η λ,   u: what the optimiser makes of all gradients so far

**Theorem A.** Let the loss be scale-invariant, P the product of (1 - δ) over the steps so far, P' = (1 - δ) P, w̃ = w / P.
Divide the update by P':

    w̃' = w̃ - (η / P') u

The gradient at w̃ is g̃ = P g, so the optimiser can be given g̃ / P, which is g. Then its state, and u, are those of the
run with weight decay, whatever u is: eps, clipping, bias correction, an orthogonalised matrix, a sign. The recipe is
`gradient / P, lr / P', weight_decay = 0`. The only condition is δ < 1.

The theorem can also change the weight decay to another one. Let λ2 be the weight decay wanted, w2
the weights of the run that has it, and w = P w2. Then

    (1 - δ) P w2 - η u = P' ((1 - η2 λ2) w2 - η2 u)    if    P' = P (1 - δ) / (1 - η2 λ2),   η2 = η / P'

and with s = η / (P (1 - δ)) the two give η2 = s / (1 + s λ2). λ2 = 0 is Theorem A.

**Theorem B** leaves the gradients as they are and transports the optimiser's state instead: see `state_transport`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from math import inf, isfinite
from typing import Any, TypeVar

import numpy as np

from minibn import arguments
from minibn.backend import Array
from minibn.equivalence.decoupled import kept
from minibn.equivalence.streams import check_band, power_of_two
from minibn.optim import Optimizer, Step, StepNumbers
from minibn.optim.base import steps_of

S = TypeVar("S", bound=StepNumbers)


def undecayed(optimizer: Optimizer[S], *, band: float | None = 2.0**32) -> "Reframed[S]":
    """`optimizer` without weight decay, training every scale-invariant network as `optimizer` would: Theorem A.

    Works for every optimiser of `minibn.optim` with decoupled weight decay: AdamW, Lion, Muon, SGD with `shrink` (for
    L2 decay in SGD there is `remove_weight_decay(schedule)`). It takes over the optimiser's parameters, state and schedule,
    before the first step or at any later one. Only give it weights that are scale-invariant, each set of weights that is
    invariant together in one optimiser: `invariance.symmetries(model)` finds them.

    Args:
        optimizer: the `Optimizer`; use the returned one in its place.
        band: P keeps shrinking and the weights w / P keep growing. Whenever P leaves [1/band, band], the weights are
            multiplied by a power of two that brings P back near 1; that changes no other bit. None: never.

    Returns:
        Reframed: an `Optimizer`. Its weights are w / P, with P its `scale`; its steps have weight decay 0.

    Raises:
        ValueError: band is not above 1; from `step()`: lr * weight_decay is 1 or more, or the decay is not decoupled.

    Example:
        >>> import numpy as np
        >>> from itertools import repeat
        >>> from minibn import nn
        >>> from minibn.optim import AdamStep, AdamW
        >>> w = nn.Parameter(np.array([1.0, 2.0]))
        >>> adam = undecayed(AdamW([w], repeat(AdamStep(0.1, weight_decay=2.0))))
        >>> [round(adam.step().lr, 4) for _ in range(3)], round(adam.scale, 4)  # 0.1 / 0.8, 0.1 / 0.8², …
        ([0.125, 0.1562, 0.1953], 0.512)
    """
    return Reframed(optimizer, 0.0, band)


def decayed(optimizer: Optimizer[S], weight_decay: float, *, band: float | None = 2.0**32) -> "Reframed[S]":
    """As `undecayed`, with the given decoupled weight decay instead of none, whatever weight decay `optimizer` has.

    lr changes with it, and only the scale of the weights differs. This restates a schedule in another convention.

    Args:
        optimizer, band: as for `undecayed`.
        weight_decay: λ2, at least 0. Each step shrinks the weights by its own lr times this.

    Example:
        >>> import numpy as np
        >>> from itertools import repeat
        >>> from minibn import nn
        >>> from minibn.optim import Lion, LionStep
        >>> w = nn.Parameter(np.array([1.0, 2.0]))
        >>> lion = decayed(Lion([w], repeat(LionStep(0.1))), 2.0)
        >>> [round(lion.step().lr, 4) for _ in range(3)]
        [0.0833, 0.0714, 0.0625]
    """
    return Reframed(optimizer, weight_decay, band)


class Reframed(Optimizer[S]):
    """What `undecayed` and `decayed` return: an optimiser in a frame of its own, with weights w / P.

    Attributes:
        optimizer: the given one, with the state (its `arrays`), which is that of the run with the given weight decay.
        scale: P; the weights of that run are P times those of `parameters`.
        parameters, schedule, steps, last: as in every `Optimizer`; `last` has the converted lr and weight decay.
    """

    def __init__(self, optimizer: Optimizer[S], weight_decay: float, band: float | None) -> None:
        check_band(band)
        if isinstance(optimizer, Reframed):
            raise TypeError("this optimiser is converted already: use its add() to go back first")
        self.optimizer, self.band, self.scale = optimizer, band, 1.0
        self.weight_decay = Step(0.0, weight_decay=weight_decay).weight_decay  # Step checks the number
        self.parameters = optimizer.parameters
        self.steps, self.last = optimizer.steps, None
        self._checked = False

    @property
    def schedule(self) -> Iterator[S]:
        """The schedule of the given optimiser."""
        return self.optimizer.schedule

    @schedule.setter
    def schedule(self, schedule: Iterator[S]) -> None:
        self.optimizer.schedule = schedule

    def step(self) -> S:
        """Update every parameter with the converted form of the schedule's next step object, and return that form.

        Raises:
            ValueError: the step has no conversion; the message says why and what to do.
            OverflowError: band=None, and the converted lr or gradient has left float range.
        """
        given = self.optimizer.draw()
        if given.shrink and not self._checked:
            _check_decoupled(self.optimizer, given)
            self._checked = True
        converted, after = reframe(given, self.scale, self.weight_decay, self.steps)
        self.optimizer.apply(converted, [parameter.grad / self.scale for parameter in self.parameters])
        self.scale = after
        if (factor := _rescaling(after, self.band)) != 1:
            self._rescale(factor)
        self.steps, self.last = self.optimizer.steps, converted
        return converted

    def _rescale(self, factor):
        """Weights times `factor`, P divided by it: the weights P w̃ of the ordinary run stay as they are."""
        for parameter in self.parameters:
            parameter.data = parameter.data * factor
        self.scale /= factor

    def add(self) -> Optimizer[S]:
        """The way back, at any step: put the weights back to those of the ordinary run, and return its optimiser.

        That optimiser goes on with the weight decay of its schedule. `undecayed` of it changes the form again.
        """
        self._rescale(self.scale)
        return self.optimizer

    def as_taken(self, steps: Iterable[S]) -> Iterator[S]:
        """The converted form of each of the schedule's first `steps`, as `last` has it after that step."""
        scale = 1.0
        for t, step in enumerate(steps):
            converted, scale = reframe(step, scale, self.weight_decay, t)
            scale /= _rescaling(scale, self.band)
            yield converted

    def is_where_its_parameters_are(self) -> bool:
        """As in every `Optimizer`."""
        return self.optimizer.is_where_its_parameters_are()

    def arrays(self) -> dict[str, Array]:
        """The given optimiser's state arrays."""
        return self.optimizer.arrays()

    def state_dict(self) -> dict[str, Any]:
        """The given optimiser's state, and {"scale": P}."""
        return {**self.optimizer.state_dict(), "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, as `Optimizer.load_state_dict`; the state of an ordinary run has P = 1."""
        scale = arguments.number("the state's scale", state.get("scale", 1.0)) if isinstance(state, Mapping) else 1.0
        if not 0 < scale < inf:
            raise ValueError(f"the state's scale must be a finite number above 0, got {scale}")
        self.optimizer.load_state_dict({name: value for name, value in state.items() if name != "scale"})
        self.steps, self.scale = self.optimizer.steps, scale


def _rescaling(scale, band):
    """The power of two that the weights are multiplied by, and P divided by, once P is outside of the band; else 1."""
    return power_of_two(scale) if band and not 1 / band <= scale <= band else 1.0


def scale_after(schedule: Iterable[StepNumbers], steps: int) -> float:
    """P after `steps` steps of `undecayed` under this schedule, without a band: the product of 1 - lr * weight_decay.

    The counterpart of `frame_after` for decoupled decay. It shows whether a schedule can be converted before it is used.

    Raises:
        ValueError: the schedule is shorter than `steps`, or a step has no conversion.

    Example:
        >>> from minibn.optim import AdamStep
        >>> scale_after([AdamStep(0.5, weight_decay=0.5), AdamStep(0.1, weight_decay=2.0)], 2)
        0.6000000000000001
    """
    scale, t = 1.0, -1
    for t, step in enumerate(islice(steps_of(schedule, StepNumbers), arguments.whole("steps", steps, 0))):
        _, scale = reframe(step, scale, 0.0, t)
    if t + 1 < steps:
        raise ValueError(f"the schedule has {t + 1} steps, there is no scale after {steps}")
    return scale


def reframe(step: S, scale: float, weight_decay: float = 0.0, t: int = 0) -> tuple[S, float]:
    """Theorem A for one step: (step object with decoupled decay, P) -> (step object with `weight_decay` instead, P').

    The new step object goes with the gradient divided by P. t is the step's number in error
    messages. The errors are those of `Reframed.step`.

    Example:
        >>> from minibn.optim import LionStep
        >>> reframe(LionStep(0.1, weight_decay=2.0), 0.5)
        (LionStep(lr=0.25, beta1=0.9, beta2=0.99, weight_decay=0.0), 0.4)
    """
    keep = kept(step, t)
    s = step.lr / (scale * keep) if scale * keep else inf
    lr = s / (1 + s * weight_decay)
    if not isfinite(lr):
        raise OverflowError(f"step {t}: the converted learning rate has left float range; use band=2.0**32, the default")
    after = scale * keep / (1 - lr * weight_decay)
    given: Any = step
    if not isinstance(step, Step):
        return replace(given, lr=lr, weight_decay=weight_decay), after
    if step.weight_decay:
        raise ValueError(f"step {t} has weight_decay={step.weight_decay}. In a Step that is L2 decay, which is inside the "
                         "velocity. Convert the schedule with equivalence.remove_weight_decay(schedule), which is exact "
                         "too, or make the decay decoupled with schedules.decoupled(schedule)")
    return replace(given, lr=lr, shrink=lr * weight_decay, kick=step.kick * scale), after


def _check_decoupled(optimizer, step):
    """Try the optimiser's update on two small arrays: weight decay must not enter its state, nor the update the weights."""
    if isinstance(step, Step):
        return  # `reframe` knows its fields
    w, g = np.random.default_rng(0).standard_normal((2, 4, 3))
    zeros = [np.zeros((4, 3)) for _ in optimizer.entries]
    name, bare = type(optimizer).__name__, replace(step, weight_decay=0.0)
    (with_decay, *state), (without, *bare_state) = (optimizer.update(s, w, g, *zeros) for s in (step, bare))
    (doubled, *_) = optimizer.update(bare, 2 * w, g, *zeros)
    if not all(np.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(state, bare_state, strict=True)):
        raise ValueError(f"{name} adds weight decay to its gradients (L2): decay is in its averages and changes the direction "
                         "of its update. That cannot be removed. Use decoupled decay, as AdamW has it")
    if not np.allclose(doubled - 2 * w, without - w, rtol=1e-9, atol=1e-12):
        raise ValueError(f"the update of {name} depends on the weights, as a trust ratio does (LARS, LAMB), so it is not the "
                         "same at w / P. Decay inside the ratio cannot be removed. Decay outside it can: train without decay at "
                         "lr / (1 - lr * weight_decay), with the state multiplied as `equivalence.transport` says")
    if not np.allclose(with_decay, without - step.shrink * w, rtol=1e-9, atol=1e-12):
        raise ValueError(f"the weight decay of {name} does not multiply all weights by 1 - lr * weight_decay. Decay inside a "
                         "trust ratio, or of some entries alone, cannot be removed. Use decoupled decay, as AdamW has it")
