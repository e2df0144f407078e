"""`probe` measures scale invariance of any function, by its values, its gradients, and the lemma that joins them."""

import numpy as np
import pytest

from minibn import invariance, models
from minibn.invariance import probe, symmetries


def test_unknown_names():
    found = symmetries(models.vgg(rng=np.random.default_rng(0)))
    for ask in (lambda: found.is_scale_invariant(["nothing"]), lambda: found.explain("nothing"),
                lambda: probe(lambda p: 0.0, {"w": np.ones(1)}, ["nothing"])):
        with pytest.raises(ValueError, match=r"no parameters named \['nothing'\]"):
            ask()


def test_probe_measures_the_lemma():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 4))

    def rayleigh(p):  # wᵀ A w / |w|², scale-invariant
        w = p["w"]
        value = w @ a @ w / (w @ w)
        return value, {"w": ((a + a.T) @ w - 2 * value * w) / (w @ w)}

    parameters = {"w": rng.standard_normal(4)}
    assert max(probe(rayleigh, parameters)) < 1e-14
    measured = probe(lambda p: (rayleigh(p)[0] + 0.01 * p["w"] @ p["w"], rayleigh(p)[1]), parameters)
    assert not measured.is_scale_invariant()
    wrong_gradient = probe(lambda p: (rayleigh(p)[0], {"w": p["w"]}), parameters)
    assert wrong_gradient.value_gap < 1e-14
    assert wrong_gradient.inner_product > 0.1
    assert wrong_gradient.gradient_gap > 0.1
    assert probe(lambda p: np.linalg.norm(p["w"]), parameters).value_gap > 0.1  # a plain function, without gradients


@pytest.mark.parametrize("scales", [(0.5, 2.0, 3.0), (3.0, 2.0, 0.5), (2.0, 3.0, 0.5)])
def test_probe_gives_the_worst_of_its_scales(scales):
    """|f(cθ) - f(θ)| = |c - 1| and the gradient's gap |c 2c - 2| / 2 = |c² - 1|; wherever the worst scale stands."""
    found = probe(lambda p: (np.array([1.0, p["w"] - 1]), {"w": 2 * p["w"]}), {"w": np.array(1.0)}, scales=scales)
    assert found.value_gap == pytest.approx(2)
    assert found.gradient_gap == pytest.approx(8)


@pytest.mark.parametrize("scales", [(2.0, 3.0), (3.0, 2.0)])
def test_what_is_not_finite_at_any_scale_is_not_invariant(scales):
    found = probe(lambda p: np.where(p["w"] > 2.5, np.nan, 1.0), {"w": np.array(1.0)}, scales=scales)
    assert np.isnan(found.value_gap)
    assert not found.is_scale_invariant()
    gradient = probe(lambda p: (1.0, {"w": np.where(p["w"] > 2.5, np.nan, 0.0)}), {"w": np.array(1.0)}, scales=scales)
    assert not gradient.is_scale_invariant()


def test_probe_measures_integers_as_numbers_that_may_be_negative():
    """A difference of unsigned integers would wrap around."""
    found = probe(lambda p: (np.uint8(10 - 2 * p["w"]), {"w": np.uint8(20 - 2 * p["w"])}), {"w": np.array(1.0)}, scales=[2.0])
    assert found.value_gap == pytest.approx(2 / 8)
    assert found.gradient_gap == pytest.approx((2 * 16 - 18) / 18)


@pytest.mark.parametrize("scales", [[], [1.0], [0.0], [-2.0], [float("nan")]])
def test_probe_refuses_scales_that_measure_nothing(scales):
    with pytest.raises(ValueError, match="probe needs (at least one scale|scales above 0 and other than 1)"):
        probe(lambda p: 1.0, {"w": np.array(1.0)}, scales=scales)


@pytest.mark.parametrize("make", [models.resnet, models.preresnet])
def test_probe_on_a_whole_network(make):
    rng = np.random.default_rng(0)
    net = make(8, width=4, eps=0.0, in_channels=1, rng=rng, dtype="float64")
    f = invariance.loss_function(net, rng.standard_normal((4, 8, 8, 1)), rng.integers(10, size=4))
    parameters = {name: p.data for name, p in net.named_parameters()}
    for group in symmetries(net).groups:
        assert max(probe(f, parameters, group)) < 1e-8, group
    assert not probe(f, parameters, ["head.weight"]).is_scale_invariant()
