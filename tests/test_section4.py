"""Section 4: a bound on the gradient at every fixed learning rate, which fails where the weights may not grow."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn.paper import section4
from minibn.paper.section4 import bound, fixed_rate

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=20)
@given(seeds, st.integers(2, 30), st.floats(0.5, 8))
def test_the_bound_holds_at_every_step_and_rate(seed, dim, decades):
    """Learning rates over 13 decades, any dimension and spectrum."""
    found = fixed_rate(np.logspace(-6, 7, 14), 300, dim=dim, decades=decades, rng=np.random.default_rng(seed))
    assert np.all(found.smallest_gradient <= found.bound)
    assert np.all(found.norm[:, 1:] > (1 - 1e-12) * found.norm[:, :-1])


@pytest.mark.parametrize("seed", range(3))
def test_weights_that_may_not_grow_break_the_bound(seed):
    """The control: without the growth, rates above 2 / Λ do not converge."""
    rates = [0.01, 1.0, 5.0, 10.0]
    control = fixed_rate(rates, 5000, grow=False, rng=np.random.default_rng(seed))
    ratios = control.smallest_gradient[:, -1] / control.bound[:, -1]
    assert np.all(ratios[2:] > 1.5)
    assert np.all(ratios[:2] < 1)
    np.testing.assert_allclose(control.norm, 1, rtol=1e-12)
    ratios = fixed_rate(rates, 5000, rng=np.random.default_rng(seed))
    assert np.all(ratios.smallest_gradient[:, -1] < 0.1 * ratios.bound[:, -1])


def test_the_bound_is_the_formula():
    """W² = max(|w_0|², Λη) + η² G² / |w_0|² + 2 η D."""
    for lr, norm, hessian, gradient, loss_range in ((0.5, 2.0, 3.0, 0.7, 0.9), (8.0, 1.5, 3.0, 0.7, 0.9)):
        square = max(norm**2, hessian * lr) + (lr * gradient / norm) ** 2 + 2 * lr * loss_range
        expected = math.sqrt(square * (square - norm**2) / (lr**2 * 50))
        assert bound(lr, 50, norm, hessian=hessian, gradient=gradient, loss_range=loss_range) == pytest.approx(expected)


@settings(max_examples=200)
@given(seeds, st.integers(2, 6))
def test_the_constants_bound_every_rayleigh_quotient(seed, dim):
    """Λ, G and D of L(u) = uᵀ A u / 2 on the unit sphere, eigenvalues in [0, 1]; they are reached, in two dimensions."""
    rng = np.random.default_rng(seed)
    eigenvalues = rng.uniform(0, 1, dim) if seed % 2 else rng.integers(0, 2, dim).astype(float)
    u = rng.standard_normal(dim) if seed % 3 else np.ones(dim)
    u = u / np.linalg.norm(u)
    loss = np.sum(eigenvalues * u * u) / 2
    gradient = (eigenvalues - 2 * loss) * u
    hessian = np.diag(eigenvalues - 2 * loss) - 2 * np.outer(u, gradient) - 2 * np.outer(gradient, u)
    assert np.linalg.norm(gradient) <= section4.GRADIENT + 1e-12
    assert np.linalg.norm(hessian, 2) <= section4.HESSIAN + 1e-12
    assert 0 <= loss <= section4.RANGE + 1e-12
    step, h = rng.standard_normal(dim), 1e-4  # the formula of the Hessian, against central differences of L

    def value(w):
        return np.sum(eigenvalues * w * w) / (2 * w @ w)

    measured = (value(u + h * step) - 2 * value(u) + value(u - h * step)) / h**2
    assert measured == pytest.approx(step @ hessian @ step, abs=1e-4 * (1 + step @ step) ** 2)


@pytest.mark.parametrize("change", [{"rates": [0.0]}, {"rates": [-1.0]}, {"rates": [math.inf]}, {"steps": 0}, {"dim": 1},
                                    {"decades": math.nan}])
def test_bad_arguments_of_fixed_rate(change):
    with pytest.raises(ValueError, match="finite rates above 0, steps of at least 1, dim of at least 2"):
        fixed_rate(**{"rates": [1.0], "steps": 10, "rng": np.random.default_rng(0), **change})
