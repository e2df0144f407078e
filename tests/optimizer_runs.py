"""Runs of every optimiser on a scale-invariant loss, random schedules for them, and how two runs are compared."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from minibn import backend, nn
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Step

seeds = st.integers(0, 2**32 - 1)


def sgd_step(rng, lr, shrink):
    return Step(lr, rng.uniform(0, 0.95), shrink=shrink, lookahead=rng.choice([0.0, 0.5]), kick=rng.choice([0.0, 1e-2]),
                rescale=rng.choice([0.5, 1.0, 2.0]))


KINDS = {
    "sgd": (SGD, sgd_step),
    "adamw": (AdamW, lambda rng, lr, shrink: AdamStep(
        lr, rng.uniform(0, 0.95), rng.uniform(0.8, 0.999), 10 ** rng.uniform(-8, -2), shrink / lr)),
    "lion": (Lion, lambda rng, lr, shrink: LionStep(lr, rng.uniform(0, 0.95), rng.uniform(0.8, 0.99), shrink / lr)),
    "muon": (Muon, lambda rng, lr, shrink: MuonStep(lr, rng.uniform(0, 0.95), shrink / lr)),
}
kinds = st.sampled_from(list(KINDS))


def random_steps(kind, seed, length=600):
    """lr over 3 decades and the decay of a step over 2, all numbers new at each step; P ends below 1e-3."""
    rng, make = np.random.default_rng(seed), KINDS[kind][1]
    steps = [make(rng, 10 ** rng.uniform(-4, -1), 10 ** rng.uniform(-3, -1.2)) for _ in range(length)]
    return [replace(s, lr=0.0) if rng.random() < 0.05 else s for s in steps]


SHAPES = (8, 2), (2, 9)  # far from square: singular values of noise are far from 0, where Muon would magnify rounding


class Sphere:
    """A scale-invariant loss of two matrices together that changes at every step: `L_t(w) = ξ_t · w / |w|`."""

    def __init__(self, make, seed, move=lambda x: x):
        self.rng, self.move = np.random.default_rng(seed), move
        self.parameters = [nn.Parameter(move(self.rng.standard_normal(shape))) for shape in SHAPES]
        self.optimizer = make(self.parameters)

    def backward(self):
        norm = float(backend.norm([p.data for p in self.parameters]))
        xi = [self.move(self.rng.standard_normal(p.data.shape)) for p in self.parameters]
        along = sum(float(np.sum(backend.to_numpy(x * p.data))) for x, p in zip(xi, self.parameters, strict=True)) / norm
        for x, p in zip(xi, self.parameters, strict=True):
            p.grad = (x - along / norm * p.data) / norm

    def step(self):
        self.backward()
        return self.optimizer.step()

    def weight(self):
        """The weights as one vector."""
        return np.concatenate([backend.to_numpy(p.data).ravel() for p in self.parameters])


def direction(run):
    return run.weight() / np.linalg.norm(run.weight())


def assert_close(one, other, atol=1e-12, message=""):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol * np.linalg.norm(other), err_msg=message)
