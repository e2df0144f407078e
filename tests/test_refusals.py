"""Every error of `optim`, `equivalence` and `invariance` says in full what was given, what was needed, what to do."""

import ast
import math
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
from optimizer_runs import Sphere
from own_optimizers import AnyStep, Cautious, CoupledAdam, CoupledSign, InsideRatio

from minibn import equivalence, invariance, kernels, nn, optim
from minibn.equivalence import (
    Frame,
    adam_exponential,
    adam_with_decay,
    adam_without_decay,
    add_weight_decay,
    clip_global_norm,
    converted_for,
    ema,
    exponential_equivalent,
    fixed_point,
    frame_after,
    instant_drops,
    lion_with_decay,
    lion_without_decay,
    optimizer_for,
    remove_weight_decay,
    scale_after,
    swa,
    texp,
    texp_minus_minus,
    transport,
    undecayed,
)
from minibn.equivalence.any_optimizer import reframe
from minibn.equivalence.methods import METHODS
from minibn.equivalence.streams import add_step, remove_step
from minibn.invariance import probe, symmetries
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Optimizer, Step


def parameter(shape=2, dtype="float64"):
    return nn.Parameter(np.ones(shape, dtype))


def take(schedule):
    return list(islice(schedule, 5000))


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


def step_with_decay(make):
    Sphere(lambda p: undecayed(make(p, [AnyStep(0.1, 0.1)])), 0).step()


def endless(kind, step):
    run = undecayed(kind([parameter((2, 2))], repeat(step)), band=None)
    for _ in range(5000):
        run.step()
        run.parameters[0].data = np.ones((2, 2))  # it would overflow too


class Act(nn.ReLU):
    def forward(self, x):
        return x


def linear():
    return symmetries(nn.Sequential(nn.Linear(2, 2, rng=np.random.default_rng(0))))


