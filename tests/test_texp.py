"""Phases of a constant learning rate: TEXP++ and TEXP-- are exact, TEXP is wrong at a switch by what theory says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sgd_runs import PHASES, SETTING, Sphere, paired, seeds

from minibn import monitor
from minibn.equivalence import fixed_point, instant_drops, texp, texp_minus_minus, texp_plus_plus
from minibn.optim import Step


def of_phases(rates, decays):
    return [Step(lr, 0.9, decay) for (length, _), lr, decay in zip(PHASES, rates, decays, strict=True) for _ in range(length)]


@settings(max_examples=10)
@given(seeds)
def test_texp_plus_plus_is_step_decay(seed):
    """Theorem 2.12."""
    (u, v), _ = paired(of_phases([lr for _, lr in PHASES], [5e-3] * 3), texp_plus_plus(PHASES, **SETTING), seed, 300)
    assert np.linalg.norm(u - v) < 1e-10


@settings(max_examples=10)
@given(seeds)
def test_texp_minus_minus_is_constant_lr_with_the_weight_decay_divided(seed):
    """Appendix B."""
    decays = [5e-3 * lr / 0.1 for _, lr in PHASES]
    (u, v), _ = paired(of_phases([0.1] * 3, decays), texp_minus_minus(PHASES, **SETTING), seed, 300)
    assert np.linalg.norm(u - v) < 1e-10


def test_growth_inside_and_between_the_phases_of_texp():
    plain, exact, slow = (list(f(PHASES, **SETTING)) for f in (texp, texp_plus_plus, texp_minus_minus))
    (a, _), (b, _) = (fixed_point(lr, 0.9, 5e-3) for lr in (0.1, 0.01))
    assert plain[0].lr == pytest.approx(0.1 / a)
    assert plain[100].lr / plain[99].lr == pytest.approx(a**-2)
    assert plain[150].lr / plain[149].lr == pytest.approx(0.1 / a / b)
    assert slow[150].lr / slow[149].lr == pytest.approx(1 / a / b)
    assert slow[151].lr / slow[150].lr == pytest.approx(b**-2)
    assert [s.lr for s in plain] == [s.lr for s in exact]
    assert {s.kick for s in plain} == {0.0}
    assert [t for t, s in enumerate(exact) if s.kick] == [t for t, s in enumerate(slow) if s.kick] == [0, 150, 250]


class Flat(Sphere):
    """A loss without gradient: the weights move by kicks and velocity alone, so displacements are seen free of noise."""

    def step(self):
        return self.sgd.step()


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("switch", [0, 150, 250])
def test_the_error_of_texp_at_a_switch(momentum, switch):
    """Leave one kick out, as TEXP does: the weights are displaced by the docstring's ε, by nothing without momentum."""
    setting = {"momentum": momentum, "weight_decay": 1e-4}
    exact = list(texp_plus_plus(PHASES, **setting))
    without = [replace(s, kick=0.0) if t == switch else s for t, s in enumerate(exact)]
    rates = [lr for _, lr in PHASES]
    i = [0, 150, 250].index(switch)
    alpha, kappa = fixed_point(rates[i], **setting)
    before = fixed_point(rates[i - 1], **setting)[1] if i else 0.0
    epsilon = momentum * rates[i] * abs(kappa - before) / (alpha - momentum / alpha)
    one, other = Flat(exact, 0), Flat(without, 0)
    for t in range(switch + min(150, 300 - switch)):
        one.step()
        other.step()
        if t == switch - 1:
            np.testing.assert_array_equal(one.weight, other.weight)
    displaced = np.linalg.norm(one.weight - other.weight) / np.linalg.norm(one.weight)
    assert displaced == pytest.approx(epsilon, rel=0.02, abs=1e-13)


@settings(max_examples=10)
@given(seeds, st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.25, 4.0]))
def test_an_instant_drop_is_a_state_made_longer(seed, momentum, c):
    """Divide lr by c²: from there on it is the run at η_0 whose w was multiplied by c, and v - κ w divided by c."""
    setting = {"momentum": momentum, "weight_decay": 5e-3}
    dropped = Sphere(instant_drops([(100, 0.1), (100, 0.1 / c**2)], **setting), seed)
    same = Sphere(texp_plus_plus([(200, 0.1)], **setting), seed)  # weights w / P, velocity P (v - κ w)
    for _ in range(100):
        dropped.step()
        same.step()
    np.testing.assert_array_equal(dropped.weight, same.weight)
    same.parameter.data, same.sgd.velocity[0] = same.weight * c, same.sgd.velocity[0] / c
    for _ in range(100):
        lower, usual = dropped.step(), same.step()
    assert lower.lr == pytest.approx(usual.lr / c**2, rel=1e-14)
    np.testing.assert_allclose(same.weight, dropped.weight * c, rtol=0, atol=1e-12 * np.linalg.norm(same.weight))
    assert monitor.effective_lr(lower, [dropped.weight]) == pytest.approx(monitor.effective_lr(usual, [same.weight]), rel=1e-11)


@pytest.mark.parametrize(("phases", "message"), [
    ([], r"must be a list of \(steps, lr\) .* got \[\]"), ([(0, 0.1)], "at least 1"), ([(1.5, 0.1)], "whole numbers"),
    ([(5, 0.1), (5, 1.0)], r"lr \* weight_decay = 0.005 is above"), ([(5, -0.1)], "lr=-0.1")])
def test_bad_phases(phases, message):
    for make in (texp, texp_plus_plus):
        with pytest.raises(ValueError, match=message):
            make(phases, momentum=0.9, weight_decay=5e-3)
