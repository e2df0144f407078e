"""Section 4 of the paper: without weight decay, a scale-invariant loss converges at any fixed learning rate.

The gradient is orthogonal to the weights, so every step makes them longer,
|w_{t+1}|² = |w_t|² + η² |∇L(w_t)|², and the effective learning rate η/|w|² falls on its own until it
suits the loss ("auto-tuning": Arora, Li & Lyu, 2019). Then min_{t<T} |∇L(w_t)| falls as T^-1/2 or
faster, whatever η is. An η that is too large first costs one long jump; one that is too small costs
time.

The loss here is a Rayleigh quotient, L(w) = wᵀ A w / (2 |w|²), with the eigenvalues of A spread over
decades. Its flattest directions never converge in the run, so the asymptotic rate is visible.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike


class Convergence(NamedTuple):
    """What `fixed_rate` measured. The first axis is the learning rate."""

    rates: np.ndarray  # (R,) η
    steps: np.ndarray  # (T,) 1 … T
    smallest_gradient: np.ndarray  # (R, T) min over the steps so far of |∇L| |w|, the gradient on the unit sphere
    norm: np.ndarray  # (R, T) |w|
    slopes: np.ndarray  # (R,) of log smallest_gradient over log steps in the last decade; the theorem: at most -1/2


def fixed_rate(rates: ArrayLike, steps: int = 100_000, *, dim: int = 30, decades: float = 4, rng: Generator) -> Convergence:
    """Gradient descent `w <- w - η ∇L(w)` for all learning rates at once, from one start with |w| = 1.

    Args:
        rates: learning rates η, all above 0.
        steps: T, at least 100.
        dim: size of w.
        decades: the eigenvalues of A are spread evenly in their logarithm, from 10^-decades to 1.
        rng: numpy.random.Generator for the start.

    Returns:
        Convergence

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> found = fixed_rate([0.1, 10.0], steps=2000, rng=np.random.default_rng(0))
        >>> found.smallest_gradient.shape, bool(found.slopes.max() < -0.5)
        ((2, 2000), True)
    """
    rates = np.atleast_1d(np.asarray(rates, dtype=float))
    if not (np.all(np.isfinite(rates)) and np.all(rates > 0)) or steps < 100 or dim < 2:
        raise ValueError(f"fixed_rate needs finite rates above 0, at least 100 steps and dim of at least 2; got {rates}, "
                         f"{steps} and {dim}")
    eigenvalues = np.logspace(-decades, 0, dim)
    start = rng.standard_normal(dim)
    w = np.tile(start / np.linalg.norm(start), (len(rates), 1))
    gradients, norms = np.empty((2, len(rates), steps))
    for t in range(steps):
        square = np.sum(w * w, axis=1, keepdims=True)
        quotient = np.sum(eigenvalues * w * w, axis=1, keepdims=True) / square
        gradient = (eigenvalues - quotient) * w / square  # ∇L: A is diagonal
        norms[:, t] = np.sqrt(square[:, 0])
        gradients[:, t] = np.linalg.norm(gradient, axis=1) * norms[:, t]
        w = w - rates[:, None] * gradient
    smallest = np.minimum.accumulate(gradients, axis=1)
    count = np.arange(1, steps + 1)
    late = np.unique(np.logspace(np.log10(steps / 10), np.log10(steps), 50).astype(int)) - 1
    slopes = np.polyfit(np.log(count[late]), np.log(np.maximum(smallest[:, late], 1e-300)).T, 1)[0]
    return Convergence(rates, count, smallest, norms, slopes)
