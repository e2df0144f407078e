"""The theorem: rewrite one schedule as another that trains a scale-invariant network in the same way.

Li & Arora, *An Exponential Learning Rate Schedule for Deep Learning*, ICLR 2020 ("the paper"): if
the loss does not depend on the scale of the weights, SGD with weight decay equals SGD without, at a
learning rate that grows exponentially. `streams` derives and converts any schedule of SGD;
`closed_forms` has the schedules that the paper names.

For other optimisers, the theorems are not in the paper. `any_optimizer` removes decoupled weight
decay from any optimiser. `adam` turns AdamW into a schedule for stock Adam, and `lion` turns Lion
with weight decay into a schedule for stock Lion. `methods` is the table of all optimisers.
`averages` and `clipping` convert what else depends on the scale of the weights.
"""

from minibn.equivalence.adam import AdamFrame, adam_exponential, adam_with_decay, adam_without_decay
from minibn.equivalence.any_optimizer import Reframed, decayed, scale_after, undecayed
from minibn.equivalence.averages import ema, lookahead, swa
from minibn.equivalence.clipping import clip_global_norm
from minibn.equivalence.closed_forms import (
    exponential_equivalent,
    fixed_point,
    instant_drops,
    texp,
    texp_minus_minus,
    texp_plus_plus,
)
from minibn.equivalence.lion import LionFrame, lion_with_decay, lion_without_decay
from minibn.equivalence.methods import Method, converted_for, optimizer_for
from minibn.equivalence.state_transport import Transport, transport
from minibn.equivalence.streams import Frame, add_weight_decay, frame_after, remove_weight_decay

__all__ = ["AdamFrame", "Frame", "LionFrame", "Method", "Reframed", "Transport", "adam_exponential", "adam_with_decay",
           "adam_without_decay", "add_weight_decay", "clip_global_norm", "converted_for", "decayed", "ema",
           "exponential_equivalent", "fixed_point", "frame_after", "instant_drops", "lion_with_decay", "lion_without_decay",
           "lookahead", "optimizer_for", "remove_weight_decay", "scale_after", "swa", "texp", "texp_minus_minus",
           "texp_plus_plus", "transport", "undecayed"]
