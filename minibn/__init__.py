"""minibn: weight decay, momentum, learning-rate schedules and normalisation, in code to be read.

A NumPy layer library with hand-written backward passes, built around the theorem of Li & Arora, *An Exponential
Learning Rate Schedule for Deep Learning* (ICLR 2020): see `minibn.equivalence`.
"""

from minibn import backend, data, equivalence, invariance, kernels, models, monitor, nn, optim, schedules, training
from minibn.kernels import plain, threads
from minibn.optim import SGD, Step

__all__ = ["SGD", "Step", "backend", "data", "equivalence", "invariance", "kernels", "models", "monitor", "nn", "optim",
           "plain", "schedules", "threads", "training"]
