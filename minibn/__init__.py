"""minibn: how weight decay, momentum and learning rate act on normalised networks, in code to be read.

A NumPy layer library with hand-written backward passes, built around the theorem of Li & Arora, *An
Exponential Learning Rate Schedule for Deep Learning* (ICLR 2020): see `minibn.equivalence`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("minibn")
except PackageNotFoundError:  # read from a folder that was not installed
    __version__ = "0+unknown"

from minibn import backend, data, equivalence, invariance, kernels, models, monitor, nn, optim, schedules, training
from minibn.kernels import plain, threads
from minibn.optim import SGD, Step

__all__ = ["SGD", "Step", "__version__", "backend", "data", "equivalence", "invariance", "kernels", "models", "monitor", "nn",
           "optim", "plain", "schedules", "threads", "training"]
