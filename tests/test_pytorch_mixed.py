"""Members of a set that are decayed alike or not, in one optimizer or in several."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import Script, loss_of, measured, network  # noqa: E402
from torch import nn, optim  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402

X = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss_fn(model):
    return model(X).square().mean()


@pytest.fixture(scope="module")
def found():
    """Of a network in which a weight and a bias are a set together."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, 1e-30), nn.ReLU(), nn.Linear(5, 3)).double()
    return report(model, loss_fn)


def grouped(model, **of_vectors):
    return [{"params": [p for p in model.parameters() if p.ndim == 2]},
            {"params": [p for p in model.parameters() if p.ndim == 1], **of_vectors}]


@pytest.mark.parametrize(("optimizer", "of_vectors"), [
    (lambda groups: optim.SGD(groups, lr=0.0, weight_decay=0.1), {"weight_decay": 0.2}),  # at the start of a warm-up
    (lambda groups: optim.SGD(groups, lr=0.1, weight_decay=0.1), {"weight_decay": 0.105}),
    (lambda groups: optim.SGD(groups, lr=0.1, weight_decay=0.1), {"momentum": 0.5})])
def test_decay_that_differs_is_refused(found, optimizer, of_vectors):
    with pytest.raises(ValueError, match="are scale-invariant only together"):
        remove_weight_decay(optimizer(grouped(found.model, **of_vectors)), found)


def test_without_decay_momentum_may_differ(found):
    optimizer = optim.SGD(grouped(found.model, momentum=0.5), lr=0.1, weight_decay=0.0)
    handle = remove_weight_decay(optimizer, found)
    assert set(handle.scales) == {("0.weight", "0.bias")}
    handle.remove()


def test_optimizers_that_share_a_set_have_their_own_records_and_keep_their_lr_between_their_steps(found):
    first, second = grouped(found.model)
    optimizers = [optim.AdamW([group], lr=0.1, weight_decay=0.1) for group in (first, second)]
    handle = remove_weight_decay(optimizers, found)
    assert [optimizer.param_groups[0]["minibn"]["params"] for optimizer in optimizers] == [[[0]], [[0]]]
    loss_fn(found.model).backward()
    optimizers[0].step()
    optimizers[1].param_groups[0]["lr"] = 0.05
    with pytest.raises(RuntimeError, match="lr or weight decay changed between their steps"):
        optimizers[1].step()
    optimizers[1].param_groups[0]["lr"] = 0.1
    optimizers[1].step()
    handle.remove()


def test_weights_that_were_frozen_after_the_report_are_refused():
    model = network()
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"\['0.weight'\] do not require gradients any more"):
        remove_weight_decay(optim.SGD(model.parameters(), lr=0.1), measured(1e-30).of(model))


def test_the_table_has_the_decay_of_a_bias_without_effect_too():
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(1, 4, bias=True), n.bn(4), nn.ReLU(), *n.head(4, 10)).double()
    rows = str(report(model, loss_of, optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5))).splitlines()
    assert [row.split()[-2:] for row in rows if "0.bias" in row] == [["5.0e-02", "yes"]]


def test_a_scale_that_grows_is_brought_back_into_the_band_too():
    """Decay that the user gives may be growth."""
    model = Script(kind="adamw", weight_decay=0.0).model
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    handle = remove_weight_decay(optimizer, [model[0].weight], decay=lambda group, step: -0.9, band=2.0, averages=False)
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        assert 0.5 <= handle.ratio(model[0].weight) <= 2.0
