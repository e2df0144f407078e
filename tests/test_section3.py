"""Section 3: the toy problem's gradient, its error, and what converges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import schedules
from minibn.paper import section3 as toy


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(2, 6), st.integers(1, 4))
def test_gradient_is_the_central_difference(seed, normalised, dim, batch):
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((3, dim)), rng.standard_normal((3, batch, dim))

    def loss(w):
        score = np.einsum("sbm,sm->sb", x, w) / (np.linalg.norm(w, axis=1)[:, None] if normalised else 1)
        return np.log1p(np.exp(-np.sign(x[:, :, 0]) * score)).mean(axis=1)

    numeric = np.empty_like(w)
    for i in range(dim):
        h = 1e-6 * np.eye(dim)[i]
        numeric[:, i] = (loss(w + h) - loss(w - h)) / 2e-6
    gradient = toy.gradient(w, x, normalised)
    size = 1 + 1 / np.linalg.norm(w, axis=1).min() ** 3
    np.testing.assert_allclose(gradient, numeric, atol=1e-7 * size)
    if normalised:
        np.testing.assert_allclose(np.sum(gradient * w, axis=1), 0, atol=1e-12 * size)


def test_error_is_the_part_misclassified():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal(5), rng.standard_normal((200_000, 5))
    measured = np.mean(np.sign(x @ w) != np.sign(x[:, 0]))
    assert toy.error(w) == pytest.approx(measured, abs=0.004)
    assert toy.error(np.array([-2.0, 0.0])) == 1
    assert toy.error(np.array([1.0, 1e-12])) == pytest.approx(1e-12 / np.pi)


def final_error(lr, weight_decay, normalised, steps=20_000):
    run = toy.simulate(schedules.constant(lr, weight_decay=weight_decay), steps, normalised=normalised, every=100,
                       rng=np.random.default_rng(0))
    return np.median(run.error[:, len(run.steps) // 2 :])


def test_both_together_stay_at_a_floor_that_grows_with_weight_decay():
    neither, little, much = (final_error(0.1, decay, normalised=True) for decay in (0, 1e-3, 1e-2))
    assert neither < 0.035 < 0.04 < little < 0.07 < 0.08 < much


@pytest.mark.parametrize("length", [100.0, 1000.0])
def test_theorem_3_1_from_the_best_weights(length):
    """With both, the error leaves 0 within the window, in a part 1 - δ of all seeds; with BN alone, the control, in none."""
    lr, decay, dim, delta = 0.1, 1e-2, 20, 0.1
    epsilon = 0.7 * np.sqrt(lr * decay / 2)
    steps = math.ceil(toy.window(length, lr, decay, epsilon, dim=dim, batch=1, delta=delta))
    crossed = {}
    for weight_decay in (decay, 0.0):
        run = toy.simulate(schedules.constant(lr, weight_decay=weight_decay), steps, normalised=True, dim=dim,
                           start=length * np.eye(dim)[0], rng=np.random.default_rng(1))
        crossed[weight_decay] = np.mean(toy.first_passage(run, epsilon / np.pi) <= steps)
    assert crossed[decay] >= 1 - delta
    assert crossed[0.0] == 0


def test_a_run_starts_where_it_is_told_to():
    start = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    run = toy.simulate(schedules.constant(0.0), 3, normalised=True, seeds=3, dim=2, start=start, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(run.norm, [[5.0] * 3, [2.0] * 3, [1.0] * 3])
    np.testing.assert_allclose(run.error[:, 0], toy.error(start))
    one = toy.simulate(schedules.constant(0.1), 3, normalised=True, seeds=2, dim=2, start=[1e4, 0.0],
                       rng=np.random.default_rng(0))
    assert np.all(one.error < 1e-8)
    assert one.error.shape == (2, 3)


def test_the_first_passage_is_the_first_recorded_step_above_the_level():
    errors = np.array([[0.1, 0.3, 0.1, 0.4], [0.5, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2]])
    run = toy.Toy(np.array([2, 4, 6, 8]), errors, errors, errors)
    np.testing.assert_array_equal(toy.first_passage(run, 0.2), [4, 2, np.inf])


@pytest.mark.filterwarnings("error")
def test_long_weights_do_not_overflow():
    w, x = np.array([[1000.0, 0.0]]), np.array([[[1.0, 2.0]], [[-1.0, 2.0]]])
    np.testing.assert_array_equal(toy.gradient(w, x[:1], normalised=False), 0)
    np.testing.assert_array_equal(toy.gradient(-w, x[:1], normalised=False), -x[0])


def test_window_is_the_formula():
    steps = toy.window(2.0, 0.1, 0.01, 0.01, dim=18, batch=4, delta=0.5)
    assert steps == pytest.approx(np.log(64 * 4 * 0.01 * 2 / (0.1 * 4)) / (2 * (1e-3 - 2e-4)) + 9 * np.log(2))


def test_arguments():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="of lr and weight decay alone; step 0 is Step"):
        toy.simulate(schedules.constant(0.1, momentum=0.5), 10, normalised=True, rng=rng)
    with pytest.raises(ValueError, match="needs 10 steps .* step 3 is None"):
        toy.simulate([s for s, _ in zip(schedules.constant(0.1), range(3), strict=False)], 10, normalised=True, rng=rng)
    with pytest.raises(ValueError, match="got 10, 0, 1, 1, 20"):
        toy.simulate(schedules.constant(0.1), 10, normalised=True, seeds=0, rng=rng)
    with pytest.raises(ValueError, match=r"lr \* weight_decay / 2 = 0.0005, .*got epsilon=0.1 .squared 0.01"):
        toy.window(1.0, 0.1, 0.01, 0.1, dim=20, batch=1, delta=0.1)
    for start in (np.ones(3), np.zeros(20), np.full(20, np.nan), np.ones((3, 20))):
        with pytest.raises(ValueError, match=r"start must hold finite weights, not all 0, of shape .20,. or .2, 20."):
            toy.simulate(schedules.constant(0.1), 10, normalised=True, seeds=2, start=start, rng=rng)
