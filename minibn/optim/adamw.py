"""AdamW: Adam with decoupled weight decay (Kingma & Ba, 2015; Loshchilov & Hutter, 2019), in PyTorch's conventions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from minibn.backend import Array, array_namespace
from minibn.optim.base import FRACTION, NOT_NEGATIVE, Optimizer, StepNumbers


@dataclass(frozen=True, slots=True)
class AdamStep(StepNumbers):
    """The numbers of update number q = 1, 2, … of weights w with gradient g, mean gradient m and mean square v:

        m <- β1 m + (1 - β1) g
        v <- β2 v + (1 - β2) g²                         elementwise
        m̂ = m / (1 - β1^q)        v̂ = v / (1 - β2^q)    bias correction: m and v start at 0
        w <- (1 - η λ) w - η m̂ / (√v̂ + ε)

    This is `torch.optim.AdamW`. With weight_decay = 0 it is `torch.optim.Adam`. If the betas
    change, the correction uses those of this step, as PyTorch does.

    Args:
        lr: learning rate η, at least 0.
        beta1: β1, from 0 to below 1.
        beta2: β2, from 0 to below 1.
        eps: ε, at least 0, in the units of a gradient. With 0, an entry whose gradients were all 0
            becomes NaN.
        weight_decay: λ, at least 0, decoupled: it shrinks the weights by η λ and does not enter m
            or v.

    Raises:
        ValueError: a number is outside these limits, infinite or NaN.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    degree: ClassVar[int] = 0
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "lr": NOT_NEGATIVE, "beta1": FRACTION, "beta2": FRACTION, "eps": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE}


def update(step: AdamStep, q: int, w: Array, m: Array, v: Array, g: Array) -> tuple[Array, Array, Array]:
    """What `AdamStep` says, as code: (weights, mean, mean square, gradient) -> (weights, mean, mean square)."""
    xp = array_namespace(g)
    m = step.beta1 * m + (1 - step.beta1) * g
    v = step.beta2 * v + (1 - step.beta2) * g**2
    mean, square = m / (1 - step.beta1**q), v / (1 - step.beta2**q)
    return (1 - step.lr * step.weight_decay) * w - step.lr * mean / (xp.sqrt(square) + step.eps), m, v


class AdamW(Optimizer[AdamStep]):
    """AdamW, one `AdamStep` per update.

    Arguments, attributes and errors are those of `Optimizer`; the schedule is an iterable of
    `AdamStep`.

    Attributes:
        mean, square: lists of arrays, one per parameter: m and v.

    Example:
        >>> import numpy as np
        >>> from minibn import nn, schedules
        >>> w = nn.Parameter(np.array([1.0, 2.0]))
        >>> adam = AdamW([w], (AdamStep(s.lr, beta2=0.95, weight_decay=0.1) for s in schedules.cosine(0.1, 1000)))
        >>> w.grad = np.array([0.3, -5.0])
        >>> adam.step().beta2, w.data  # the first step moves every weight by lr, after the decay
        (0.95, array([0.89, 2.08]))
    """

    step_type = AdamStep
    entries = ("mean", "square")
    mean: list[Array]
    square: list[Array]

    def update(self, step: AdamStep, weight: Array, gradient: Array, *state: Array) -> tuple[Array, Array, Array]:
        """The function `update`, for one parameter."""
        m, v = state
        return update(step, self.steps + 1, weight, m, v, gradient)
