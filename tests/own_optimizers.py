"""Optimisers of one's own: one whose weight decay is decoupled, and one for each way in which it may not be."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minibn import optim
from minibn.optim import Optimizer


@dataclass(frozen=True, slots=True)
class AnyStep(optim.StepNumbers):
    lr: float
    weight_decay: float = 0.0
    degree: ClassVar[int] = 0
    limits: ClassVar = {"lr": (0, math.inf), "weight_decay": (0, math.inf)}


class Own(Optimizer[AnyStep]):
    step_type, entries = AnyStep, ("mean",)


class Decoupled(Own):
    def update(self, step, weight, gradient, *state):
        mean = 0.9 * state[0] + gradient
        return (1 - step.shrink) * weight - step.lr * np.tanh(mean), mean


class CoupledAdam(Own):
    def update(self, step, weight, gradient, *state):
        mean = 0.9 * state[0] + gradient + step.weight_decay * weight
        return weight - step.lr * np.sign(mean), mean


class CoupledSign(Own):
    """Its averages are free of decay, its direction is not."""

    def update(self, step, weight, gradient, *state):
        return weight - step.lr * np.sign(gradient + step.weight_decay * weight), state[0]


class InsideRatio(Own):
    def update(self, step, weight, gradient, *state):
        u = gradient + step.weight_decay * weight
        return weight - step.lr * np.linalg.norm(weight) / np.linalg.norm(u) * u, state[0]


class OutsideRatio(Own):
    def update(self, step, weight, gradient, *state):
        u = gradient / np.linalg.norm(gradient)
        return (1 - step.shrink) * weight - step.lr * np.linalg.norm(weight) * u, state[0]


class Cautious(Own):
    def update(self, step, weight, gradient, *state):
        return weight * (1 - step.shrink * (gradient * weight > 0)) - step.lr * gradient, state[0]
