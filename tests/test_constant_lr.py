"""Theorem 1.1: a constant learning rate with weight decay is an exponential one without, from the first step."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sgd_runs import paired, seeds

from minibn import schedules
from minibn.equivalence import exponential_equivalent, fixed_point, remove_weight_decay


@given(st.floats(0, 0.99), st.floats(1e-8, 10), st.floats(0, 1))
def test_fixed_point(momentum, lr, part):
    """α is numpy's larger root; ηλ runs up to the limit (1 - √γ)²."""
    limit = (1 - math.sqrt(momentum)) ** 2
    weight_decay = part * 0.999 * limit / lr
    alpha, kappa = fixed_point(lr, momentum, weight_decay)
    product = lr * weight_decay
    roots = np.roots([1, -(1 + momentum - product), momentum])
    assert alpha == pytest.approx(roots.real.max(), abs=1e-7)  # numpy's root of a nearly double root has half its digits
    assert alpha**2 - (1 + momentum - product) * alpha + momentum == pytest.approx(0, abs=1e-15)
    if weight_decay:
        assert 1 - lr * (weight_decay + momentum * kappa) == pytest.approx(alpha, abs=1e-9)  # the recurrence stays there
        assert (weight_decay + momentum * kappa) / alpha == pytest.approx(kappa, rel=1e-6)


def test_figure_1_of_the_paper():
    """lr .1, momentum .9, weight decay 5e-4, 391 steps an epoch: lr grows as 0.1 * 1.481**epoch."""
    alpha, _ = fixed_point(0.1, 0.9, 5e-4)
    assert round(alpha ** (-2 * 391), 3) == 1.481
    steps = islice(remove_weight_decay(schedules.constant(0.1, momentum=0.9, weight_decay=5e-4), band=None), 391 * 20)
    by_epoch = [s.lr for s in steps][::391]
    for ratio in np.divide(by_epoch[2:], by_epoch[1:-1]):  # the first epoch warms the momentum up
        assert round(ratio, 3) == 1.481


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((0.1, 0.9, 0.1), ValueError, r"lr \* weight_decay = 0.01 is above \(1 - sqrt\(momentum\)\)\*\*2 = 0.002633"),
    ((0.1, 1.0, 0.0), ValueError, "momentum must be below 1, got 1.0"),
    ((-0.1, 0.9, 0.0), ValueError, "lr=-0.1"),
    ((1.0, 0.0, 1.0), ValueError, "the weights would be zero after one step"),
])
def test_no_fixed_point(arguments, error, message):
    with pytest.raises(error, match=message):
        fixed_point(*arguments)


@settings(max_examples=20)
@given(seeds, st.floats(0, 0.95), st.floats(1e-3, 1), st.floats(0, 0.9))
def test_theorem_1_1(seed, momentum, lr, part):
    """Constant lr with weight decay and its closed form: equal from the first step, norms in the ratio α^t."""
    weight_decay = part * (1 - math.sqrt(momentum)) ** 2 / lr
    alpha, kappa = fixed_point(lr, momentum, weight_decay)
    length = min(300, int(20 / max(1e-9, -math.log(alpha))))
    usual = schedules.constant(lr, momentum=momentum, weight_decay=weight_decay)
    converted = exponential_equivalent(lr, momentum, weight_decay)
    (u, v), (usual_norm, norm) = paired(usual, converted, seed, length)
    assert np.linalg.norm(u - v) < 1e-9
    assert usual_norm / norm == pytest.approx(alpha**length, rel=1e-9)
    first = next(exponential_equivalent(lr, momentum, weight_decay))
    assert (first.lr, first.kick) == (pytest.approx(lr / alpha), -kappa)


def test_endless_phase_overflows_with_advice():
    with pytest.raises(OverflowError, match="remove_weight_decay.* has no such limit"):
        list(islice(exponential_equivalent(0.5, 0.0, 0.5), 5000))
