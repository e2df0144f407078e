"""What the explorer computes: one schedule, its converted form, and both training the toys. No page, no picture.

The theorem itself is not here. `converted` calls `equivalence.remove_weight_decay` for SGD and
`equivalence.undecayed` for AdamW, Lion and Muon; predictions come from `monitor`.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from minibn import monitor, schedules
from minibn.equivalence import remove_weight_decay, undecayed
from minibn.equivalence.any_optimizer import reframe
from minibn.explore import toys
from minibn.nn import Parameter
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Optimizer, Step, StepNumbers

BETA2 = {"AdamW": 0.95, "Lion": 0.99}
SHAPE = (8, 8)  # of the weights that the noise moves: Muon needs a matrix
EVERY = 3  # steps from one measurement to the next
FAR = 1e100  # a run ends where a weight is beyond
PATH = 40  # steps of the two weights that are drawn, at most


@dataclass(frozen=True)
class Settings:
    """What the sliders say.

    Args:
        optimizer: "SGD", "AdamW", "Lion" or "Muon".
        lr: the highest learning rate, or the first of "exponential".
        momentum: γ of SGD and Muon, β1 of AdamW and Lion.
        weight_decay: λ; L2 for SGD, decoupled for the others, as in PyTorch.
        warmup: steps of linear warm-up.
        schedule: one of `schedules.NAMES`.
        end: the last learning rate divided by the first; of no effect on "constant". "step" gets
            there in two equal drops, at half and at three quarters of the steps.
        steps: length of training.
    """

    optimizer: str = "SGD"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.01
    warmup: int = 0
    schedule: str = "constant"
    end: float = 0.1
    steps: int = 200

    @classmethod
    def of(cls, optimizer: str) -> "Settings":
        """Where the sliders start for an optimizer: values with which 200 steps show everything.

        Example:
            >>> Settings.of("AdamW").weight_decay
            0.3
        """
        lr, momentum, weight_decay = {"SGD": (0.1, 0.9, 0.01), "AdamW": (0.05, 0.9, 0.3), "Lion": (0.02, 0.9, 0.5),
                                      "Muon": (0.05, 0.9, 0.3)}[optimizer]
        return cls(optimizer, lr, momentum, weight_decay)


class Run(NamedTuple):
    """What one run did in T steps, measured at M of them."""

    weights: np.ndarray  # (T + 1, n), from before the first step
    lr: np.ndarray  # (T,)
    measured: np.ndarray  # (M,) numbers of the steps, from 0
    effective_lr: np.ndarray  # (M,)
    angle: np.ndarray  # (M,) radians
    refused: str  # why it ended early, mostly in the library's words; "" if it did not

    @property
    def norm(self) -> np.ndarray:
        """|w|, (T + 1,)."""
        return np.linalg.norm(self.weights, axis=1)


def usual(settings: Settings) -> list[StepNumbers]:
    """The schedule as one trains with it: `settings.steps` step objects, with weight decay.

    Example:
        >>> usual(Settings(steps=2, warmup=1))
        [Step(lr=0.05, momentum=0.9, weight_decay=0.01, kick=0.0, rescale=1.0, lookahead=0.0, shrink=0.0), Step(lr=0.1, \
momentum=0.9, weight_decay=0.01, kick=0.0, rescale=1.0, lookahead=0.0, shrink=0.0)]
    """
    s = settings
    stream = schedules.by_name(s.schedule, s.lr, steps=s.steps, milestones=[s.steps // 2, s.steps * 3 // 4],
                               factor=math.sqrt(s.end), final=s.lr * s.end, growth=s.end ** (1 / s.steps),
                               momentum=s.momentum, weight_decay=s.weight_decay)
    stream = schedules.warmup(s.warmup, stream)
    return [_step_of(s.optimizer, step) for step in islice(stream, s.steps)]


def _step_of(optimizer: str, step: Step) -> StepNumbers:
    match optimizer:
        case "AdamW":
            return AdamStep(step.lr, step.momentum, BETA2["AdamW"], weight_decay=step.weight_decay)
        case "Lion":
            return LionStep(step.lr, step.momentum, BETA2["Lion"], step.weight_decay)
        case "Muon":
            return MuonStep(step.lr, step.momentum, step.weight_decay)
    return step


KINDS: dict[str, Callable[..., Optimizer[Any]]] = {"SGD": SGD, "AdamW": AdamW, "Lion": Lion, "Muon": Muon}


def converted(optimizer: str, weights: list[Parameter], steps: list[Any]) -> Optimizer[Any]:
    """An optimizer without weight decay that trains scale-invariant `weights` as `steps` would, by the library's conversion."""
    if optimizer == "SGD":
        return SGD(weights, remove_weight_decay(steps, band=None))
    return undecayed(KINDS[optimizer](weights, steps), band=None)


