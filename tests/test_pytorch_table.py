"""The table of a report says what `remove_weight_decay` will do, and says it briefly."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import images, loss_of, network  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import report  # noqa: E402
from minibn.pytorch.table import brief  # noqa: E402


def test_sets_that_running_averages_leave_out_are_named_as_such():
    torch.manual_seed(0)
    layers = [n.conv(3, 4), n.bn(4), nn.ReLU(), n.conv(4, 4, bias=True), n.bn(4), nn.ReLU(), *n.head(4)]
    model = nn.Sequential(*layers).double()
    text = str(report(model, lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1]), torch.optim.SGD(model.parameters())))
    rows = [row for row in text.splitlines() if row.endswith("no: left as they are, see below")]
    assert ["1.{weight, bias}" in row for row in rows] == [True]
    assert "3 of these will be converted" in text


def test_where_nothing_is_converted_it_does_not_say_that_decay_can_be_removed():
    model = network()
    exact = "weight decay can be removed from them exactly"
    assert exact in str(report(model, loss_of, torch.optim.SGD(model.parameters())))
    text = str(report(model, loss_of, torch.optim.Adam(model.parameters())))
    assert exact not in text
    assert "0 of these will be converted" in text


def test_names_are_shortened_to_two_and_the_number_of_the_others():
    assert brief(["a.b.q", "a.b.k"]) == "a.b.{q, k}"
    long = ["x" * 40, "y" * 40, "z" * 40]
    assert brief(long) == f"{'x' * 40}, {'y' * 40} and 1 more"
    assert brief(long[:2]) == f"{{{'x' * 40}, {'y' * 40}}}"
