"""What `minibn.equivalence` refuses, as calls, errors and messages in full."""

import math
from itertools import islice, repeat

import numpy as np
from optimizer_runs import Sphere
from own_optimizers import AnyStep, Cautious, CoupledAdam, CoupledSign, InsideRatio
from refused_by_optim import parameter

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
from minibn.optim import SGD, AdamStep, Lion, LionStep, MuonStep, Step


def take(schedule):
    return list(islice(schedule, 5000))


def step_with_decay(make):
    Sphere(lambda p: undecayed(make(p, [AnyStep(0.1, 0.1)])), 0).step()


def endless(kind, step):
    run = undecayed(kind([parameter((2, 2))], repeat(step)), band=None)
    for _ in range(5000):
        run.step()
        run.parameters[0].data = np.ones((2, 2))  # it would overflow too


EQUIVALENCE = [
    (lambda: take(lion_without_decay([LionStep(0.1), 0.5])), TypeError,
     "step 1 of the schedule must be of the class LionStep, got 0.5 of type float"),
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
    (lambda: clip_global_norm([SGD([parameter()], remove_weight_decay([]))], 1.0), ValueError,
     "clip_global_norm: this SGD follows a converted schedule, and does not know its P. Give scales, with frame_after(schedule, "
     "steps).scale for it, or make it with training.convert or equivalence.converted_for"),
    (lambda: undecayed(Lion([parameter()], [])).load_state_dict({"scale": -1.0}), ValueError,
     "the state's scale must be a finite number above 0, got -1.0"),
    (lambda: undecayed(Lion([parameter()], [])).load_state_dict({"scale": float("nan")}), ValueError,
     "the state's scale must be a finite number above 0, got nan"),
    (lambda: list(texp([(float("inf"), 0.1), (2, 0.01)], momentum=0.0, weight_decay=0.0)), ValueError,
     "phases after an endless one are never reached; give the others a number of steps, got [(inf, 0.1), (2, 0.01)]"),
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
]