REFUSED = [
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
    (lambda: take(lion_without_decay([LionStep(0.1), 0.5])), TypeError,
     "step 1 of the schedule must be of the class LionStep, got 0.5 of type float"),
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
    (lambda: loaded({"steps": 3, **STATE}, [Step(0.1)]), ValueError,
     "the schedule has 1 steps, but the state was saved after 3"),
    (lambda: Muon([parameter((2, 3)), parameter(3)], []), ValueError,
     "Muon trains matrices and convolution kernels; parameter 1 is Parameter(shape=(3,), dtype=float64). Give biases, "
     "gains and other vectors to an AdamW of their own"),
    (lambda: take(remove_weight_decay([Step(0.1), Step(2.0, 0.5, 0.5, shrink=0.125)])), ValueError,
     "step 1 cannot be converted: weight decay would carry the weights through zero, multiplying them by alpha=-0.125,"
     " which must be above 0 (lr=2.0, momentum=0.5, weight_decay=0.5, shrink=0.125). Lower the learning rate or the "
     "weight decay"),
    (lambda: remove_step(Step(2.0, 0.0, 0.5), Frame()), ValueError,
     "step 0 cannot be converted: weight decay would carry the weights through zero, multiplying them by alpha=0, wh"
     "ich must be above 0 (lr=2.0, momentum=0.0, weight_decay=0.5, shrink=0.0). Lower the learning rate or the weight"
     " decay"),
    (lambda: add_step(Step(0.1, weight_decay=0.1), Frame(), 0.1), ValueError,
     "step 0 already has weight_decay=0.1, shrink=0.0: apply remove_weight_decay first"),
    (lambda: reframe(Step(0.1, weight_decay=0.1), 1.0), ValueError,
     "step 0 has weight_decay=0.1. In a Step that is L2 decay, which is inside the velocity. Convert the schedule wit"
     "h equivalence.remove_weight_decay(schedule), which is exact too, or make the decay decoupled with schedules.deco"
     "upled(schedule)"),
    (lambda: remove_weight_decay([], band=1), ValueError,
     "band must be a finite number above 1, or None for no rescaling; got 1"),
    (lambda: frame_after([Step(0.1)] * 3, 4), ValueError,
     "the schedule has 3 steps, there is no frame after 4"),
    (lambda: frame_after([], 0, band=math.inf), ValueError,
     "band must be a finite number above 1, or None for no rescaling; got inf"),
    (lambda: take(remove_weight_decay(repeat(Step(0.5, 0, 0.5)), band=None)), OverflowError,
     "step 1235: the converted learning rate has left float range (the weights would be 5.02e-155 times smaller with "
     "weight decay); use band=2.0**32, the default"),
    (lambda: take(add_weight_decay([Step(0.1), Step(0.1, weight_decay=0.1)], 0.1)), ValueError,
     "step 1 already has weight_decay=0.1, shrink=0.0: apply remove_weight_decay first"),
    (lambda: take(add_weight_decay([Step(0.1, shrink=0.1)], 0.1)), ValueError,
     "step 0 already has weight_decay=0.0, shrink=0.1: apply remove_weight_decay first"),
    (lambda: add_weight_decay([], -0.1), ValueError,
     "Step needs 0 <= weight_decay < inf; got weight_decay=-0.1"),
    (lambda: add_weight_decay([], 0.1, shrink=1.0), ValueError,
     "Step needs 0 <= shrink < 1; got shrink=1.0"),
    (lambda: take(add_weight_decay([Step(0.1, 0.9), Step(0.1, 0.9, kick=200.0)], repeat(0))), ValueError,
     "step 1 (lr=0.1, momentum=0.9, lookahead=0.0) has no equal with weight_decay=0.0, shrink=0.0; give a smaller "
     "weight decay"),
    (lambda: fixed_point(0.1, 1.0, 0.0), ValueError,
     "momentum must be below 1, got 1.0"),
    (lambda: fixed_point(0.1, 0.9, 0.1), ValueError,
     "no exponential schedule matches lr=0.1, momentum=0.9, weight_decay=0.1: lr * weight_decay = 0.01 is above (1 - "
     "sqrt(momentum))**2 = 0.002633, where weight decay makes the weights oscillate through zero. Lower the learning "
     "rate, the momentum or the weight decay."),
    (lambda: fixed_point(1.0, 0.0, 1.0), ValueError,
     "no exponential schedule matches lr=1.0, momentum=0.0, weight_decay=1.0: the weights would be zero after one "
     "step. Lower the learning rate or the weight decay."),
    (lambda: fixed_point(-0.1, 0.9, 0.1), ValueError,
     "Step needs 0 <= lr < inf; got lr=-0.1"),
    (lambda: texp([], momentum=0.9, weight_decay=0.0), ValueError,
     "phases must be a list of (steps, lr) with whole numbers of steps of at least 1, got []"),
    (lambda: texp([(1.5, 0.1)], momentum=0.9, weight_decay=0.0), ValueError,
     "phases must be a list of (steps, lr) with whole numbers of steps of at least 1, got [(1.5, 0.1)]"),
    (lambda: texp_minus_minus([(1, 0.0)], momentum=0.9, weight_decay=0.0), ValueError,
     "texp_minus_minus needs a first lr above 0, got 0.0"),
    (lambda: instant_drops([(1, 0.0)], momentum=0.9, weight_decay=0.0), ValueError,
     "instant_drops needs a first lr above 0, got 0.0"),
    (lambda: take(exponential_equivalent(0.5, 0.0, 0.5)), OverflowError,
     "the exponential schedule has left float range; remove_weight_decay(schedule), with its default band, has no such"
     " limit"),
    (lambda: take(adam_without_decay([AdamStep(0.1), AdamStep(2.0, weight_decay=0.5)])), ValueError,
     "step 1 cannot be converted: its weight decay would carry the weights through zero, multiplying them by 0. lr * "
     "weight_decay must be below 1; lower one of them (AdamStep(lr=2.0, beta1=0.9, beta2=0.999, eps=1e-08, "
     "weight_decay=0.5))"),
    (lambda: adam_exponential(2.0, 0.5), ValueError,
     "step 0 cannot be converted: its weight decay would carry the weights through zero, multiplying them by 0. lr * "
     "weight_decay must be below 1; lower one of them (AdamStep(lr=2.0, beta1=0.9, beta2=0.999, eps=1e-08, "
     "weight_decay=0.5))"),
    (lambda: take(adam_with_decay([AdamStep(0.1), AdamStep(0.1, weight_decay=0.1)], 0.1)), ValueError,
     "step 1 already has weight_decay=0.1: apply adam_without_decay first"),
    (lambda: take(adam_without_decay(repeat(AdamStep(1.0, weight_decay=0.5)))), OverflowError,
     "step 1022: the converted learning rate has left float range (the weights would be 2.23e-308 times smaller with "
     "weight decay); use equivalence.undecayed(optimizer), which rescales the weights"),
    (lambda: take(adam_exponential(1.0, 0.5)), OverflowError,
     "step 1022: the exponential schedule has left float range; equivalence.undecayed(optimizer) rescales the weights "
     "and has no such limit"),
    (lambda: take(lion_with_decay([LionStep(0.1), LionStep(0.1, weight_decay=1.0)], 0.5)), ValueError,
     "step 1 already has weight_decay=1.0: apply lion_without_decay first"),
    (lambda: take(lion_without_decay(repeat(LionStep(0.5, weight_decay=1.9)))), OverflowError,
     "step 237: the converted learning rate has left float range (the weights would be 4.53e-309 times smaller with "
     "weight decay); use equivalence.undecayed(optimizer), which rescales the weights"),
    (lambda: take(lion_without_decay([LionStep(0.1), LionStep(1.0, weight_decay=1.0)])), ValueError,
     "step 1 cannot be converted: its weight decay would carry the weights through zero, multiplying them by 0. lr * "
     "weight_decay must be below 1; lower one of them (LionStep(lr=1.0, beta1=0.9, beta2=0.99, weight_decay=1.0))"),
    (lambda: ema(1.5, 0.0, 1.0, 0.0, 1.0), ValueError,
     "mu must lie between 0 and 1, got 1.5"),
    (lambda: ema(-0.5, 0.0, 1.0, 0.0, 1.0), ValueError,
     "mu must lie between 0 and 1, got -0.5"),
    (lambda: ema(0.5, 0.0, 0.0, 0.0, 1.0), ValueError,
     "the average's scale must be a finite number above 0, as the `scale` of an optimiser is, got 0.0"),
    (lambda: transport({}, {}, 1, previous=1.0, scale=1.0, after=0.0), ValueError,
     "scale, previous and after must be finite numbers above 0, got 1.0, 1.0 and 0.0"),
    (lambda: swa(0, 0.0, 1.0, 0.0, 1.0), ValueError,
     "count must be a whole number of at least 1, got 0"),
    (lambda: clip_global_norm([SGD([parameter()], [])], 0), ValueError,
     "clip_global_norm needs max_norm above 0, got 0"),
    (lambda: undecayed(undecayed(Lion([parameter()], []))), TypeError,
     "this optimiser is converted already: use its add() to go back first"),
    (lambda: undecayed(Lion([parameter()], []), band=1.0), ValueError,
     "band must be a finite number above 1, or None for no rescaling; got 1.0"),
    (lambda: endless(Lion, LionStep(1.0, weight_decay=0.9)), OverflowError,
     "step 308: the converted learning rate has left float range; use band=2.0**32, the default"),
    (lambda: scale_after([LionStep(0.1)] * 2, 3), ValueError,
     "the schedule has 2 steps, there is no scale after 3"),
    (lambda: scale_after([], 1), ValueError,
     "the schedule has 0 steps, there is no scale after 1"),
    (lambda: scale_after([LionStep(0.1), LionStep(2.0, weight_decay=1.0)], 2), ValueError,
     "step 1 cannot be converted: its weight decay would carry the weights through zero, multiplying them by -1. lr * "
     "weight_decay must be below 1; lower one of them (LionStep(lr=2.0, beta1=0.9, beta2=0.99, weight_decay=1.0))"),
    (lambda: step_with_decay(CoupledAdam), ValueError,
     "CoupledAdam adds weight decay to its gradients (L2): decay is in its averages and changes the direction of its "
     "update. That cannot be removed. Use decoupled decay, as AdamW has it"),
    (lambda: step_with_decay(CoupledSign), ValueError,
     "the weight decay of CoupledSign does not multiply all weights by 1 - lr * weight_decay. Decay inside a trust "
     "ratio, or of some entries alone, cannot be removed. Use decoupled decay, as AdamW has it"),
    (lambda: step_with_decay(InsideRatio), ValueError,
     "the update of InsideRatio depends on the weights, as a trust ratio does (LARS, LAMB), so it is not the same at w"
     " / P. Decay inside the ratio cannot be removed. Decay outside it can: train without decay at lr / (1 - lr * "
     "weight_decay), with the state multiplied as `equivalence.transport` says"),
    (lambda: step_with_decay(Cautious), ValueError,
     "the weight decay of Cautious does not multiply all weights by 1 - lr * weight_decay. Decay inside a trust ratio,"
     " or of some entries alone, cannot be removed. Use decoupled decay, as AdamW has it"),
    (lambda: optimizer_for([parameter()], []), ValueError,
     "the schedule has no steps; give one with a step for each update"),
    (lambda: converted_for([parameter()], [0.1]), TypeError,
     "a schedule has step objects (Step, AdamStep, LionStep, MuonStep); this one has 0.1"),
    (lambda: METHODS["muon"].remove([MuonStep(0.1)]), ValueError,
     "Muon without weight decay is not a schedule of lr and momentum: its momentum acts in the average and in "
     "Nesterov's step from it, and these would have to become two different numbers. Convert the optimiser instead: "
     "equivalence.undecayed(Muon(parameters, schedule)), training.convert, or in PyTorch "
     "minibn.pytorch.remove_weight_decay; all are exact"),
    (lambda: probe(lambda p: 0.0, {"w": np.ones(1), "v": np.ones(1)}, ["u", "w", "a"]), ValueError,
     "no parameters named ['a', 'u']; there are ['w', 'v']"),
    (lambda: probe(lambda p: 0.0, {"w": np.ones(1)}, scales=[1.0]), ValueError,
     "probe needs scales above 0 and other than 1, got 1.0"),
    (lambda: probe(lambda p: 0.0, {"w": np.ones(1)}, scales=[]), ValueError,
     "probe needs at least one scale to try, got none"),
    (lambda: symmetries(Act()), TypeError,
     "the network has the type Act, which has a forward of its own but inherits the degree of ReLU: that says how another "
     "function scales. Define degree(x) in Act too (if it scales in the same way, `degree = ReLU.degree`), and check "
     "it by minibn.testing.check_degree"),
    (lambda: symmetries(nn.Sequential(nn.Flatten(), act=Act())), TypeError,
     "act has the type Act, which has a forward of its own but inherits the degree of ReLU: that says how another function "
     "scales. Define degree(x) in Act too (if it scales in the same way, `degree = ReLU.degree`), and check it by "
     "minibn.testing.check_degree"),
    (lambda: linear().is_scale_invariant(["b", "a", "0.bias"]), ValueError,
     "no parameters named ['a', 'b']; there are ['0.weight', '0.bias']"),
    (lambda: kernels.threads(0).__enter__(), ValueError,
     "threads: count must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_the_message_in_full(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_every_refusal_of_the_source_is_in_the_table():
    missing = {(file, node.lineno): node for package in (optim, equivalence, invariance)
               for file in Path(package.__file__).parent.glob("*.py")
               for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)}
    assert len(missing) > 40
    for call, error, _ in REFUSED:
        with pytest.raises(error) as raised:
            call()
        last = raised.traceback[-1]
        for (file, line), node in list(missing.items()):
            if file == Path(last.path) and line <= last.lineno + 1 <= node.end_lineno:
                del missing[file, line]
    assert not missing, sorted(missing)
