"""What the conversions of decoupled weight decay share: `any_optimizer`, `adam` and `lion`."""

from math import isfinite

from minibn.optim import StepNumbers


def kept(step: StepNumbers, t: int) -> float:
    """1 - η λ, by which the decay of step t multiplies the weights.

    Raises:
        ValueError: it is not above 0.
    """
    keep = 1 - step.shrink
    if keep <= 0:
        raise ValueError(f"step {t} cannot be converted: its weight decay would carry the weights through zero, multiplying "
                         f"them by {keep:.4g}. lr * weight_decay must be below 1; lower one of them ({step})")
    return keep


def in_range(lr: float, scale: float, t: int) -> float:
    """The converted learning rate of step t, at P = `scale`, for a schedule that cannot rescale the weights.

    Raises:
        OverflowError: it is not finite.
    """
    if not isfinite(lr):
        raise OverflowError(f"step {t}: the converted learning rate has left float range (the weights would be {scale:.3g} times "
                            "smaller with weight decay); use equivalence.undecayed(optimizer), which rescales the weights")
    return lr


def beta_without_decay(beta: float, a: float, factor: float) -> tuple[float, float]:
    """(c', β̃) of an average whose gradients grow by 1/a per step, from β, a and c: see `adam`."""
    new = 1 / ((1 - beta) + beta * a / factor)
    return new, max(0.0, 1 - new * (1 - beta))  # rounding must not leave a β̃ of 0 below it


def beta_with_decay(beta: float, a: float, factor: float) -> tuple[float, float]:
    """(c', β) from β̃, a and c: the inverse of `beta_without_decay`."""
    new = (1 - beta) + beta * factor / a
    return new, beta * factor / (a * new)
