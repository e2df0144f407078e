"""Optimisers: one file per method, its equation in the docstring and, as code, in the function `update` of that file.

`base` has what all of them share. An optimiser is constructed as `SGD(parameters, schedule)`, where
`schedule` is an iterable of step objects; each `step()` draws one of them.
"""

from minibn.optim.adamw import AdamStep, AdamW
from minibn.optim.base import Optimizer, StepNumbers
from minibn.optim.lion import Lion, LionStep
from minibn.optim.muon import Muon, MuonStep
from minibn.optim.sgd import SGD, Schedule, Step, update

__all__ = ["SGD", "AdamStep", "AdamW", "Lion", "LionStep", "Muon", "MuonStep", "Optimizer", "Schedule", "Step", "StepNumbers",
           "update"]
