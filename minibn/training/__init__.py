"""Training: the loop, what it measures, checkpoints, evaluation, and the conversion of a model.

Read `loop` first: one training step is its first function. `convert` makes the two optimisers of a
converted run.
"""

from minibn.training.convert import Conversion, convert, split
from minibn.training.evaluation import evaluate, predict, update_bn
from minibn.training.history import History
from minibn.training.loop import fit, train_step
from minibn.training.recorder import DivergenceError

__all__ = ["Conversion", "DivergenceError", "History", "convert", "evaluate", "fit", "predict", "split", "train_step",
           "update_bn"]
