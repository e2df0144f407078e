"""The theorem: rewrite one schedule as another that trains a scale-invariant network in the same way.

Li & Arora, *An Exponential Learning Rate Schedule for Deep Learning*, ICLR 2020 ("the paper"): where the loss does not
depend on the scale of the weights, SGD with weight decay is SGD without, at a learning rate that grows exponentially.
`streams` derives and converts any schedule; `closed_forms` has the schedules that the paper names.
"""

from minibn.equivalence.closed_forms import (
    exponential_equivalent,
    fixed_point,
    instant_drops,
    texp,
    texp_minus_minus,
    texp_plus_plus,
)
from minibn.equivalence.streams import Frame, add_weight_decay, frame_after, remove_weight_decay

__all__ = ["Frame", "add_weight_decay", "exponential_equivalent", "fixed_point", "frame_after", "instant_drops",
           "remove_weight_decay", "texp", "texp_minus_minus", "texp_plus_plus"]
