"""Section 3 of the paper: a linear classifier that does not converge with weight decay and BatchNorm.

Inputs are x ~ N(0, I_m) with labels y = sign(x_1). The best weights point along the first axis, and
weights w misclassify the fraction

    error(w) = arccos(w_1 / |w|) / π

of all inputs. SGD draws a new batch of B inputs at each step, for the logistic loss ln(1 + exp(-y
s)) of a score s:

    plain        s = <x, w>             dL/dw = mean of -y σ(-y s) x
    normalised   s = <x, w> / |w|       dL/dw = mean of -y σ(-y s) (x - s w/|w|) / |w|

The normalised score is BatchNorm in its population form: <x, w> has mean 0 and standard deviation
|w|. Normalised and without weight decay, |w| grows, so the effective lr η/|w|² falls, and the error
falls with it. Weight decay keeps |w| small, so the effective lr and the error stay high. All seeds
are simulated at once, as one array (seeds, m).

Theorem 3.1 says more: with weight decay and normalisation, a run leaves even the best weights
again. To test this, start from the best direction with long weights, `start=R e_1`, and count for
how many seeds the error first exceeds its level within `window` steps. From a random start the test
would show nothing: there the error exceeds any small level at once, with or without weight decay.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from minibn.optim import Schedule, update


class Toy(NamedTuple):
    """What `simulate` recorded after each of `steps`. The first axis is the seed."""

    steps: np.ndarray  # (T,)
    error: np.ndarray  # (S, T) fraction of inputs misclassified
    norm: np.ndarray  # (S, T) |w|
    averaged_error: np.ndarray  # (S, T) error of the mean of all weights so far


def simulate(schedule: Schedule, steps: int, *, normalised: bool, seeds: int = 20, dim: int = 20, batch: int = 1,
             every: int = 1, start: ArrayLike | None = None, rng: Generator) -> Toy:
    """SGD `w <- w - η (dL/dw + λ w)` on the toy problem, for many seeds at once.

    Args:
        schedule: iterable of `Step`, of which η and λ are used. They may change.
        steps: number of updates.
        normalised: whether the score is normalised.
        seeds: S, number of independent runs.
        dim: m, at least 2.
        batch: B, inputs per step.
        every: record after every so many steps.
        start: the weights before the first step, (m,) for all seeds or (S, m). None: each seed
            draws its own from N(0, I_m / m).
        rng: numpy.random.Generator of the start and the inputs.

    Returns:
        Toy

    Raises:
        ValueError: an argument is out of range, `start` has another shape or a row of zeros, the
            schedule is too short, or a Step has momentum or anything else besides η and λ.

    Example:
        >>> from minibn.schedules import constant
        >>> toy = simulate(constant(0.1), 1000, normalised=True, every=500, rng=np.random.default_rng(0))
        >>> toy.steps, toy.error.shape
        (array([ 500, 1000]), (20, 2))
        >>> bool(np.median(toy.error[:, 1]) < np.median(toy.error[:, 0]) < 0.2)
        True
    """
    if min(steps, seeds, batch, every) < 1 or dim < 2 or steps < every:
        raise ValueError("simulate needs steps, seeds, batch and every of at least 1, steps >= every, dim of at least 2; "
                         f"got {steps}, {seeds}, {batch}, {every}, {dim}")
    w = rng.standard_normal((seeds, dim)) / math.sqrt(dim) if start is None else _start(start, seeds, dim)
    total, records = np.zeros_like(w), []
    schedule = iter(schedule)
    for t in range(1, steps + 1):
        step = next(schedule, None)
        if step is None or step != type(step)(step.lr, weight_decay=step.weight_decay):
            raise ValueError(f"simulate needs {steps} steps of lr and weight decay alone; step {t - 1} is {step}")
        x = rng.standard_normal((seeds, batch, dim))
        w, _ = update(step, w, 0.0, gradient(w, x, normalised))  # the velocity is 0: there is no momentum
        total += w
        if t % every == 0:
            records.append((error(w), np.linalg.norm(w, axis=1), error(total)))
    errors, norms, averaged = (np.stack(column, axis=1) for column in zip(*records, strict=True))
    return Toy(np.arange(every, steps + 1, every), errors, norms, averaged)


def _start(start, seeds, dim):
    w = np.asarray(start, dtype=float)
    if w.shape not in ((dim,), (seeds, dim)) or not np.all(np.isfinite(w)) or not np.all(np.any(w, axis=-1)):
        raise ValueError(f"start must hold finite weights, not all 0, of shape ({dim},) or ({seeds}, {dim}); got shape {w.shape}")
    return np.broadcast_to(w, (seeds, dim))


def gradient(w: np.ndarray, x: np.ndarray, normalised: bool) -> np.ndarray:
    """dL/dw (S, m) of the mean logistic loss at w (S, m) on inputs x (S, B, m) with labels sign(x_1).

    Example:
        >>> w, x = np.array([[0.0, 2.0]]), np.array([[[1.0, 0.0]]])  # score 0, label 1: σ = 1/2
        >>> gradient(w, x, normalised=False), gradient(w, x, normalised=True)
        (array([[-0.5,  0. ]]), array([[-0.25,  0.  ]]))
    """
    y = np.sign(x[:, :, 0])
    length = np.linalg.norm(w, axis=1)[:, None, None] if normalised else 1.0
    direction = w[:, None, :] / length
    score = np.sum(x * direction, axis=2)
    slope = -y * np.exp(-np.logaddexp(0, y * score))  # dL/ds = -y / (1 + exp(y s)), without overflow
    inputs = (x - score[:, :, None] * direction) / length if normalised else x
    return np.mean(slope[:, :, None] * inputs, axis=1)


def error(w: np.ndarray) -> np.ndarray:
    """`arccos(w_1 / |w|) / π` of weights w (…, m), accurate for small angles too.

    Example:
        >>> error(np.array([[1.0, 0.0], [3.0, 3.0], [-1.0, 0.0]]))
        array([0.  , 0.25, 1.  ])
    """
    return np.arctan2(np.linalg.norm(w[..., 1:], axis=-1), w[..., 0]) / np.pi


def first_passage(toy: Toy, level: float) -> np.ndarray:
    """The first recorded step of each seed after which its error exceeds `level`; inf if there is none.

    Args:
        toy: what `simulate` recorded, with `every=1` so that no step is missed.
        level: fraction of inputs misclassified.

    Returns:
        (S,) float.

    Example:
        >>> toy = Toy(np.array([1, 2, 3]), np.array([[0.1, 0.3, 0.2], [0.1, 0.1, 0.1]]), np.ones((2, 3)), np.ones((2, 3)))
        >>> first_passage(toy, 0.2)
        array([ 2., inf])
    """
    above = toy.error > level
    return np.where(above.any(axis=1), toy.steps[above.argmax(axis=1)], np.inf)


def window(norm: ArrayLike, lr: float, weight_decay: float, epsilon: float, *, dim: int, batch: int, delta: float) -> Any:
    """Theorem 3.1: the number of steps within which the error exceeds ε/π at least once.

    It holds from any step on, with probability 1 - δ:

        ln(64 |w|² ε √B / (η √(m-2))) / (2 (ηλ - 2ε²)) + 9 ln(1/δ)

    Args:
        norm: |w| at the first of these steps, a float or an array.
        lr, weight_decay: η and λ, constant.
        epsilon: ε, with ε² < ηλ/2.
        dim, batch: m above 2, and B.
        delta: δ, between 0 and 1.

    Returns:
        number of steps, a float or an array, at least 9 ln(1/δ).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(float(window(1.0, 0.1, 0.01, 0.02, dim=20, batch=1, delta=0.1)))
        2781
    """
    product = lr * weight_decay
    if not (0 < epsilon**2 < product / 2 and dim > 2 and batch >= 1 and 0 < delta < 1 and lr > 0):
        raise ValueError(f"window needs 0 < epsilon**2 < lr * weight_decay / 2 = {product / 2:.4g}, dim above 2, batch of at "
                         f"least 1 and delta between 0 and 1; got epsilon={epsilon} (squared {epsilon**2:.4g}), dim={dim}, "
                         f"batch={batch}, delta={delta}")
    growth = np.log(64 * np.square(norm) * epsilon * math.sqrt(batch) / (lr * math.sqrt(dim - 2)))
    return np.maximum(growth, 0) / (2 * (product - 2 * epsilon**2)) + 9 * math.log(1 / delta)
