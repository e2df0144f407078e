"""What `report` tries with scaled weights, and with random numbers that the loss draws."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import X, Y, images, loss_of, network  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import report  # noqa: E402


def test_what_another_set_has_spoilt_is_tried_again_without_it():
    """Beside small weights the bias leaves the last convolution few digits. The first one does not hold, as it meets the 6."""
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(3, 4), nn.ReLU6(), n.conv(4, 4, 1, bias=True), n.conv(4, 4, 1), n.bn(4), nn.ReLU(), *n.head(4))
    with torch.no_grad():
        model[2].bias.mul_(8)
    found = report(model.double(), lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1]))
    assert list(found.refused) == [("0.weight",)]
    assert {("2.weight",), ("2.bias",), ("3.weight",)} <= set(found.groups)


def test_random_numbers_of_the_loss_are_the_same_in_each_call_and_the_scripts_own_go_on():
    def loss_fn(model):
        return (1 + np.random.rand() + random.random() + torch.rand(())) * loss_of(model)  # noqa: NPY002

    model = network()
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    expected = np.random.rand(), random.random(), float(torch.rand(()))  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    assert report(model, loss_fn).groups == report(model, loss_of).groups
    assert (np.random.rand(), random.random(), float(torch.rand(()))) == expected  # noqa: NPY002


@pytest.mark.parametrize(("seed", "draw"), [(np.random.seed, np.random.rand), (random.seed, random.random)],
                         ids=["numpy", "python"])
def test_a_branch_that_is_left_out_at_random_is_seen_whatever_generator_drops_it(seed, draw):
    def loss_fn(both):
        return loss_of(both[0]) + (loss_of(both[1]) if draw() < 0.5 else 0.0)

    seed(0)  # which alone would leave it out
    assert report(nn.ModuleList([network(), network()]), loss_fn).unknown == []


def test_a_padding_row_has_an_effect_though_torch_hides_its_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 6, padding_idx=0), nn.BatchNorm1d(6, 1e-30), nn.ReLU(), nn.Linear(6, 10)).double()
    nn.init.normal_(model[0].weight)
    found = report(model, lambda m: F.cross_entropy(m(torch.arange(16) % 5), Y[:16]))
    assert found.groups == [("0.weight",)]


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the loss is inf: give loss_fn another batch"):
        report(network(), lambda m: m(X[:16]).sum() / 0.0 if m.training else loss_of(m))


def test_a_branch_with_next_to_no_effect_is_measured():
    torch.manual_seed(0)
    model = n.convnext(layer_scale=1e-12).double()
    assert report(model, lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1])).unknown == []
