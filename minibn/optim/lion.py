"""Lion: the sign of an average of gradients (Chen et al., 2023, *Symbolic Discovery of Optimization Algorithms*, Algorithm 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from minibn.backend import Array, array_namespace
from minibn.optim.base import FRACTION, NOT_NEGATIVE, Optimizer, StepNumbers


@dataclass(frozen=True, slots=True)
class LionStep(StepNumbers):
    """The numbers of one update of weights w with gradient g and mean gradient m:

        w <- (1 - η λ) w - η sign(β1 m + (1 - β1) g)
        m <- β2 m + (1 - β2) g

    With beta1 = 0 this is signSGD (Bernstein et al., 2018) with decoupled weight decay.

    Args:
        lr: learning rate η, at least 0: how far every weight moves.
        beta1: β1, from 0 to below 1.
        beta2: β2, from 0 to below 1.
        weight_decay: λ, at least 0, decoupled.

    Raises:
        ValueError: a number is outside these limits, infinite or NaN.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    degree: ClassVar[int] = 0
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "lr": NOT_NEGATIVE, "beta1": FRACTION, "beta2": FRACTION, "weight_decay": NOT_NEGATIVE}


def update(step: LionStep, w: Array, m: Array, g: Array) -> tuple[Array, Array]:
    """What `LionStep` says, as code: (weights, mean, gradient) -> (weights, mean)."""
    direction = array_namespace(g).sign(step.beta1 * m + (1 - step.beta1) * g)
    return (1 - step.lr * step.weight_decay) * w - step.lr * direction, step.beta2 * m + (1 - step.beta2) * g


class Lion(Optimizer[LionStep]):
    """Lion, one `LionStep` per update.

    Arguments, attributes and errors are those of `Optimizer`; the schedule is an iterable of
    `LionStep`.

    Attributes:
        mean: list of arrays, one per parameter: m.

    Example:
        >>> import numpy as np
        >>> from minibn import nn
        >>> w = nn.Parameter(np.array([1.0, 2.0]))
        >>> lion = Lion([w], [LionStep(0.1, weight_decay=0.1)])
        >>> w.grad = np.array([0.3, -5.0])
        >>> lion.step().lr, w.data
        (0.1, array([0.89, 2.08]))
    """

    step_type = LionStep
    entries = ("mean",)
    mean: list[Array]

    def update(self, step: LionStep, weight: Array, gradient: Array, *state: Array) -> tuple[Array, Array]:
        """The function `update`, for one parameter."""
        (m,) = state
        return update(step, weight, m, gradient)
