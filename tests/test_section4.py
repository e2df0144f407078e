"""Section 4: fixed learning rate without weight decay."""

import math

import numpy as np
import pytest

from minibn.paper.section4 import fixed_rate


def test_any_fixed_rate_converges_at_least_as_fast_as_one_over_root_t():
    """Learning rates over six decades: slope of log min |∇L| over log T at most -1/2, and w only grows."""
    result = fixed_rate(np.logspace(-3, 3, 7), 100_000, rng=np.random.default_rng(0))
    assert np.all(result.slopes < -0.5)
    assert np.all(np.diff(result.norm, axis=1) >= 0)
    assert np.all(result.smallest_gradient[:, -1] < 0.02 * result.smallest_gradient[:, 0])
    assert result.norm[-1, -1] > 100 * result.norm[0, -1]  # auto-tuning: the larger the lr, the longer the weights


def test_a_scale_dependent_loss_does_not_converge_at_every_rate():
    """The control: plain gradient descent on wᵀAw/2 diverges above 2 over the largest eigenvalue."""
    w = np.ones(2)
    for _ in range(100):
        w = w - 10.0 * np.array([0.01, 1.0]) * w
    assert np.linalg.norm(w) > 1e10


@pytest.mark.parametrize(("rates", "steps"), [([0.0], 100), ([-1.0], 100), ([math.inf], 100), ([0.1], 99)])
def test_bad_arguments_of_fixed_rate(rates, steps):
    with pytest.raises(ValueError, match="finite rates above 0, at least 100 steps"):
        fixed_rate(rates, steps, rng=np.random.default_rng(0))
