"""The theorem: a run with weight decay and its converted run are one run, seen in two frames.

`same_run` and `round_trip` are the theorem's two statements; hypothesis checks them over random
schedules, and `test_broken_recurrences_are_caught` checks that they fail as soon as one line of the
recurrence is wrong.
"""

import math
from dataclasses import replace
from itertools import count, islice, repeat

import numpy as np
import pytest
from common import broken
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import backend, monitor, nn, schedules
from minibn.equivalence import (
    Frame,
    add_weight_decay,
    exponential_equivalent,
    fixed_point,
    frame_after,
    instant_drops,
    remove_weight_decay,
    streams,
    texp,
    texp_minus_minus,
    texp_plus_plus,
)
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


def same_run(steps, seed, band=2.0**32, move=lambda x: x):
    """Train with `steps` and with their conversion: at every step the same direction, and norms in the ratio P."""
    usual, converted = Sphere(steps, seed, move=move), Sphere(remove_weight_decay(steps, band=band), seed, move=move)
    frame = Frame()
    for t, given_step in enumerate(steps):
        usual.step()
        step = converted.step()
        expected, frame = streams.remove_step(given_step, frame, band, t)
        assert step == expected
        assert step.weight_decay == step.shrink == 0
        w, v = map(backend.to_numpy, frame.remove(usual.weight, usual.sgd.velocity[0]))
        weight, velocity = map(backend.to_numpy, (converted.weight, converted.sgd.velocity[0]))
        np.testing.assert_allclose(weight, w, rtol=0, atol=1e-10 * np.linalg.norm(w), err_msg=f"step {t}: w / P")
    np.testing.assert_allclose(velocity, v, rtol=0, atol=1e-8 * np.linalg.norm(v), err_msg="velocity")


def round_trip(steps):
    """Removing, then adding the same weight decay and shrink gives the original numbers."""
    back = add_weight_decay(remove_weight_decay(steps), [s.weight_decay for s in steps], shrink=[s.shrink for s in steps])
    for t, (old, new) in enumerate(zip(steps, back, strict=True)):
        for name in ("lr", "momentum", "weight_decay", "lookahead", "shrink"):
            assert getattr(new, name) == pytest.approx(getattr(old, name), rel=1e-12, abs=1e-12), f"step {t}: {name}"


@settings(max_examples=12)
@given(seeds, families)
def test_the_converted_run_is_the_same_run(seed, family):
    same_run(random_steps(seed, 2000, family), seed)


@settings(max_examples=4)
@given(seeds, families)
def test_it_is_the_same_run_on_every_library(library, seed, family):
    same_run(random_steps(seed, 200, family), seed, move=library.array)


@settings(max_examples=12)
@given(seeds, families)
def test_remove_then_add_is_the_identity(seed, family):
    round_trip(random_steps(seed, 2000, family))


@settings(max_examples=12)
@given(seeds, families, st.floats(0, 5e-3), st.sampled_from([0.0, 1e-4]))
def test_any_schedule_restated_at_any_weight_decay(seed, family, weight_decay, shrink):
    """Remove, add another: still the same directions, and the state goes through both frames."""
    steps = random_steps(seed, 1000, family)
    restated = list(add_weight_decay(remove_weight_decay(steps), weight_decay, shrink=shrink))
    assert {(s.weight_decay, s.shrink, s.rescale) for s in restated} == {(weight_decay, shrink, 1.0)}
    one, other = Sphere(steps, seed), Sphere(restated, seed)
    for _ in steps:
        one.step()
        other.step()
    ours, theirs = frame_after(steps, len(steps)), frame_after(restated, len(steps))
    ours, theirs = (f.remove(s.weight, s.sgd.velocity[0])[0] for f, s in ((ours, one), (theirs, other)))
    cosine_gap = np.linalg.norm(ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs))
    assert cosine_gap < 1e-10


@settings(max_examples=12)
@given(seeds)
def test_kicks_and_rescales_of_the_given_schedule_are_taken_along(seed):
    rng = np.random.default_rng(seed)
    steps = [replace(s, kick=rng.choice([0.0, 1e-3, -1e-3]), rescale=(1.0, 2.0, 0.5)[t % 3])
             for t, s in enumerate(random_steps(seed, 500))]
    same_run(steps, seed)
    bare = [replace(s, weight_decay=0.0, shrink=0.0) for s in steps]  # with lookahead, q is not 1
    one, other = Sphere(bare, seed), Sphere(add_weight_decay(bare, 1e-3), seed)
    for _ in bare:
        one.step()
        other.step()
    u, v = (s.weight / np.linalg.norm(s.weight) for s in (one, other))
    assert np.linalg.norm(u - v) < 1e-10


