"""Section 4 of the paper: without weight decay, a scale-invariant loss converges at any fixed learning rate.

The gradient is orthogonal to the weights, so every step makes them longer,

    |w_{t+1}|² = |w_t|² + η² |∇L(w_t)|²,

and the effective learning rate η/|w|² falls on its own until it suits the loss ("auto-tuning":
Arora, Li & Lyu, 2019). That bounds the gradient on the unit sphere, g_t = |w_t| ∇L(w_t), at every T
(`bound`):

    min_{t<T} |g_t|² <= W² (W² - |w_0|²) / (η² T),   W² = max(|w_0|², Λη) + η² G² / |w_0|² + 2 η D,

where on the unit sphere Λ bounds the Hessian, G bounds |g|, and D is the range of L. Proof:

1. Above |w|² = Λη, with curvature Λ/|w|² at most, a step lowers L by at least η |∇L|² / 2. So all
   of these steps add at most 2 η D to |w|². The step before them adds at most η² G² / |w_0|². Hence
   |w_T|² <= W².
2. The increments add up: Σ_t η² |g_t|² / |w_t|² = |w_T|² - |w_0|². Each |w_t|² is at most W², and
   the smallest of T numbers is at most their mean.

The loss here is a Rayleigh quotient, L(w) = wᵀ A w / (2 |w|²), with eigenvalues of A between 0 and
1. For it Λ = 1 and G = D = 1/2.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

HESSIAN, GRADIENT, RANGE = 1.0, 0.5, 0.5  # Λ, G and D of every Rayleigh quotient with eigenvalues in [0, 1]


class Convergence(NamedTuple):
    """What `fixed_rate` measured. The first axis is the learning rate."""

    rates: np.ndarray  # (R,) η
    steps: np.ndarray  # (T,) 1 … T
    smallest_gradient: np.ndarray  # (R, T) min over the steps so far of |∇L| |w|, the gradient on the unit sphere
    norm: np.ndarray  # (R, T) |w| at these steps
    bound: np.ndarray  # (R, T) that the theorem puts on `smallest_gradient`


def fixed_rate(rates: ArrayLike, steps: int = 100_000, *, dim: int = 30, decades: float = 4, grow: bool = True,
               rng: Generator) -> Convergence:
    """Gradient descent `w <- w - η ∇L(w)` for all learning rates at once, from one start with |w| = 1.

    Args:
        rates: learning rates η, all above 0.
        steps: T, at least 1.
        dim: size of w, at least 2.
        decades: the eigenvalues of A are spread evenly in their logarithm, from 10^-decades to 1,
            so the flattest directions never converge in a run.
        grow: False brings w back to |w| = 1 after each step, so that the effective learning rate
            cannot fall. That is the control: where η is too large, the bound does not hold then.
        rng: numpy.random.Generator for the start.

    Returns:
        Convergence

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> found = fixed_rate([0.1, 10.0], steps=2000, rng=np.random.default_rng(0))
        >>> bool(np.all(found.smallest_gradient < found.bound))
        True
        >>> control = fixed_rate([0.1, 10.0], steps=2000, grow=False, rng=np.random.default_rng(0))
        >>> np.all(control.smallest_gradient < control.bound, axis=1)
        array([ True, False])
    """
    rates = np.atleast_1d(np.asarray(rates, dtype=float))
    if not (np.all(np.isfinite(rates)) and np.all(rates > 0)) or steps < 1 or dim < 2 or not decades > 0:
        raise ValueError("fixed_rate needs finite rates above 0, steps of at least 1, dim of at least 2 and decades above 0; got "
                         f"{rates}, {steps}, {dim} and {decades}")
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
        if not grow:
            w = w / np.linalg.norm(w, axis=1, keepdims=True)
    count = np.arange(1, steps + 1)
    return Convergence(rates, count, np.minimum.accumulate(gradients, axis=1), norms, bound(rates[:, None], count))


def bound(lr: ArrayLike, steps: ArrayLike, norm: float = 1.0, *, hessian: float = HESSIAN, gradient: float = GRADIENT,
          loss_range: float = RANGE) -> Any:
    """What the smallest of the gradients g_t of the first T steps cannot exceed, on the unit sphere.

        sqrt(W² (W² - |w_0|²) / (η² T)),   W² = max(|w_0|², Λη) + η² G² / |w_0|² + 2 η D

    It holds for every scale-invariant loss, learning rate and T. It is informative once it is below
    G.

    Args:
        lr: η, a float or an array.
        steps: T, a float or an array.
        norm: |w_0|.
        hessian, gradient, loss_range: Λ, G and D, on the unit sphere. The defaults are those of
            every Rayleigh quotient with eigenvalues in [0, 1].

    Returns:
        a float or an array.

    Example:
        >>> round(float(bound(1.0, 100)), 4)  # W² = 1 + 1/4 + 1
        0.1677
    """
    lr, square = np.asarray(lr, dtype=float), norm**2
    growth = np.maximum(hessian * lr - square, 0) + (lr * gradient) ** 2 / square + 2 * lr * loss_range  # W² - |w_0|²
    return np.sqrt((square + growth) * growth / np.asarray(steps)) / lr
