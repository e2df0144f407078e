"""Which optimizers' weight decay can be removed: torch's own by name, all others by a measurement on a clone."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import X, Y, assert_same, batch  # noqa: E402
from torch import nn, optim  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402
from minibn.pytorch.l2 import L2  # noqa: E402
from minibn.pytorch.recognise import rule_of  # noqa: E402
from minibn.pytorch.rules import Decoupled, Relative  # noqa: E402


class Own(optim.Optimizer):
    """An optimizer as people write them; `update(state, gradient, group)` is its update."""

    def __init__(self, parameters, lr=0.02, weight_decay=0.5):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1  # kept in the param group, as some do
            for p in group["params"]:
                if p.grad is not None:
                    self.one(p, p.grad, self.state[p], group)

    def one(self, p, gradient, state, group):
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(self.update(gradient, state, group), alpha=-group["lr"])


class Lion(Own):
    def update(self, g, state, group):
        m = state.setdefault("m", torch.zeros_like(g))
        u = (0.9 * m + 0.1 * g).sign()
        m.mul_(0.99).add_(g, alpha=0.01)
        return u


class Warm(Own):
    """Its own warm-up, counted in the param group."""

    def update(self, g, state, group):
        return g.sign() * min(1.0, group["k"] / 10)


class WarmInATensor(Own):
    """The same, counted in a tensor, in place."""

    def step(self, closure=None):
        for group in self.param_groups:
            group.setdefault("steps", torch.zeros(())).add_(1)
        super().step()

    def update(self, g, state, group):
        return g.sign() * min(1.0, float(group["steps"]) / 10)


class Independent(Own):
    """The decay is not multiplied by lr."""

    def one(self, p, g, state, group):
        p.mul_(1 - group["weight_decay"]).sub_(group["lr"] * g.sign())


class Restless(Own):
    """It takes missing gradients for zeros, and decays these weights too."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        super().step()

    def update(self, g, state, group):
        return state.setdefault("m", torch.zeros_like(g)).mul_(0.9).add_(g)


class L2Sign(Own):
    def one(self, p, g, state, group):
        p.sub_(group["lr"] * (g + group["weight_decay"] * p).sign())


class Lamb(Own):
    """Decay inside a trust ratio."""

    def one(self, p, g, state, group):
        u = g.sign() + group["weight_decay"] * p
        p.sub_(group["lr"] * p.norm() / u.norm() * u)


class Cautious(Own):
    """Decay where the update agrees with it only."""

    def one(self, p, g, state, group):
        decay = group["lr"] * group["weight_decay"] * (g * p > 0)
        p.mul_(1 - decay).sub_(group["lr"] * g.sign())


class LooksAtWeights(Own):
    def one(self, p, g, state, group):
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * g.sign() * (1 + p.norm()))


class PartOfTheFirstLr(Own):
    """The decay is lr / (lr of the first step) x weight decay: as strong as in a trial it would flip the sign of the weights."""

    def one(self, p, g, state, group):
        p.mul_(1 - group["lr"] / 1e-3 * group["weight_decay"]).sub_(group["lr"] * g.sign())


class ClampedLamb(Own):
    """A trust ratio that grows with the weights, up to a bound that a small model does not reach."""

    def one(self, p, g, state, group):
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.norm().clamp(max=10) * g / g.norm())


class SignSGD(optim.SGD):
    """A subclass that scales gradients inside its own step."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-0.001)


class SGDWithALog(optim.SGD):
    """Its step is torch's."""

    def add_param_group(self, group):
        super().add_param_group(group)


class SignedSGD(optim.SGD):
    """Torch's step, but of other gradients; without momentum its decay is decoupled."""

    def _init_group(self, group, params, grads, *buffers):
        sparse = super()._init_group(group, params, grads, *buffers)
        grads[:] = [g.sign() for g in grads]
        return sparse


