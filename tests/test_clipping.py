"""Gradients are clipped by the norm that they would have with weight decay, converted ones and others together."""

import math
from itertools import islice, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from optimizer_runs import KINDS, SHAPES, Sphere, assert_close, direction, kinds, random_steps, seeds

from minibn import backend, nn, schedules
from minibn.equivalence import (
    adam_without_decay,
    add_weight_decay,
    clip_global_norm,
    converted_for,
    frame_after,
    optimizer_for,
    remove_weight_decay,
    texp_plus_plus,
    undecayed,
)
from minibn.optim import SGD, AdamStep, AdamW, Step


class WithHead(Sphere):
    """A scale-invariant layer and a head that is not: L = ξ · (1 + b) w / |w| + |b|² / 2."""

    def __init__(self, make, head, seed):
        super().__init__(make, seed)
        self.b = nn.Parameter(np.full(SHAPES[1], 0.1))
        self.head = head([self.b])

    def clipped(self, clip):
        norm = float(backend.norm([p.data for p in self.parameters]))
        self.backward()
        factor = 1 + self.b.data.sum()
        for p in self.parameters:
            p.grad = factor * p.grad
        self.b.grad = self.b.data + np.sum(self.parameters[1].data) / norm
        clip([self.optimizer, self.head])
        self.optimizer.step()
        self.head.step()


@settings(max_examples=6)
@given(kinds, seeds)
def test_clipping_by_the_norm_of_converted_and_other_gradients(kind, seed):
    steps, make = random_steps(kind, seed, 100), KINDS[kind][0]

    def head(p):
        return AdamW(p, repeat(AdamStep(1e-2, weight_decay=0.1)))

    usual, converted, naive = (WithHead(lambda p, f=f: f(make(p, steps)), head, seed)
                               for f in (lambda o: o, undecayed, undecayed))
    for _ in steps:
        usual.clipped(lambda optimizers: clip_global_norm(optimizers, 0.3))
        converted.clipped(lambda optimizers: clip_global_norm(optimizers, 0.3))
        naive.clipped(lambda optimizers: clip_global_norm(optimizers, 0.3, scales=[1.0, 1.0]))
        assert_close(converted.weight() * converted.optimizer.scale, usual.weight(), 1e-11)
        np.testing.assert_allclose(converted.b.data, usual.b.data, rtol=0, atol=1e-11)  # it begins with 0.1, and passes 0
    assert np.linalg.norm(naive.b.data - usual.b.data) > 1e-6


def test_clipping_with_a_converted_schedule_of_sgd():
    steps = [Step(0.1, 0.9, 0.02)] * 50
    usual, converted = (Sphere(lambda p, s=s: SGD(p, s), 0) for s in (steps, remove_weight_decay(steps)))
    for t in range(50):
        for run, scale in ((usual, 1.0), (converted, frame_after(steps, t).scale)):
            run.backward()
            clip_global_norm([run.optimizer], 0.5, scales=[scale])
            run.optimizer.step()
    assert_close(direction(converted), direction(usual))


@pytest.mark.parametrize("band", [2.0, None])
def test_a_converted_sgd_knows_its_scale(band):
    """With momentum and rescaled weights, where P is not the ratio of the weights' norms one step earlier."""
    steps = [Step(0.1, 0.5, 0.3)] * 50
    usual, converted = (Sphere(lambda p, f=f: f(p, steps), 0) for f in (SGD, lambda p, s: converted_for(p, s, band=band)))
    for t in range(50):
        assert converted.optimizer.scale == frame_after(steps, t, band=band).scale
        for run in (usual, converted):
            run.backward()
            clip_global_norm({"all": run.optimizer}, 0.5)
            run.optimizer.step()
    assert_close(direction(converted), direction(usual))
    assert converted.optimizer.scale < 0.2 if band is None else 0.5 <= converted.optimizer.scale <= 2


def test_a_converted_sgd_that_goes_on_from_a_state_knows_its_scale():
    steps = [Step(0.1, 0.5, 0.3)] * 50
    first, second = (converted_for([nn.Parameter(np.ones(2))], steps) for _ in range(2))
    for _ in range(9):
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.scale == first.scale == frame_after(steps, 9).scale < 1


@pytest.mark.parametrize("make", [
    lambda p: SGD(p, remove_weight_decay([Step(0.1, 0.9, 0.3)] * 9)), lambda p: SGD(p, texp_plus_plus([(9, 0.1)], momentum=0.0,
                                                                                                      weight_decay=0.1)),
    lambda p: optimizer_for(p, islice(remove_weight_decay([Step(0.1, 0.9, 0.3)] * 9), 5)),
    lambda p: SGD(p, add_weight_decay([Step(0.1)] * 9, 0.5)), lambda p: AdamW(p, adam_without_decay([AdamStep(0.1)] * 9))])
def test_an_optimiser_that_does_not_know_its_scale_is_not_clipped(make):
    """P = 1 would be another clip, without a word."""
    w = nn.Parameter(np.ones(2))
    optimizer = make([w])
    for _ in range(3):
        w.grad = np.array([3.0, 4.0])
        with pytest.raises(ValueError, match=r"follows a converted schedule, and does not know its P. Give scales"):
            clip_global_norm([optimizer], 1.0)
        np.testing.assert_array_equal(w.grad, [3, 4])
        assert clip_global_norm([optimizer], 1.0, scales=[0.5]) == 10
        optimizer.step()


def test_an_infinite_limit_only_measures(library):
    w = nn.Parameter(library.array(np.ones(2)))
    w.grad = given = library.array(np.array([3.0, 4.0]))
    assert float(clip_global_norm([SGD([w], schedules.constant(0.1))], math.inf)) == 5
    assert w.grad is given


def test_what_is_no_optimiser_is_named():
    with pytest.raises(TypeError, match="an item of optimizers must be an Optimizer, got 'all' of type str"):
        clip_global_norm(["all"], 1.0)
    with pytest.raises(TypeError, match="optimizers must be a list or a dict of optimisers, got .* of type SGD"):
        clip_global_norm(SGD([nn.Parameter(np.ones(2))], []), 1.0)


def test_a_gradient_of_none_is_refused_where_it_is_set():
    w = nn.Parameter(np.ones(2))
    with pytest.raises(TypeError, match="grad must be an array, to which backward adds; zero_grad.. sets it to zero"):
        w.grad = None
    np.testing.assert_array_equal(w.grad, [0, 0])


def test_clipping_is_torchs(library):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal((3, 2)), rng.standard_normal(4)]
    for max_norm in (0.5, 100.0):
        ours = [nn.Parameter(library.array(0 * g)) for g in gradients]
        theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in gradients]
        for p, q, g in zip(ours, theirs, gradients, strict=True):
            p.grad, q.grad = library.array(g), torch.tensor(g)
        norm = clip_global_norm([SGD(ours[:1], schedules.constant(0.1)), SGD(ours[1:], schedules.constant(0.1))], max_norm)
        total = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        assert float(norm) == pytest.approx(float(total), rel=1e-14)
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(backend.to_numpy(p.grad), q.grad.numpy(), rtol=5e-6)  # torch adds 1e-6 to the norm
    with pytest.raises(ValueError, match="max_norm above 0, got 0"):
        clip_global_norm([SGD(ours, [])], 0)
