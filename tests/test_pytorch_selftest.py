"""The measurement on a clone that tells how an optimizer of the script's own decays its weights."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from test_pytorch_optimizers import Lion, Own, weights  # noqa: E402
from torch import nn, optim  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402
from minibn.pytorch.recognise import rule_of  # noqa: E402
from minibn.pytorch.rules import Decoupled  # noqa: E402
from minibn.pytorch.selftest import measured_rule  # noqa: E402


@pytest.mark.parametrize("make", [optim.AdamW, lambda w: optim.AdamW(w, lr=1e-6), lambda w: optim.SGD(w, lr=0.1)])
def test_the_measurement_agrees_with_what_is_known(make):
    assert type(measured_rule(make(weights()), "removed", 0.0)) is Decoupled


@pytest.mark.parametrize("make", [optim.Adam, optim.RMSprop, lambda w: optim.SGD(w, lr=0.1, momentum=0.9)])
def test_the_measurement_tells_coupled_decay(make):
    with pytest.raises(TypeError, match="cannot be removed: on a copy"):
        measured_rule(make(weights()), "removed", 0.0)


def test_the_measurement_leaves_the_optimizer_as_it_is():
    (w,) = weights()
    optimizer = Lion([w])
    w.grad, before, seed = torch.ones_like(w), w.detach().clone(), torch.get_rng_state()
    rule_of(optimizer, "removed")
    assert torch.equal(w, before)
    assert torch.equal(seed, torch.get_rng_state())
    assert not optimizer.state
    assert optimizer.param_groups[0]["k"] == 0


class MatricesOnly(Lion):
    """It leaves biases and norms without decay, as many do."""

    def one(self, p, g, state, group):
        if p.ndim > 1:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * self.update(g, state, group))


class ByAFlag(Own):
    """The param groups say which of two rules they follow."""

    def one(self, p, g, state, group):
        if group.get("coupled"):
            p.sub_(group["lr"] * (g + group["weight_decay"] * p).sign())
        else:
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * g.sign())


def vectors_and_matrices():
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))]


def test_an_optimizer_that_decays_some_shapes_only_is_refused():
    with pytest.raises(TypeError, match=r"MatricesOnly does not decay all tensors alike: .* \[\(3, 4\), \(4, 3\)\] its decay can "
                                        r"be removed, with \[\(4,\)\] it cannot .*weight_decay=0"):
        rule_of(MatricesOnly(vectors_and_matrices()), "removed")


def test_it_is_accepted_where_what_it_does_not_decay_has_a_group_without_decay():
    vector, matrix = vectors_and_matrices()
    optimizer = MatricesOnly([{"params": [vector], "weight_decay": 0.0}, {"params": [matrix]}])
    assert isinstance(rule_of(optimizer, "removed"), Decoupled)


@pytest.mark.parametrize("matrices", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_an_optimizer_whose_param_groups_follow_different_rules_is_refused(matrices, last):
    one, other = vectors_and_matrices() if matrices else vectors_and_matrices()[:1] + vectors_and_matrices()[:1]
    optimizer = ByAFlag([one])
    assert isinstance(rule_of(optimizer, "removed"), Decoupled)
    optimizer.add_param_group({"params": [other], "coupled": True})
    if last:
        optimizer.param_groups.reverse()
    with pytest.raises(TypeError, match="does not decay all tensors alike" if matrices else "another one in another param group"):
        rule_of(optimizer, "removed")


class WithoutGuard(Own):
    """It takes it for granted that every parameter has a gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad.sign())


def test_an_optimizer_that_needs_all_gradients_trains_the_same_network():
    def train(convert):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, 1e-30), nn.ReLU(), nn.Linear(8, 3)).double()
        x, y = torch.randn(16, 6, dtype=torch.float64), torch.randint(3, (16,))
        optimizer, losses = WithoutGuard(model.parameters()), []
        if convert:
            handle = remove_weight_decay(optimizer, report(model, lambda m: F.cross_entropy(m(x), y)))
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if convert:
            assert max(handle.scales.values()) < 0.9
        return losses

    assert train(True) == pytest.approx(train(False), rel=1e-10)


class Projecting(Own):
    """Weights to which the gradient is orthogonal decay by another fraction, as in SGDP."""

    def one(self, p, g, state, group):
        orthogonal = (g * p).sum().abs() < 0.1 * g.norm() * p.norm()
        p.mul_(1 - group["lr"] * group["weight_decay"] * (1.0 if orthogonal else 0.5)).sub_(group["lr"] * g.sign())


def test_an_optimizer_that_looks_at_the_angle_of_the_gradient_is_refused():
    with pytest.raises(TypeError, match="or the update looks at the weights. If you know the fraction, give decay="):
        rule_of(Projecting(weights()), "removed")
