"""Which sets of a report stay as they are, or make the line refuse a model, so that running averages remain right."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import assert_evaluations_agree, images  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import averages, remove_weight_decay, report  # noqa: E402


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def measured(*layers):
    """(model, report) of these layers with a head."""
    model = nn.Sequential(*layers, *n.head(4)).double()
    return model, report(model, lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1]))


def test_a_bias_keeps_only_those_norms_as_they_are_whose_output_its_average_adds_it_to():
    _, found = measured(*(layer for i in range(6) for layer in (n.conv(4 if i else 3, 4, bias=i in (1, 3)), n.bn(4), nn.ReLU())))
    assert found.carried.left_out == [("1.weight", "1.bias"), ("7.weight", "7.bias")]  # of the norms before the two biases


class Shift(nn.Module):
    """The β of a norm alone."""

    def __init__(self, width):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.bias[:, None, None]


def test_a_norms_shift_is_left_out_before_the_weights_of_other_layers():
    """Without β, the average of W₂ (W₁ β + b₁) follows the common scale of W₂, W₁ and b₁."""
    _, found = measured(Shift(3), n.conv(3, 4, 1, bias=True), n.conv(4, 4, 1), n.bn(4), nn.ReLU())
    assert found.carried.left_out == [("0.bias",)]
    assert ("1.weight", "1.bias", "2.weight") in found.carried.sets


def separable(inside, outside):
    """A depthwise and a pointwise convolution, both with a bias and nothing in between."""
    return [n.conv(inside, inside, 3, bias=True, groups=inside), n.conv(inside, outside, 1, bias=True), n.bn(outside), nn.ReLU()]


def separable_network():
    torch.manual_seed(0)
    return nn.Sequential(n.conv(3, 4), n.bn(4), nn.ReLU(), *separable(4, 6), *separable(6, 4), *n.head(4)).double()


def test_of_two_layers_with_a_bias_before_one_norm_the_last_is_converted():
    """The average of W₂ (W₁ x + b₁) + b₂ follows one scale only if W₁ and b₁ keep theirs."""
    model = separable_network()
    found = report(model, lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1]))
    assert not found.carried.unfit
    assert {("4.weight", "4.bias"), ("8.weight", "8.bias"), ("0.weight",)} <= set(found.carried.sets)
    assert {("3.weight",), ("3.bias",), ("7.weight",), ("7.bias",)} <= set(found.carried.left_out)
    assert_evaluations_agree(separable_network)


@pytest.mark.parametrize("draw", range(6))
def test_biases_that_a_later_norm_takes_out_do_not_spoil_the_test_of_the_weights_between(draw):
    """The shift of the first norm passes through both convolutions, and is 2**16 times the rest where both are 2**-8."""
    torch.manual_seed(draw)
    _, found = measured(n.conv(3, 6), n.bn(6), n.conv(6, 5, 1, bias=True), n.conv(5, 4, 1, bias=True), n.bn(4), nn.ReLU())
    assert {("2.weight",), ("2.bias",), ("3.weight",), ("3.bias",)} <= set(found.groups)
    assert max(found.gaps) < 1e-12


def test_what_a_norm_takes_out_may_be_a_factor_as_well():
    """That of weight_norm in the second layer cancels, as a bias does. Without it there is no signal to test the first with."""
    weight_norm = nn.utils.parametrizations.weight_norm
    _, found = measured(weight_norm(n.conv(3, 8, bias=True)), nn.ReLU(), weight_norm(n.conv(8, 4, bias=True)), n.bn(4), nn.ReLU())
    assert {("0.bias", "0.parametrizations.weight.original0"), ("2.parametrizations.weight.original0",)} <= set(found.groups)


def test_a_linear_bottleneck_keeps_its_own_norm_as_it_is_and_no_other():
    bottleneck = [n.conv(3, 4), n.bn(4), n.conv(4, 4, 1), n.bn(4), nn.ReLU()]
    nn.init.constant_(bottleneck[1].bias, 0.5)
    _, found = measured(*bottleneck, n.conv(4, 4), n.bn(4), nn.ReLU())
    assert found.carried.left_out == [("1.weight",), ("1.bias",)]
    assert ("3.weight", "3.bias") in found.carried.sets


class MeanOfAShift:
    """A loss with one running average, of W₂ (γ n + β). The mean of n is 0 up to rounding, so the average follows β alone."""

    def __init__(self, sets):
        self.values = dict.fromkeys([name for names in sets for name in names], 1.0)

    def scale(self, factors):
        for name, factor in factors.items():
            self.values[name] *= factor

    def running(self, start=1.0):
        rounding = 1e-17 * self.values["gamma"]
        return {"mean": torch.tensor([0.9 * start + 0.1 * (self.values["beta"] + rounding)], dtype=torch.float64)}


@pytest.mark.parametrize("place", range(5))
def test_rounding_errors_of_a_mean_that_is_zero_have_no_degree(place):
    sets = [("one",), ("two",), ("three",), ("beta",)]
    sets.insert(place, ("gamma",))
    degrees, unfit = averages._degrees(MeanOfAShift(sets), sets)
    assert not unfit
    assert [(sets[i], k.tolist()) for i, k in degrees["mean"]] == [(("beta",), [1.0])]


def test_an_entry_without_a_statistic_gets_a_degree_only_if_the_others_agree():
    degrees = torch.tensor([[2.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    statistic = torch.tensor([1.0, 1.0, 0.0])
    assert averages._filled(degrees[0], statistic).tolist() == [2.0, 2.0, 2.0]
    assert averages._filled(degrees[1], statistic).tolist() == [1.0, 2.0, 0.0]


class Distance(nn.Module):
    """A running average of 1 + |x|, which follows no power of the scale of x."""

    def __init__(self, start=0.0):
        super().__init__()
        self.register_buffer("mean", torch.tensor(start, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(1 + x.detach().abs().mean(), 0.1)
        return x


@pytest.mark.parametrize("start", [0.0, float("nan")])
@pytest.mark.parametrize("after_a_norm", [False, True])
def test_running_averages_that_follow_no_power_of_the_scale_are_refused(after_a_norm, start):
    first = [n.bn(3)] if after_a_norm else []
    model, found = measured(*first, n.conv(3, 4, 1), Distance(start), n.bn(4), nn.ReLU())
    (name,) = found.carried.unfit
    assert name == f"{len(first) + 1}.mean"
    assert f"unless averages=False: running averages cannot be carried along: {name}" in str(found)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.05)
    with pytest.raises(ValueError, match=rf"\['{name}'\] follow no power .* averages=False"):
        remove_weight_decay(optimizer, found)
    assert model[len(first)].weight in remove_weight_decay(optimizer, found, averages=False).parameters