@settings(max_examples=12)
@given(seeds, families, st.sampled_from([1.0001, 2.0, 2.0**32]))
def test_rescaling_does_not_change_a_bit(seed, family, band):
    steps = random_steps(seed, 1000, family)
    plain, banded = Sphere(remove_weight_decay(steps, band=None), seed), Sphere(remove_weight_decay(steps, band=band), seed)
    scale = 1.0
    for _ in steps:
        plain.step()
        scale *= banded.step().rescale
        np.testing.assert_array_equal(banded.weight, plain.weight * scale)


def test_frame_add_is_the_inverse_of_remove():
    frame = Frame(0.3, 0.2, 1.5)
    w, v = np.random.default_rng(0).standard_normal((2, 4))
    for there, back in ((frame.remove, frame.add), (frame.add, frame.remove)):
        for given_, returned in zip((w, v), back(*there(w, v)), strict=True):
            np.testing.assert_allclose(returned, given_, rtol=1e-14)


@settings(max_examples=12)
@given(seeds, families, st.integers(0, 300), st.sampled_from([1.0001, 2.0, 2.0**32, None]))
def test_frame_after_is_the_frame_that_the_conversion_of_that_band_is_in(seed, family, at, band):
    steps = random_steps(seed, 300, family)
    usual, converted = Sphere(steps, seed), Sphere(remove_weight_decay(steps, band=band), seed)
    for _ in range(at):
        usual.step()
        converted.step()
    frame = frame_after(steps, at, band=band)
    w, v = frame.remove(usual.weight, usual.sgd.velocity[0])
    np.testing.assert_allclose(converted.weight, w, rtol=0, atol=1e-11 * np.linalg.norm(w))
    np.testing.assert_allclose(converted.sgd.velocity[0], v, rtol=0, atol=1e-9 * np.linalg.norm(v))


@settings(max_examples=12)
@given(seeds, families, st.integers(0, 300), st.booleans(), st.sampled_from([1.0001, 2.0**32]))
def test_switching_form_in_the_middle(seed, family, at, to_converted, band):
    """Train in one form, carry the state over with the frame, go on in the other form: the same network."""
    steps = random_steps(seed, 300, family)
    whole = Sphere(steps, seed)
    first = Sphere(steps if to_converted else remove_weight_decay(steps, band=band), seed)
    for _ in range(300):
        whole.step()
    for _ in range(at):
        first.step()
    frame = frame_after(steps, at, band=band)
    carry = frame.remove if to_converted else frame.add
    rest = remove_weight_decay(steps[at:], band=band, frame=frame) if to_converted else steps[at:]
    second = Sphere(rest, seed)
    second.rng = first.rng  # the same gradients go on
    second.parameter.data, second.sgd.velocity[0] = carry(first.weight, first.sgd.velocity[0])
    for _ in range(at, 300):
        second.step()
    w = frame_after(steps, 300, band=band).remove(whole.weight, 0)[0] if to_converted else whole.weight
    u, v = w / np.linalg.norm(w), second.weight / np.linalg.norm(second.weight)
    assert np.linalg.norm(u - v) < 1e-10


def drop(text, by=""):
    """A broken line: `text` of `remove_step` replaced."""
    return text, by


