"""Theorem B: decoupled weight decay is removed by multiplying the optimiser's state and constants. Not in the paper.

Theorem A, in `any_optimizer`, divides the gradients instead and leaves state and constants as they are.
"""

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from minibn import arguments


class Transport(NamedTuple):
    """What Theorem B says to multiply before a step: see `transport`."""

    state: dict[str, float]
    constants: dict[str, float]
    lr: float


def transport(state: Mapping[str, float], constants: Mapping[str, float], degree: float, *, previous: float, scale: float,
              after: float) -> Transport:
    """Theorem B: what to multiply in an optimiser of your own, given the gradients at w / P as they are.

    A state entry has the degree d if gradients c times as large make it c^d times as large: 1 for a mean of gradients, 2
    for a mean of squares. A constant has the degree of what it is compared with or added to: 1 for
    Adam's eps or a clipping threshold, 2 for an eps under the root, -1 for a length in the units of
    the weights (SAM's radius). The update u has the degree k: 1 for SGD, 0 for Adam. If u depends
    on the weights, too, make the weights c times as large and the gradients c times as small: u is
    then multiplied by c^-k (k = -1 for a trust ratio). Then, before each step,

        state_i <- (P / P_previous)^d_i state_i        constant_i <- P^d_i constant_i        lr = η / (P^k P')

    and without weight decay the optimiser trains the same scale-invariant network. Proof: s = P_previous^-d s̃ and
    g = g̃ / P give s' = P^-d s̃' and u = P^-k ũ; divide the update by P'.

    Args:
        state: {name of a state entry: its degree}.
        constants: {name of a constant: its degree}.
        degree: k.
        previous: P at the previous step's gradient; at the first step the same as `scale`.
        scale: P at this step's gradient.
        after: P' = (1 - lr * weight_decay) P.

    Returns:
        Transport(state, constants, lr): factors, by name, and the factor of lr.

    Example:
        >>> transport({"mean": 1, "square": 2}, {"eps": 1}, 0, previous=1.0, scale=0.5, after=0.25)
        Transport(state={'mean': 0.5, 'square': 0.25}, constants={'eps': 0.5}, lr=4.0)
    """
    degree = arguments.number("degree", degree)
    scale, previous, after = (arguments.number(*item) for item in [("scale", scale), ("previous", previous), ("after", after)])
    if not (0 < scale < inf and 0 < previous < inf and 0 < after < inf):
        raise ValueError(f"scale, previous and after must be finite numbers above 0, got {scale}, {previous} and {after}")
    ratio = scale / previous
    return Transport({name: ratio**d for name, d in state.items()}, {name: scale**d for name, d in constants.items()},
                     1 / (scale**degree * after))
