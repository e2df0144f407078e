"""Gradients are clipped by the norm that they would have with weight decay, converted ones and others together."""

from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from optimizer_runs import KINDS, SHAPES, Sphere, assert_close, direction, kinds, random_steps, seeds

from minibn import backend, nn, schedules
from minibn.equivalence import clip_global_norm, frame_after, remove_weight_decay, undecayed
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