class Wrapper(optim.Optimizer):
    """Lookahead, SAM, ZeroRedundancyOptimizer and their like."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})


def weights():
    return [nn.Parameter(torch.randn(4, 3, dtype=torch.float64))]


@pytest.mark.parametrize(("make", "rule"), [
    (lambda w: optim.SGD(w, 0.1, momentum=0.9), L2), (lambda w: SGDWithALog(w, 0.1), L2),
    (optim.AdamW, Decoupled), (lambda w: optim.AdamW(w, amsgrad=True, fused=False), Decoupled),
    (lambda w: optim.Adam(w, decoupled_weight_decay=True), Decoupled),
    (lambda w: optim.NAdam(w, decoupled_weight_decay=True), Decoupled),
    (lambda w: optim.RAdam(w, decoupled_weight_decay=True), Decoupled), (optim.Adafactor, Relative),
    (lambda w: SignedSGD(w, 0.1), Decoupled), (Lion, Decoupled), (Warm, Decoupled), (Independent, Decoupled),
    (Restless, Decoupled)])
def test_decay_that_can_be_removed(make, rule):
    assert isinstance(rule_of(make(weights()), "removed"), rule)


@pytest.mark.parametrize(("make", "reason"), [
    (optim.Adam, "Adam adds weight decay to the gradient .*decoupled_weight_decay=True"),
    (lambda w: optim.Adam([{"params": w, "decoupled_weight_decay": True}, {"params": weights()}]), "Adam adds weight decay"),
    (optim.RMSprop, "RMSprop adds weight decay to the gradient"), (optim.Adagrad, "Adagrad adds"), (optim.Adamax, "Adamax adds"),
    (optim.LBFGS, "LBFGS has no weight decay"), (optim.Rprop, "Rprop has no weight decay"),
    (L2Sign, "L2Sign cannot be removed: on a copy"), (Lamb, "Lamb cannot be removed: on a copy"),
    (Cautious, "Cautious cannot be removed: on a copy"), (ClampedLamb, "ClampedLamb cannot be removed: on a copy"),
    (lambda w: PartOfTheFirstLr(w, 1e-3), "PartOfTheFirstLr cannot be removed: on a copy"),
    (LooksAtWeights, "LooksAtWeights cannot be removed"),
    (lambda w: SignSGD(w, 0.1, weight_decay=0.1), "SignSGD, a subclass of torch.optim.SGD with a step of its own, cannot"),
    (lambda w: Wrapper(optim.SGD(w, 0.1)), "Wrapper wraps another optimizer, its attribute 'inner'")])
def test_decay_that_cannot_be_removed(make, reason):
    w = weights()
    with pytest.raises(TypeError, match=reason):
        remove_weight_decay(make(w), w, averages=False)


@pytest.mark.parametrize("make", [lambda groups: optim.SGD(groups, 0.05, momentum=0.9, weight_decay=0.1),
                                  lambda groups: optim.AdamW(groups, 0.02, weight_decay=1.0)], ids=["sgd", "adamw"])
def test_members_of_a_set_that_do_not_step_are_moved_along(make):
    """Torch leaves a weight without gradient alone, its decay too; its set has one scale, so its held weights grow."""
    def train(convert):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12, 1e-30), nn.ReLU(), nn.Linear(12, 10)).double()
        optimizer, losses = make([{"params": [p]} for p in model.parameters()]), []
        found = report(model, lambda m: F.cross_entropy(m(X[:16]), Y[:16]))
        handle = remove_weight_decay(optimizer, found, mixed="move") if convert else None
        for t in range(30):
            x, y = batch(t)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if t % 3 == 1:
                model[1].bias.grad = None
            elif t % 7 == 3:
                model[1].weight.grad = None
            optimizer.step()
            losses.append(loss.item())
        if convert:
            assert [group["minibn"]["steps"] for group in optimizer.param_groups[:2]] == [[27], [20]]
            handle.remove()
        return losses, [p.detach() for p in model.parameters()]

    (usual, weights), (converted, others) = train(False), train(True)
    assert converted == pytest.approx(usual, rel=1e-9)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_decay_that_the_user_gives():
    (w,) = weights()
    optimizer = L2Sign([w])
    assert isinstance(rule_of(optimizer, "removed", decay="wd"), Decoupled)
    assert rule_of(optimizer, "removed", decay=lambda group, step: 0.1 * step).delta(optimizer.param_groups[0], 2) == 0.2
    with pytest.raises(TypeError, match='"l2" is for torch.optim.SGD'):
        rule_of(optimizer, "removed", decay="l2")
    with pytest.raises(ValueError, match='decay must be None, "l2", "lr\\*wd", "wd" or a function'):
        rule_of(optimizer, "removed", decay="decoupled")


class Run:
    """30 steps of a small network with a layer norm; the second linear map has no gradient at some steps."""

    def __init__(self, make, convert, **options):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Flatten(), nn.Linear(64, 12, bias=False), nn.LayerNorm(12, 1e-30), nn.ReLU())
        self.model = nn.Sequential(*first, nn.Linear(12, 8, bias=False), nn.LayerNorm(8, 1e-30), nn.Linear(8, 10)).double()
        convs = [p for p in self.model.parameters() if p.ndim == 2]
        optimizer = make(convs)
        rest = optim.SGD([p for p in self.model.parameters() if p.ndim < 2], 0.01)
        found = report(self.model, lambda m: F.cross_entropy(m(X[:16]), Y[:16]))
        chosen = [p for p in found.parameters if p.ndim == 2]
        assert len(chosen) == 2
        self.handle = remove_weight_decay(optimizer, chosen, averages=False, **options) if convert else None
        self.losses, self.validation = [], []
        for t in range(30):
            x, y = batch(t)
            for o in (optimizer, rest):
                o.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            if t % 5 == 2:
                self.model[4].weight.grad = None
            for o in (optimizer, rest):
                o.step()
            self.losses.append(loss.item())
        self.optimizer = optimizer


@pytest.mark.parametrize("make", [
    lambda w: optim.AdamW(w, 0.02, weight_decay=1.0), lambda w: optim.AdamW(w, 0.02, weight_decay=1.0, amsgrad=True),
    lambda w: optim.NAdam(w, 0.02, weight_decay=1.0, decoupled_weight_decay=True),
    lambda w: optim.RAdam(w, 0.02, weight_decay=1.0, decoupled_weight_decay=True),
    lambda w: optim.Adafactor(w, 0.1, weight_decay=0.3), lambda w: optim.Adafactor(w, 1.0, eps=(None, 0.5), weight_decay=0.03),
    lambda w: optim.Muon(w, 0.02, weight_decay=1.0) if hasattr(optim, "Muon") else pytest.skip("needs PyTorch 2.9"),
    lambda w: Lion(w, 0.02, 1.0), lambda w: Warm(w, 0.02, 1.0), lambda w: WarmInATensor(w, 0.02, 1.0),
    lambda w: Independent(w, 0.02, 0.02),
    lambda w: Restless(w, 0.02, 1.0), lambda w: optim.SGD(w, 0.05, momentum=0.9, weight_decay=0.06)])
def test_optimizers_train_the_same_network(make):
    usual, converted = Run(make, False), Run(make, True)
    tolerance = 1e-6 if type(usual.optimizer).__name__ == "Muon" else 1e-10  # which computes in bfloat16
    assert_same(usual, converted, tolerance)
    assert max(converted.handle.scales.values()) < 0.75
    usual_groups, groups = usual.optimizer.state_dict()["param_groups"], converted.optimizer.state_dict()["param_groups"]
    assert [{k: v for k, v in g.items() if k != "minibn"} for g in groups] == usual_groups


def test_a_wrong_rule_does_not():
    """The control: the decay of AdamW is lr x weight decay, not weight decay alone."""
    def make(w):
        return optim.AdamW(w, 0.1, weight_decay=0.1)

    usual, wrong = Run(make, False), Run(make, True, decay="wd")
    assert max(abs(a - b) for a, b in zip(usual.losses, wrong.losses, strict=True)) > 1e-3
