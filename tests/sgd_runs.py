"""Runs of SGD on a scale-invariant loss of one vector, and schedules for them: random ones, and phases of a constant lr."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from minibn import backend, nn
from minibn.optim import SGD, Step

seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(["heavy-ball", "lookahead", "shrink", "everything"])


def random_steps(seed, length, family="everything"):
    """Steps of which every number jumps: lr over 8 decades, one in ten 0; segments of equal steps between single ones."""
    rng = np.random.default_rng(seed)

    def choose(numbers):
        return float(rng.choice(numbers))  # NumPy's numbers do not mix with other libraries' arrays

    steps = []
    while len(steps) < length:
        step = Step(lr=0.0 if rng.random() < 0.1 else 10 ** rng.uniform(-8, 0), momentum=choose([0.0, 0.5, 0.9, 0.95]),
                    weight_decay=0.0 if rng.random() < 0.1 else 10 ** rng.uniform(-8, -3.6))  # ηλ < (1 - √γ)²
        if family in ("lookahead", "everything"):
            step = replace(step, lookahead=choose([0.0, -0.3, 0.5, 2.0]))
        if family in ("shrink", "everything"):
            step = replace(step, shrink=choose([0.0, 1e-4, 1e-3]))
        steps += [step] * int(rng.choice([1, 1, 5, 100]))
    return steps[:length]


class Sphere:
    """A scale-invariant loss of one weight vector that changes at every step, `L_t(w) = ξ_t · w/|w|`, trained by SGD.

    `move` brings it from NumPy to another array library.
    """

    def __init__(self, schedule, seed, dim=6, move=lambda x: x):
        self.rng, self.move = np.random.default_rng(seed), move
        self.parameter = nn.Parameter(move(self.rng.standard_normal(dim)))
        self.sgd = SGD([self.parameter], schedule)

    @property
    def weight(self):
        return self.parameter.data

    def step(self):
        """One update, with ∇L = (ξ - (ξ·u) u) / |w|, u = w/|w|."""
        norm = backend.norm([self.weight])
        u, xi = self.weight / norm, self.move(self.rng.standard_normal(tuple(self.weight.shape)))
        self.parameter.grad = (xi - (xi @ u) * u) / norm
        return self.sgd.step()


def paired(one, other, seed, length):
    """Both runs after `length` steps on the same losses, as unit vectors, and their norms."""
    runs = Sphere(one, seed), Sphere(other, seed)
    for _ in range(length):
        for run in runs:
            run.step()
    norms = [np.linalg.norm(run.weight) for run in runs]
    return [run.weight / norm for run, norm in zip(runs, norms, strict=True)], norms


PHASES = [(150, 0.1), (100, 0.01), (50, 0.05)]
SETTING = {"momentum": 0.9, "weight_decay": 5e-3}
