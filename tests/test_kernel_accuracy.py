"""Numbers that float32 makes hard: large means, constant sets, numbers that are not finite, and losses of sure answers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minibn import nn
from minibn.kernels import cpu, device, reference


@pytest.mark.parametrize("implementation", [reference, cpu, device])
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e5])
def test_moments_are_accurate_where_the_mean_is_large(implementation, ratio):
    """By E x² - μ², σ² would have no correct digit in float32 from |μ| / σ = 3e3 on."""
    x = (ratio + np.random.default_rng(0).standard_normal((1, 4000, 2, 1))).astype("float32")
    exact = x.astype("float64")
    mean, var = implementation.moments(x)
    np.testing.assert_allclose(mean, exact.mean(axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var(axis=1, keepdims=True), rtol=1e-3)
    naive = np.mean(x * x, axis=1, dtype="float32") - np.mean(x, axis=1, dtype="float32") ** 2
    assert ratio < 1e4 or np.abs(naive / exact.var(axis=1) - 1).max() > 0.1


@pytest.mark.parametrize("implementation", [reference, cpu, device])
def test_moments_are_accurate_where_the_first_rows_are_far_from_the_others(implementation):
    """A first mean of the first rows alone is then as wrong as it can be, √15 standard deviations."""
    x = np.random.default_rng(0).standard_normal((1, 4000, 2, 1)).astype("float32")
    x[:, :250] += 1e4
    exact = x.astype("float64")
    mean, var = implementation.moments(x)
    np.testing.assert_allclose(mean, exact.mean(axis=1, keepdims=True), atol=1e-5 * exact.std())
    np.testing.assert_allclose(var, exact.var(axis=1, keepdims=True), rtol=5e-5)


@pytest.mark.parametrize("ratio", [1.0, 3.8, 20.0])
@pytest.mark.parametrize("implementation", [reference, cpu, device])
def test_the_variance_is_accurate_to_2e_5_in_float32_whatever_the_mean(implementation, ratio):
    """PyTorch's BatchNorm has 3e-5 here, in the layout channels_last. The other set, whose mean is 0, does not suffer."""
    x = np.random.default_rng(0).standard_normal((1, 2**16, 2, 1)).astype("float32")
    x[:, :, 1] += ratio
    var = implementation.moments(x)[1]
    np.testing.assert_allclose(var, x.astype("float64").var(axis=1, keepdims=True), rtol=2e-5)


@example(7093, 8.255112, "float32", 7)
@given(st.integers(1, 3000), st.floats(-1e6, 1e6, width=32), st.sampled_from(["float32", "float64"]), st.integers(1, 9))
def test_no_variance_is_negative_where_a_set_is_constant_up_to_rounding(rows, value, dtype, every):
    """Also where the user has NumPy raise errors: squares of tiny numbers are 0."""
    x = np.full((1, rows, 2, 3), value, dtype)
    x[:, ::every] = np.nextafter(x[:, ::every], np.inf)
    with np.errstate(all="raise"):
        mean, var = cpu.moments(x)
    np.testing.assert_allclose(mean, value, rtol=1e-6, atol=1e-40)
    assert (var >= 0).all()
    assert (var <= (1e-6 * value) ** 2).all()


def test_an_infinite_or_missing_number_gives_no_warning_and_no_finite_moments():
    for value in (np.inf, np.nan):
        x = np.zeros((1, 320, 2, 1), "float32")
        x[0, -1, 0] = value
        mean, var = cpu.moments(x)
        assert not np.isfinite([mean[0, 0, 0, 0], var[0, 0, 0, 0]]).any()
        assert mean[0, 0, 1, 0] == var[0, 0, 1, 0] == 0


@pytest.mark.parametrize("first_mean", [1.0, 1 + 1e-4])
def test_the_second_pass_corrects_an_inexact_first_mean(first_mean, monkeypatch):
    """The corrected two-pass algorithm does not need an exact m."""
    add_rows = cpu.normalisation.add_rows
    x = 1000 + np.random.default_rng(0).standard_normal((1, 4000, 2, 1))
    calls = []

    def inexact(part):
        calls.append(part)
        return add_rows(part) * (first_mean if len(calls) == 1 else 1.0)

    monkeypatch.setattr(cpu.normalisation, "add_rows", inexact)
    mean, var = cpu.moments(x)
    np.testing.assert_allclose(mean, x.mean(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(var, x.var(axis=1, keepdims=True), rtol=1e-10)


@pytest.mark.parametrize("implementation", [reference, cpu, device])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_set_is_constant_below_four_ulps_of_its_mean_and_not_above(implementation, dtype):
    ulp = np.finfo(dtype).eps
    mean = np.full((1, 1, 3, 1), -8.0, dtype)
    std = np.array([2, 3.9, 6], dtype).reshape(mean.shape) * ulp * 8
    inverse = implementation.inverse_std(mean, std * std, 0.0)[0, 0, :, 0]
    np.testing.assert_array_equal(inverse[:2], 0)
    np.testing.assert_allclose(inverse[2], 1 / std[0, 0, 2, 0], rtol=1e-5)
    np.testing.assert_allclose(implementation.inverse_std(mean, std * std, 1.0), 1, rtol=1e-5)  # ε is above the rounding


@pytest.mark.parametrize("value", [1e20, 1e27, 1e30, -1e35])
def test_a_constant_channel_is_constant_however_large(value):
    layer = nn.BatchNorm(2, eps=0.0)
    y = layer(np.full((9, 5, 5, 2), value, "float32"))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(layer.backward(np.ones_like(y)), 0)


def test_moments_of_numbers_whose_sum_leaves_float_range():
    mean, var = cpu.moments(np.full((1, 9, 2, 1), 3e38, "float32"))
    np.testing.assert_allclose(mean, 3e38, rtol=1e-6)
    np.testing.assert_array_equal(var, 0)


def test_a_spread_beyond_float_range_is_nan_and_not_silently_zero():
    x = np.random.default_rng(0).standard_normal((9, 5, 5, 2)).astype("float32")
    assert np.isfinite(nn.BatchNorm(2)(x * np.float32(1e18))).all()
    assert np.isnan(nn.BatchNorm(2)(x * np.float32(1e30))).all()


def test_losses_do_not_mind_numpy_s_floating_point_errors():
    with np.errstate(all="raise"):
        assert nn.CrossEntropy()(np.array([[0.0, -800.0]]), np.array([0])) == 0
        assert nn.Logistic()(np.array([800.0]), np.array([1])) == 0
