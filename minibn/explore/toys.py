"""Two small losses that depend on the direction of the weights only, with their gradients written out.

Both are scale-invariant, L(c w) = L(w), as the loss of a normalised network is. So the gradient is
at a right angle to the weights, and 1/c times as large at c w.

    landscape    two weights, to draw: the loss is a function of the angle of w
    noise        many weights, L_t(w) = <ξ_t, w> / |w| with a new random ξ_t at each step: a gradient that is all noise,
                 as late in training
"""

from functools import cache

import numpy as np

START = np.array([-0.35, 1.1])  # of the two weights
BEST = 0.6  # the angle, in radians, at which the landscape is lowest


def landscape(angle: np.ndarray) -> np.ndarray:
    """The loss of two weights at the angle φ (radians): `1 - cos(φ - φ*) + 0.3 sin²(2(φ - φ*))`, φ* = `BEST`.

    Example:
        >>> float(landscape(BEST)), float(landscape(BEST + np.pi))
        (0.0, 2.0)
    """
    away = np.asarray(angle) - BEST
    return 1 - np.cos(away) + 0.3 * np.sin(2 * away) ** 2


def landscape_gradient(w: np.ndarray) -> np.ndarray:
    """dL/dw of `landscape` at two weights w, an array of two numbers in any shape.

    The angle φ of w has the gradient (-w_2, w_1) / |w|², and dL/dφ = sin(φ - φ*) + 0.6
    sin(4(φ - φ*)).

    Example:
        >>> w = np.array([3.0, 4.0])
        >>> bool(abs(w @ landscape_gradient(w)) < 1e-15), landscape_gradient(w) / landscape_gradient(2 * w)
        (True, array([2., 2.]))
    """
    x, y = w.reshape(-1)
    away = np.arctan2(y, x) - BEST
    slope = np.sin(away) + 0.6 * np.sin(4 * away)
    return (slope / (x * x + y * y) * np.array([-y, x])).reshape(w.shape)


@cache
def draws(steps: int, size: int, seed: int = 0) -> np.ndarray:
    """ξ of `noise_gradient` for each step, (steps, size): normal, and so long that E |∇L_t|² |w|² = 1.

    Example:
        >>> draws(200, 64).shape, round(float(np.mean(np.sum(draws(200, 64) ** 2, axis=1))), 1)
        ((200, 64), 1.0)
    """
    xi = np.random.default_rng(seed).standard_normal((steps, size)) / np.sqrt(size - 1)
    xi.flags.writeable = False
    return xi


def noise_gradient(w: np.ndarray, xi: np.ndarray) -> np.ndarray:
    """dL/dw of L(w) = <ξ, w> / |w|: the part of ξ at a right angle to w, divided by |w|.

    Args:
        w: weights, of any shape.
        xi: ξ, as many numbers.

    Example:
        >>> noise_gradient(np.array([2.0, 0.0]), np.array([5.0, 3.0]))
        array([0. , 1.5])
    """
    flat = w.reshape(-1)
    square = flat @ flat
    return ((xi - (xi @ flat) / square * flat) / np.sqrt(square)).reshape(w.shape)
