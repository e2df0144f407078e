"""Which weights may be rescaled without changing the network: from its layers, exactly (`static`), and measured (`measured`)."""

from minibn.invariance.measured import Probe, loss_function, probe
from minibn.invariance.static import Symmetries, null_space, symmetries

__all__ = ["Probe", "Symmetries", "loss_function", "null_space", "probe", "symmetries"]
