"""`handle.check` tries a conversion beside the original and a control; biases that a norm cancels follow any decay."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import KINDS, Script, X, Y, batch, kinds, remove  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402


@kinds
def test_check_compares_with_a_control(kind, capsys):
    script = Script(remove, kind=kind).train(20)
    before = script.state()

    def loss_fn(model):
        assert all(p.grad is None for p in model.parameters())  # each step has its own
        x, y = batch(int(torch.randint(1000, ())))
        return F.cross_entropy(model(x), y)

    result = script.handle.check(loss_fn, steps=30)
    assert max(result[:3]) < 1e-11
    assert result.control > 0
    assert all(map(torch.equal, before, script.state()))
    assert "over 30 steps: converted and original" in str(result)


def test_check_shows_a_conversion_that_is_wrong():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    found = report(model, lambda m: F.cross_entropy(m(X[:16]), Y[:16]))
    found.groups, found.gaps, found.carried = [("1.weight",)], [1.0], found.carried._replace(sets=[("1.weight",)])
    handle = remove_weight_decay(optimizer, found)
    result = handle.check(lambda m: F.cross_entropy(m(X[:16]), Y[:16]))
    assert result.gap > 1e3 * result.control


def test_check_of_a_model_in_evaluation_mode_that_has_a_frozen_layer():
    script = Script(remove).train(20)
    script.model.eval()[0].requires_grad_(False)

    def loss_fn(model):
        assert not model[0].weight.requires_grad
        return F.cross_entropy(model(X[:16]), Y[:16])

    assert max(script.handle.check(loss_fn, steps=10)[:3]) < 1e-11


class WithAnAttribute(torch.optim.Optimizer):
    """Its β is an attribute, which torch's own deepcopy leaves out."""

    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.beta = 0.5

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in [p for p in group["params"] if p.grad is not None]:
                m = self.state[p].setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 1 - self.beta)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * m.sign())


def test_check_of_an_optimizer_with_attributes():
    script = Script()
    optimizer = WithAnAttribute(script.model.parameters(), 0.01, 0.5)
    result = remove(script.model, optimizer).check(lambda m: F.cross_entropy(m(X[:16]), Y[:16]), steps=10)
    assert max(result[:3]) < 1e-11


def test_check_refuses_other_arguments():
    handle = Script(remove).handle
    with pytest.raises(ValueError, match="handle.check: steps must be a whole number of at least 1, got 0"):
        handle.check(lambda m: F.cross_entropy(m(X[:16]), Y[:16]), steps=0)
    with pytest.raises(TypeError, match="must return the loss, a tensor of one number, got float"):
        handle.check(lambda m: F.cross_entropy(m(X[:16]), Y[:16]).item())
    with pytest.raises(TypeError, match="a parameter or a param group of the optimizer, got '0.weight'"):
        handle.ratio("0.weight")


# ---- biases that a norm cancels ----


@pytest.fixture(scope="module")
def biased():
    """A network with a bias before each BatchNorm; the report's sets with running averages have these biases, too."""
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(1, 4, bias=True), n.bn(4), nn.ReLU(), *n.head(4, 10)).double()
    found = report(model, lambda m: F.cross_entropy(m(X[:16]), Y[:16]))
    assert ("0.weight", "0.bias") in found.sets(with_averages=True)
    return model, found


def split(model, kind, factor=0.0):
    """The usual param groups: vectors with another decay than matrices, usually none."""
    make, lr, decay, extra = KINDS[kind]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return make([{"params": matrices}, {"params": vectors, "weight_decay": factor * decay}], lr=lr, weight_decay=decay, **extra)


@kinds
@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_biases_that_a_norm_cancels_follow_any_decay(kind, factor, biased):
    """A bias has no effect in training, and its part in BatchNorm's running mean is carried along with the weights' scale."""
    def train(convert, factor=factor):
        model = copy.deepcopy(biased[0])
        with torch.no_grad():
            model[0].bias.fill_(0.5)
        optimizer = split(model, kind, factor)
        handle = remove_weight_decay(optimizer, biased[1].of(model)) if convert else None
        losses = []
        for t in range(40):
            x, y = batch(t)
            optimizer.zero_grad()
            loss = F.cross_entropy(model.train()(x), y)
            loss.backward()
            optimizer.step()
            losses += [loss.item(), F.cross_entropy(model.eval()(X[500:600]), Y[500:600]).item()]
        return losses, convert and handle.ratio(model[0].weight)

    usual, (converted, ratio), (_, of_decay_alike) = train(False), train(True), train(True, factor=1.0)
    assert converted == pytest.approx(usual[0], rel=1e-9)
    assert ratio == pytest.approx(of_decay_alike, rel=1e-9)  # the weights alone say how they shrink
    assert ratio < 0.95


def test_check_knows_these_biases(biased):
    model = copy.deepcopy(biased[0])
    handle = remove_weight_decay(split(model, "sgd"), biased[1].of(model))
    result = handle.check(lambda m: F.cross_entropy(m(X[:16]), Y[:16]), steps=10)
    assert max(result[:3]) < 1e-12


def test_their_gradients_are_rounding_alone_and_say_nothing(biased):
    """They stand in sets of their own without running averages. The first gradients of all sets are looked at, but not theirs."""
    model = copy.deepcopy(biased[0]).float()
    optimizer = split(model, "sgd")
    handle = remove_weight_decay(optimizer, biased[1].of(model), averages=False)
    assert [s.name for s in handle.sets][:2] == [("0.weight",), ("0.bias",)]
    for _ in range(5):
        F.cross_entropy(model(X[:32].float()), Y[:32]).backward()
        optimizer.step()


class Attention(nn.Module):
    """One head. The bias of k adds the same to all scores of a query, so it has no effect."""

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.q, self.k, self.v = nn.LayerNorm(width), *(nn.Linear(width, width) for _ in range(3))
        self.out, self.last, self.head = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return self.head(self.last(x).mean(1))


@pytest.mark.parametrize("seed", range(4))
def test_an_attentions_key_bias_is_no_obstacle_in_float32(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), Attention())
    x = X.float().reshape(-1, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    remove_weight_decay(optimizer, report(model, lambda m: F.cross_entropy(m(x[:32]), Y[:32])))
    for t in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x[t::50]), Y[t::50]).backward()
        optimizer.step()
