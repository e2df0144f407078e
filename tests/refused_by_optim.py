"""What `minibn.optim` refuses, as calls, errors and messages in full."""

from copy import deepcopy
from itertools import repeat

import numpy as np

from minibn import nn
from minibn.optim import SGD, AdamStep, AdamW, LionStep, Muon, Optimizer, Step


def parameter(shape=2, dtype="float64"):
    return nn.Parameter(np.ones(shape, dtype))


def with_gradient(g):
    w = parameter(3, "float32")
    w.grad = g
    SGD([parameter(2, "float32"), w], [Step(0.1)]).step()


def twice():
    w = parameter()
    SGD([parameter(), parameter(3), w, w], [])


STATE = {"velocity/0": np.ones(2), "velocity/1": np.ones(3)}


def loaded(state, schedule=(), taken=0, shape=2):
    sgd = SGD([parameter(shape), parameter(3)], schedule)
    for _ in range(taken):
        sgd.step()
    sgd.load_state_dict(state)


OPTIM = [
    (lambda: Step(-0.1), ValueError,
     "Step needs 0 <= lr < inf; got lr=-0.1"),
    (lambda: Step(0.1, lookahead=-1), ValueError,
     "Step needs -1 < lookahead < inf; got lookahead=-1.0"),
    (lambda: AdamStep(0.1, 1.0), ValueError,
     "AdamStep needs 0 <= beta1 < 1; got beta1=1.0"),
    (lambda: Step(0.1, rescale=3.0), ValueError,
     "Step needs a power of two as rescale; got rescale=3.0"),
    (lambda: SGD([], []), ValueError,
     "SGD needs at least one parameter"),
    (twice, ValueError,
     "SGD: parameters 2 and 3 are the same Parameter(shape=(2,), dtype=float64), which would be updated twice per "
     "step. Give each parameter once"),
    (lambda: SGD([parameter(), parameter(3, "int64")], []), TypeError,
     "SGD trains floating-point weights; parameter 1 is Parameter(shape=(3,), dtype=int64). Convert its data to "
     "float32 or float64"),
    (lambda: Optimizer.update(SGD([parameter()], []), Step(0.1), 0, 0), TypeError,
     "SGD must define update(step, weight, gradient, *state)"),
    (lambda: SGD([0.5], []), TypeError,
     "SGD: parameters must be a list of nn.Parameter, as from module.parameters(); item 0 is 0.5 of type float"),
    (lambda: SGD([parameter()], []).step(), RuntimeError,
     "the schedule ended after 0 steps; train for fewer steps or give SGD a longer one"),
    (lambda: AdamW([parameter()], [LionStep(0.1)]).step(), TypeError,
     "AdamW needs a schedule of AdamStep; step 0 is LionStep(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0)"),
    (lambda: with_gradient(np.ones(3)), TypeError,
     "SGD: the gradient of parameter 1 is float64, its weights are float32. Compute the gradient in the dtype of the "
     "weights"),
    (lambda: with_gradient(np.ones(1, "float32")), ValueError,
     "SGD: the gradient of parameter 1 has the shape (1,), its weights have (3,)"),
    (lambda: loaded({}, repeat(Step(0.1)), taken=2), RuntimeError,
     "load_state_dict needs a fresh SGD with a fresh schedule; this one has taken 2 steps"),
    (lambda: loaded({"steps": 1, "mean/0": 0}), ValueError,
     "the state has mean/0, steps; SGD with 2 parameters needs steps, velocity/0, velocity/1"),
    (lambda: loaded({}), ValueError,
     "the state has nothing; SGD with 2 parameters needs steps, velocity/0, velocity/1"),
    (lambda: loaded({"steps": 0, **STATE}, shape=4), ValueError,
     "the state's velocity/0 has the shape (2,); SGD needs (4,)"),
    (lambda: deepcopy(SGD([parameter()], (step for step in [Step(0.1)]))), TypeError,
     "SGD cannot be copied, since its schedule cannot (cannot pickle 'generator' object); make another with a schedule of its "
     "own, and give it this one's state by load_state_dict(state_dict())"),
    (lambda: loaded({"steps": 3, **STATE}, [Step(0.1)]), ValueError,
     "the schedule has 1 steps, but the state was saved after 3"),
    (lambda: Muon([parameter((2, 3)), parameter(3)], []), ValueError,
     "Muon trains matrices and convolution kernels; parameter 1 is Parameter(shape=(3,), dtype=float64). Give biases, "
     "gains and other vectors to an AdamW of their own"),
]
