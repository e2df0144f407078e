"""Section 3: the toy problem's gradient, its error, and what converges."""

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


def test_theorem_3_1():
    """From any step, within its window, the error exceeds ε/π in at least a part 1 - δ of all runs."""
    lr, decay, dim, delta = 0.1, 1e-2, 20, 0.1
    epsilon = 0.7 * np.sqrt(lr * decay / 2)
    run = toy.simulate(schedules.constant(lr, weight_decay=decay), 6000, normalised=True, seeds=50, dim=dim,
                       rng=np.random.default_rng(1))
    for start in (0, 1000, 2000):
        length = toy.window(run.norm[:, start], lr, decay, epsilon, dim=dim, batch=1, delta=delta)
        assert np.all((length > 20) & (length < 4000))
        exceeded = [run.error[i, start : start + int(n) + 1].max() > epsilon / np.pi for i, n in enumerate(length)]
        assert np.mean(exceeded) >= 1 - delta


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