BROKEN = {
    "momentum does not carry the drag": drop("decay + momentum * kappa", "decay"),
    "kappa not divided by alpha": drop("drag / alpha, new_q", "drag, new_q"),
    "kappa forgotten": drop("drag / alpha, new_q", "0.0, new_q"),
    "P squared instead of P P'": drop("b * scale * new_scale", "b * scale * scale"),
    "P' squared instead of P P'": drop("b * scale * new_scale", "b * new_scale * new_scale"),
    "P does not shrink": drop("alpha * scale", "scale"),
    "alpha from weight decay alone": drop("b - lr * drag", "b - lr * decay"),
    "shrink forgotten": drop("1 - step.shrink - lr", "1 - lr"),
    "lookahead's decay forgotten": drop("- lr * lookahead * decay", ""),
    "q forgotten": drop("lookahead * drag\n", "lookahead * drag * 0\n"),
    "momentum not corrected": drop("momentum * q * b / new_q", "momentum"),
    "lookahead not corrected": drop("lookahead * alpha / new_q", "lookahead"),
    "lr not corrected for q": drop("lr * new_q / denominator", "lr / denominator"),
    "b forgotten in lr": drop("b * scale * new_scale", "scale * new_scale"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recurrences_are_caught(name, monkeypatch):
    monkeypatch.setattr(streams, "remove_step", broken(streams, "remove_step", *BROKEN[name]))
    caught = 0
    for seed in range(3):
        steps = random_steps(seed, 400)
        for check in (lambda: same_run(steps, seed), lambda: round_trip(steps)):  # noqa: B023 - called at once
            try:
                check()
            except (AssertionError, ValueError):
                caught += 1
    assert caught >= 3, f"{name}: caught {caught} times of 6"


# ---- constant learning rate: Theorem 1.1 ----


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


def paired(one, other, seed, length):
    """Both runs after `length` steps on the same losses, as unit vectors, and their norms."""
    runs = Sphere(one, seed), Sphere(other, seed)
    for _ in range(length):
        for run in runs:
            run.step()
    norms = [np.linalg.norm(run.weight) for run in runs]
    return [run.weight / norm for run, norm in zip(runs, norms, strict=True)], norms


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


PHASES = [(150, 0.1), (100, 0.01), (50, 0.05)]
SETTING = {"momentum": 0.9, "weight_decay": 5e-3}


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


def test_endless_phase_overflows_with_advice():
    with pytest.raises(OverflowError, match="remove_weight_decay.* has no such limit"):
        list(islice(exponential_equivalent(0.5, 0.0, 0.5), 5000))


# ---- for ever, in float32 ----


def test_two_hundred_thousand_steps_in_float32():
    """lr 0.1, weight decay 5e-3: the plain schedule would reach 10^8,700; with `rescale` nothing leaves float32."""
    rng = np.random.default_rng(0)
    parameter = nn.Parameter(rng.standard_normal(4).astype("float32"))
    sgd = SGD([parameter], remove_weight_decay(schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)))
    noise = rng.standard_normal((1000, 4)).astype("float32")
    exponent, low, high = 0, math.inf, 0.0
    for t in range(200_000):
        w, xi = parameter.data, noise[t % 1000]
        square = w @ w
        parameter.grad = (xi - (xi @ w / square) * w) / square**0.5
        step = sgd.step()
        if step.rescale != 1:
            exponent += math.frexp(step.rescale)[1] - 1
        low, high = min(low, step.lr), max(high, step.lr)
    assert np.all(np.isfinite(parameter.data))
    assert parameter.data.dtype == np.float32
    assert -2 * exponent * math.log10(2) > 800
    assert 0 < low < high < 2.0**70


# ---- what has no conversion ----


def test_errors_of_removing():
    with pytest.raises(ValueError, match=r"step 3 cannot be converted: .*alpha=0, .*lr=2.0, .*weight_decay=0.5"):
        list(remove_weight_decay([Step(0.1)] * 3 + [Step(2.0, 0.0, 0.5)]))
    with pytest.raises(ValueError, match="band must be a finite number above 1, or None .*got 1"):
        remove_weight_decay([], band=1)
    with pytest.raises(ValueError, match="the schedule has 3 steps, there is no frame after 4"):
        frame_after([Step(0.1)] * 3, 4)


def test_overflow_without_a_band():
    schedule = remove_weight_decay(schedules.constant(0.5, weight_decay=0.5), band=None)
    with pytest.raises(OverflowError, match=r"left float range .* use band=2.0\*\*32"):
        list(islice(schedule, 5000))
    banded = list(islice(remove_weight_decay(schedules.constant(0.5, weight_decay=0.5)), 5000))
    assert all(math.isfinite(s.lr) for s in banded)


def test_errors_of_adding():
    with pytest.raises(ValueError, match="step 1 already has weight_decay=0.1, .*remove_weight_decay first"):
        list(add_weight_decay([Step(0.1), Step(0.1, weight_decay=0.1)], 0.1))
    with pytest.raises(ValueError, match="weight_decay=-0.1"):
        add_weight_decay([Step(0.1)], -0.1)
    with pytest.raises(ValueError, match="step 1 .*has no equal with weight_decay=0.0, shrink=0.0"):
        # a kick of -200 of the weights would have to be undone by a weight decay, which is far too
        # small
        list(add_weight_decay([Step(0.1, 0.9), Step(0.1, 0.9, kick=200.0)], repeat(0)))


def test_arguments_of_any_kind():
    """Weight decay as any real number or a stream, phases from any iterable, schedules without steps."""
    expected = list(add_weight_decay([Step(0.1, 0.9)] * 3, 0.5))
    assert list(add_weight_decay([Step(0.1, 0.9)] * 3, np.float32(0.5))) == expected
    assert list(add_weight_decay([Step(0.1, 0.9)] * 3, repeat(0.5))) == expected
    assert list(texp(iter(PHASES), **SETTING)) == list(texp(PHASES, **SETTING))
    assert list(remove_weight_decay([])) == list(add_weight_decay([], 0.1)) == []


def test_conversion_is_a_stream():
    """Nothing is read before it is asked for, and an endless schedule is fine."""
    drawn = []
    endless = (drawn.append(t) or Step(0.1, 0.9, 1e-3) for t in count())
    converted = add_weight_decay(remove_weight_decay(endless), 1e-4)
    assert drawn == []
    next(converted), next(converted)
    assert drawn == [0, 1]
