"""The optimisers by name: what each is made of, and how its weight decay is removed.

Everything that takes an optimiser's name, or finds it from the kind of a schedule's steps, reads
the table `METHODS`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from minibn import arguments
from minibn.equivalence.adam import adam_with_decay, adam_without_decay
from minibn.equivalence.any_optimizer import scale_after, undecayed
from minibn.equivalence.lion import lion_with_decay, lion_without_decay
from minibn.equivalence.streams import IDENTITY, add_weight_decay, check_band, frame_after, remove_step, remove_weight_decay
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Optimizer, Step, StepNumbers
from minibn.optim.base import A_SCHEDULE, steps_of

if TYPE_CHECKING:
    from minibn.nn import Parameter


class Method(NamedTuple):
    """One row of `METHODS`.

    Attributes:
        optimizer, step: its classes in `minibn.optim`.
        numbers: the fields of its step objects that people set.
        converted: (parameters, schedule, band=…) -> the optimiser that trains the same
            scale-invariant network without the schedule's weight decay.
        scale_after: (schedule, steps) -> P after that many steps; raises where there is no
            conversion.
        remove, add: (schedule) and (schedule, weight_decay) -> the converted schedule, for the same
            optimiser elsewhere.
        others: name of the method for parameters that are no matrices, where this one cannot train
            them.
    """

    optimizer: type[Optimizer]
    step: type[StepNumbers]
    numbers: tuple[str, ...]
    converted: Callable[..., Optimizer]
    scale_after: Callable[..., float]
    remove: Callable[..., Iterator[Any]]
    add: Callable[..., Iterator[Any]]
    others: str | None = None


class ConvertedSGD(SGD):
    """SGD on `remove_weight_decay(schedule)`, which knows its P.

    Attributes:
        scale: P: the weights of the run with weight decay are P times those of `parameters`.
    """

    def __init__(self, parameters: Iterable["Parameter"], schedule: Iterable[Step], band: float | None) -> None:
        check_band(band)
        self.scale = 1.0
        super().__init__(parameters, self._converted(steps_of(schedule, Step), band))

    def _converted(self, schedule, band):
        frame = IDENTITY
        for t, step in enumerate(schedule):
            converted, frame = remove_step(step, frame, band, t)
            self.scale = frame.scale
            yield converted


def _decoupled(optimizer, parameters, schedule, band):
    return undecayed(optimizer(parameters, schedule), band=band)


def _sgd_scale(schedule, steps):
    return frame_after(schedule, steps, band=None).scale


def _no_muon(*_: Any, **__: Any) -> Iterator[Any]:
    raise ValueError("Muon without weight decay is not a schedule of lr and momentum: its momentum acts in the average and in "
                     "Nesterov's step from it, and these would have to become two different numbers. Convert the optimiser "
                     "instead: equivalence.undecayed(Muon(parameters, schedule)), training.convert, or in PyTorch "
                     "minibn.pytorch.remove_weight_decay; all are exact")


METHODS = {
    "sgd": Method(SGD, Step, ("lr", "momentum", "weight_decay"), ConvertedSGD, _sgd_scale, remove_weight_decay, add_weight_decay),
    "adamw": Method(AdamW, AdamStep, ("lr", "beta1", "beta2", "eps", "weight_decay"), partial(_decoupled, AdamW), scale_after,
                    adam_without_decay, adam_with_decay),
    "lion": Method(Lion, LionStep, ("lr", "beta1", "beta2", "weight_decay"), partial(_decoupled, Lion), scale_after,
                   lion_without_decay, lion_with_decay),
    "muon": Method(Muon, MuonStep, ("lr", "momentum", "weight_decay"), partial(_decoupled, Muon), scale_after,
                   _no_muon, _no_muon, others="adamw"),
}


def method_of(schedule: Iterable[Any]) -> tuple[Method, Iterator[Any]]:
    """(the method whose step objects a schedule has, the whole schedule), from a look at its first step.

    Raises:
        ValueError: the schedule is empty.
        TypeError: it is no iterable, or its steps are of no optimiser of `minibn.optim`.

    Example:
        >>> method, schedule = method_of([LionStep(0.1)])
        >>> method.optimizer.__name__, list(schedule)
        ('Lion', [LionStep(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0)])
    """
    steps = iter(arguments.iterable("a schedule", schedule, A_SCHEDULE))
    try:
        first = next(steps)
    except StopIteration:
        raise ValueError("the schedule has no steps; give one with a step for each update") from None
    for method in METHODS.values():
        if type(first) is method.step:
            return method, chain([first], steps)
    kinds = ", ".join(method.step.__name__ for method in METHODS.values())
    raise TypeError(f"a schedule has step objects ({kinds}); this one has {first!r}")


def optimizer_for(parameters: Iterable["Parameter"], schedule: Iterable[Any]) -> Optimizer:
    """The optimiser for the kind of steps that a schedule has: SGD for `Step`, AdamW for `AdamStep`, and so on.

    Raises:
        ValueError, TypeError: as in `method_of`; and what the optimiser's class raises.
    """
    method, steps = method_of(schedule)
    return method.optimizer(parameters, steps)


def converted_for(parameters: Iterable["Parameter"], schedule: Iterable[Any], *, band: float | None = 2.0**32) -> Optimizer:
    """As `optimizer_for`, without the schedule's weight decay: it trains the same scale-invariant network.

    SGD follows `remove_weight_decay(schedule)`, and its `scale` is P; the others are converted by `undecayed`. Give each
    set of weights that is scale-invariant together to one optimiser, and no other weights.

    Args:
        band: as in `remove_weight_decay`.
    """
    method, steps = method_of(schedule)
    return method.converted(parameters, steps, band=band)
