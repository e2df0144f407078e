"""Which weights may be rescaled without changing the network.

`symmetries` finds them from the network's layers, exactly; `probe` measures any function of a dict
of arrays.
"""

from minibn.invariance.elimination import null_space
from minibn.invariance.function import loss_function
from minibn.invariance.measured import Probe, probe
from minibn.invariance.static import Symmetries, symmetries

__all__ = ["Probe", "Symmetries", "loss_function", "null_space", "probe", "symmetries"]
