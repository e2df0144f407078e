"""Known answers of `symmetries`: biases, residual streams, shared activations, and what of them is in the table."""

import numpy as np
import pytest
from common import conv

from minibn import models, nn
from minibn.invariance import symmetries


def test_the_table_of_a_preresnet_lists_what_it_counts():
    text = str(symmetries(models.preresnet(8, eps=0.0, rng=np.random.default_rng(0))))
    assert "13 independent rescaling symmetries in all: 9 by scale-invariant groups, and 4 others:" in text
    assert text.count("^-1") == 4


def test_a_bias_before_a_norm():
    """BatchNorm and InstanceNorm take a bias away with the mean; LayerNorm, and a ReLU between, do not."""
    rng = np.random.default_rng(0)

    def groups(*layers):
        return symmetries(nn.Sequential(conv(rng, bias=True), *layers)).groups

    alone, together = [("0.weight",), ("0.bias",)], [("0.weight", "0.bias")]
    batch, layer = nn.BatchNorm(4, affine=False), nn.LayerNorm(4, affine=False)
    assert groups(batch) == alone
    assert groups(nn.InstanceNorm(4, affine=False)) == alone
    assert groups(nn.MaxPool2d(2), batch) == alone
    assert groups(layer) == together
    assert groups(nn.GroupNorm(2, 4, affine=False)) == together
    assert groups(nn.ReLU(), batch) == together
    assert groups(conv(rng), batch) == [*alone, ("1.weight",)]
    assert groups(conv(rng, padding=1), batch) == [*together, ("1.weight",)]  # at the border the bias counts less


def test_overlapping_sets_are_made_disjoint():
    rng = np.random.default_rng(0)
    net = nn.Sequential(conv(rng), conv(rng, bias=True), nn.LayerNorm(4, affine=False))
    found = symmetries(net)
    assert found.groups == [("0.weight", "1.bias")]
    assert found.is_scale_invariant(["1.weight", "1.bias"])
    assert "1.weight is scale-invariant only together with 1.bias, part of which is in another group" in found.explain("1.weight")


def test_rescalings_that_are_no_scale_invariance():
    rng = np.random.default_rng(0)
    net = nn.Sequential(conv(rng), nn.ReLU(), conv(rng))
    found = symmetries(net)
    assert found.groups == []
    assert found.basis == [{"0.weight": 1, "2.weight": -1}]
    assert "0.weight^1 · 2.weight^-1" in str(found)
    assert "0.weight is in no scale-invariant group, because the output must stay as it is" in found.explain("0.weight")


@pytest.mark.parametrize(("make", "together"), [(models.resnet, False), (models.preresnet, True)])
def test_residual_networks(make, together):
    """Post-activation: every conv alone. Pre-activation: the convs that write into one stream together only."""
    found = symmetries(make(14, rng=np.random.default_rng(0)))
    convs = [name for name in found.names if "conv" in name or name in ("stem.weight", "stage2.0.sum.shortcut.weight")]
    assert found.is_scale_invariant([name for name, d in found._dimensions.items() if d == 4])
    assert all(found.is_scale_invariant([name]) for name in convs) != together
    if together:
        stream = ("stem.weight", "stage1.0.branch.conv2.weight", "stage1.1.branch.conv2.weight")
        assert found.groups[0] == stream
        assert ("stage2.0.sum.branch.conv2.weight", "stage2.0.sum.shortcut.weight",
                "stage2.1.branch.conv2.weight") in found.groups  # convs together, not with γ and β
        text = found.explain("stem.weight")
        assert text == ("stem.weight, stage1.0.branch.conv2.weight and stage1.1.branch.conv2.weight may only be scaled together, "
                        "because stage1.0 adds two branches and stage1.1 adds two branches; their common scale is cancelled by "
                        "stage1.0.branch.norm1, stage1.1.branch.norm1 and stage2.0.norm1")
    assert not found.is_scale_invariant(["head.weight", "head.bias"])


def test_a_shortcut_before_the_shared_activation_breaks_it():
    """The paper's appendix C: a PreResNet whose downsampling shortcut takes what was not yet activated."""
    rng = np.random.default_rng(0)

    def net(before):
        branch = [conv(rng), nn.BatchNorm(4, affine=False), conv(rng)]
        first = [nn.BatchNorm(4, affine=False), nn.ReLU()]
        block = [nn.Residual(nn.Sequential(*first, *branch), conv(rng))] if before else [
            *first, nn.Residual(nn.Sequential(*branch), conv(rng))]
        return nn.Sequential(conv(rng), *block, nn.BatchNorm(4, affine=False))

    for before in (False, True):
        found = symmetries(net(before))
        assert found.is_scale_invariant(found.names) != before


def test_eps_is_reported():
    text = str(symmetries(models.vgg(rng=np.random.default_rng(0))))
    assert "approximate where eps is not 0: 4 normalisations with eps up to 1e-05" in text
    assert "approximate" not in str(symmetries(models.vgg(eps=0.0, rng=np.random.default_rng(0))))


def test_what_cannot_be_scaled_is_known_without_a_search(monkeypatch):
    """The last bias is in no solution of the equations; trying all combinations of a PreResNet-20's others would take days."""
    net = models.preresnet(20, in_channels=1, width=4, eps=0.0, rng=np.random.default_rng(0))
    found, tried = symmetries(net), []
    propagate = found._propagate
    monkeypatch.setattr(found, "_propagate", lambda *args: tried.append(args) or propagate(*args))
    assert found.explain("head.bias").startswith("head.bias is in no scale-invariant group")
    assert len(tried) < 1000
