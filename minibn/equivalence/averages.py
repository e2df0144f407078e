"""Averages of weights (EMA, SWA, Lookahead) of a run without weight decay. Not in the paper.

Let w = P w̃ be the weights of the run with weight decay, and w' = P' w̃' the weights after a step.
The average of the run is E' = μ E + (1 - μ) w'. P shrinks, so an average of w̃ with the same μ
would give late weights more weight. Give the average a scale Q of its own, E = Q Ẽ, and insert:

    Q' = μ Q + (1 - μ) P'        μ̃ = μ Q / Q'        Ẽ' = μ̃ Ẽ + (1 - μ̃) w̃'

So the converted run averages with μ̃ instead of μ. Ẽ differs from E by its scale alone, on which a
scale-invariant network does not depend. Start with Ẽ = w̃ and Q = P. P is the `scale` of
`undecayed`, or `frame_after(…).scale`.

Example: an exponential average of the weights of a converted optimiser, after each of its steps

    average.weight, average.scale = ema(0.999, average.weight, average.scale, w.data,
    optimizer.scale)
"""

import math

from minibn import arguments
from minibn.backend import Array


def ema(mu: float, average: Array, average_scale: float, weight: Array, scale: float) -> tuple[Array, float]:
    """Exponential moving average: (Ẽ', Q') from Ẽ, Q, the converted weights w̃' and their P'.

    Args:
        mu: μ, from 0 to 1: what the average keeps.
        average, average_scale: Ẽ and Q; the first time a copy of w̃ and P.
        weight, scale: w̃' and P', after the step. With scales of 1 it is the ordinary average.

    Example:
        >>> ema(0.5, 6.0, 1.0, 6.0, 0.5)  # of w = 6 and 3, which is 4.5 = 0.75 · 6
        (6.0, 0.75)
    """
    mu = _share("mu", mu)
    average_scale, scale = _scale("the average's scale", average_scale), _scale("scale", scale)
    new_scale = mu * average_scale + (1 - mu) * scale
    mu = mu * average_scale / new_scale
    return mu * average + (1 - mu) * weight, new_scale


def swa(count: int, average: Array, average_scale: float, weight: Array, scale: float) -> tuple[Array, float]:
    """Stochastic weight averaging (Izmailov et al., 2018), the plain mean: (Ẽ', Q') with w̃' as the `count`-th weights.

    `ema` with μ = 1 - 1/count. Arguments and result are those of `ema`; count is 1 for the first
    weights.

    Example:
        >>> swa(1, 0.0, 1.0, 8.0, 0.5)
        (8.0, 0.5)
    """
    count = arguments.whole("count", count, 1)
    return ema(1 - 1 / count, average, average_scale, weight, scale)


def lookahead(alpha: float, slow: Array, slow_scale: float, weight: Array, scale: float) -> tuple[Array, float]:
    """Lookahead (Zhang et al., 2019) at a synchronisation: the new (w̃, P) of both the slow and the fast weights.

        P_new = (1 - α) P_slow + α P        α̃ = α P / P_new        w̃ <- (1 - α̃) w̃_slow + α̃ w̃

    `ema` with μ = 1 - α. Then put the result into the parameters, and P_new into the optimiser's
    `scale`.

    Args:
        alpha: α, from 0 to 1.
        slow, slow_scale: the slow weights and their P, from the last synchronisation.
        weight, scale: the fast weights and their P.

    Example:
        >>> lookahead(0.5, 6.0, 1.0, 6.0, 0.5)
        (6.0, 0.75)
    """
    return ema(1 - _share("alpha", alpha), slow, slow_scale, weight, scale)


def _share(name, value):
    if not 0 <= arguments.number(name, value) <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    return float(value)


def _scale(name, value):
    if not 0 < arguments.number(name, value) < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, as the `scale` of an optimiser is, got {value}")
    return float(value)