def train(settings: Settings, start: np.ndarray, gradient: Callable[[int, np.ndarray], np.ndarray], steps: int, *,
          convert: bool) -> Run:
    """Train one array of weights for `steps` steps, by the usual or the converted schedule.

    Args:
        start: the weights before the first step.
        gradient: (step, weights) -> dL/dw.
        convert: whether by the converted schedule. If that has no step with the same effect, the
            run ends there. Every run ends where a weight is beyond `FAR`.
    """
    parameter, schedule = Parameter(start.copy()), usual(settings)
    optimizer = converted(settings.optimizer, [parameter], schedule) if convert else \
        KINDS[settings.optimizer]([parameter], schedule)
    weights, rates, measured, refused = [start], [], [], ""
    for t in range(steps):
        before = parameter.data
        parameter.grad = gradient(t, before)
        try:
            step = optimizer.step()
        except (ValueError, OverflowError) as error:
            refused = str(error)
            break
        if not np.abs(parameter.data).max() < FAR:
            refused = f"the weights have left float range: above {FAR:g}"
            break
        weights.append(parameter.data)
        rates.append(step.lr)
        if t % EVERY == 0:
            measured.append((t, *monitor.measure(step, [before], [parameter.data])[1:]))
    at, effective, angles = np.array(measured, dtype=float).reshape(-1, 3).T
    return Run(np.array(weights).reshape(len(weights), -1), np.array(rates), at.astype(int), effective, angles, refused)


class Pair(NamedTuple):
    """The usual and the converted run from the same start on the same losses."""

    usual: Run
    converted: Run

    @property
    def gap(self) -> float:
        """The largest angle between the weights of the two runs after the same step, in radians, at every `EVERY`th step."""
        steps = min(len(self.usual.weights), len(self.converted.weights))
        return max(float(monitor.angular_update([self.usual.weights[t]], [self.converted.weights[t]]))
                   for t in {*range(0, steps, EVERY), steps - 1})


def on_noise(settings: Settings) -> Pair:
    """Both runs of 64 weights on `toys.noise_gradient`, from |w| = 1.

    Example:
        >>> pair = on_noise(Settings(steps=50))
        >>> pair.gap < 1e-13, bool(pair.converted.norm[-1] > pair.usual.norm[-1])
        (True, True)
    """
    xi = toys.draws(settings.steps, math.prod(SHAPE))
    start = np.random.default_rng(1).standard_normal(SHAPE)
    start /= np.linalg.norm(start)
    return Pair(*(train(settings, start, lambda t, w: toys.noise_gradient(w, xi[t]), settings.steps, convert=convert)
                  for convert in (False, True)))


def on_landscape(settings: Settings) -> Pair:
    """Both runs of two weights on `toys.landscape`, for the first `PATH` steps.

    Example:
        >>> on_landscape(Settings()).usual.weights.shape
        (41, 2)
    """
    return Pair(*(train(settings, toys.START[:, None], lambda t, w: toys.landscape_gradient(w), min(PATH, settings.steps),
                        convert=convert) for convert in (False, True)))


def equilibrium(settings: Settings, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(|w|, angle per step) that `monitor` predicts for the noise, if lr stayed as it is at each measured step; (M,) each.

    The size U of an update is known for SGD, AdamW and Lion, and measured in `run`, the usual run,
    for Muon. NaN where `monitor` has no formula.

    Example:
        >>> s = Settings(steps=30)
        >>> norm, angle = equilibrium(s, on_noise(s).usual)
        >>> round(float(norm[-1]), 2), round(float(angle[-1]), 4)
        (2.66, 0.0324)
    """
    schedule, n = usual(settings)[: len(run.lr)], math.prod(SHAPE)
    m = settings.momentum
    if settings.optimizer == "Muon":
        rates, shrinks = np.array([(s.lr, s.shrink) for s in schedule]).T
        moved = np.linalg.norm(run.weights[1:] - (1 - shrinks[:, None]) * run.weights[:-1], axis=1)
        size = float(np.mean(moved[rates > 0] / rates[rates > 0]))
    else:
        sizes = {"SGD": 1 / math.sqrt(1 - m**2), "AdamW": math.sqrt(n * (1 - m) / (1 + m)), "Lion": math.sqrt(n)}
        size = sizes[settings.optimizer]
    at = [schedule[t] for t in run.measured]
    return (np.array([monitor.predicted_norm_of(s, size) for s in at]), np.array([monitor.predicted_angle_of(s) for s in at]))


def largest_weight_decay(settings: Settings) -> float:
    """The largest weight decay at which every step of the schedule can be converted, to three digits.

    Found by bisection: the library is asked whether it accepts the schedule. For SGD with constant
    lr and many steps, lr times it tends to (1 - √γ)² from above. For the others it is 1 / (highest
    lr).

    Example:
        >>> round(largest_weight_decay(Settings.of("AdamW")), 1)  # 1 / 0.05
        20.0
        >>> s = Settings(momentum=0.5, steps=300)
        >>> round(s.lr * largest_weight_decay(s), 3), round((1 - 0.5**0.5) ** 2, 3)
        (0.086, 0.086)
    """
    return _largest(replace(settings, weight_decay=0.0))


@cache
def _largest(settings):
    low, high = 0.0, 2.0 / max(step.lr for step in usual(settings))
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(replace(settings, weight_decay=middle)) else (low, middle)
    return low


def accepted(settings: Settings) -> bool:
    """Whether the library converts every step of the schedule.

    Example:
        >>> accepted(Settings(weight_decay=0.01)), accepted(Settings(weight_decay=1.0))
        (True, False)
    """
    schedule: list[Any] = usual(settings)
    try:
        if settings.optimizer == "SGD":
            deque(remove_weight_decay(schedule), maxlen=0)
        else:
            deque((reframe(step, 1.0) for step in schedule), maxlen=0)
    except ValueError:
        return False
    return True
