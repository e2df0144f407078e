"""`report` measures what `invariance.symmetries` derives, leaves the model as it is, and says how exact it is."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import X, Y, loss_of, network  # noqa: E402
from test_torch_oracle import NETWORKS, NORMS  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn import invariance  # noqa: E402
from minibn.pytorch import report  # noqa: E402
from minibn.pytorch.exact import Exact  # noqa: E402


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_measured_groups_are_those_of_the_layers(name, norm):
    """`invariance.symmetries` of the same network in minibn, whose parameters come in the same order."""
    (ours, theirs), (our_norm, their_norm) = NETWORKS[name], NORMS[norm]
    expected = invariance.symmetries(ours(norm=our_norm, rng=np.random.default_rng(0), dtype="float64"))
    model = theirs(lambda c: their_norm(c, eps=1e-5, affine=True, dtype=torch.float64))
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8)
    found = report(model, lambda model: F.cross_entropy(model(x), y))
    translate = dict(zip((n for n, _ in model.named_parameters()), expected.names, strict=True))
    assert [tuple(translate[n] for n in group) for group in found.groups] == expected.groups
    assert len(found.basis) == len(expected.basis)
    for vector in found.basis:
        assert all(equation.holds({translate[n]: a for n, a in vector.items()}) for equation in expected.equations)


def test_the_report_leaves_the_model_as_it_is():
    model = network(1e-5).float().eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = report(model, lambda model: F.cross_entropy(F.dropout(model(X[:16].float())), Y[:16]))
    assert found.groups == [("0.weight",), ("1.weight", "1.bias"), ("3.weight",)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(seed, torch.get_rng_state())
    assert not model.training
    assert model[1].eps == 1e-5
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[1].weight.grad is None
    assert not model._forward_pre_hooks
    assert found.parameters == [model[0].weight, model[1].weight, model[1].bias, model[3].weight]
    assert [p for group in found for p in group] == found.parameters


def test_the_report_says_how_exact_it_is():
    exact, approximate = (report(network(eps), loss_of) for eps in (1e-30, 1e-5))
    assert max(exact.gaps) < 1e-12
    assert 1e-7 < max(approximate.gaps) < 1e-2
    assert exact.is_scale_invariant(["1.weight", "1.bias", "3.weight"])
    assert not exact.is_scale_invariant(["1.weight"])
    with pytest.raises(ValueError, match="no parameters named"):
        exact.is_scale_invariant(["2.weight"])
    summary = "3 scale-invariant sets with 4 of 8 parameters, 76.0% of all numbers\nweight decay can be removed from them exactly"
    assert summary in str(exact)
    assert "approximately: the gaps come from the normalisations' eps, here up to 1e-05; with eps = 1e-30 it" in str(approximate)
    assert [line.split()[:2] for line in str(exact).splitlines()[1:5]] == [
        ["1", "0.weight"], ["2", "1.{weight,"], ["3", "3.weight"], ["-", "{4.weight,"]]
    nothing = report(nn.Linear(64, 10), lambda model: model(X[:4].flatten(1)).square().sum())
    assert "no parameter was found to be scale-invariant\nreport cannot see" in str(nothing)


def test_the_gap_is_that_of_the_models_own_eps():
    def started():
        model = network(1e-5)
        nn.init.normal_(model[1].bias)  # what is all 0 is moved a little, so that it has an effect
        nn.init.normal_(model[4].bias)
        return model

    model = started()
    (gradient,) = torch.autograd.grad(loss_of(model), [model[0].weight])
    w = model[0].weight.detach()
    expected = abs((gradient * w).sum()) / (gradient.norm() * w.norm())
    assert report(started(), loss_of).gaps[0] == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="needs PyTorch 2.4")
def test_rms_norms_own_eps_is_that_of_the_models_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.RMSNorm(6), nn.ReLU(), nn.Linear(6, 10))
    found = report(model, lambda model: F.cross_entropy(model(X[:16].flatten(1)), Y[:16]))
    assert found.groups == [("0.weight", "0.bias")]
    assert "eps, here up to 1.19209e-07" in str(found)


def test_a_bias_before_batch_norm_has_no_effect_and_may_be_scaled():
    model = nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))
    found = report(model, lambda model: F.cross_entropy(model(X[:16].flatten(1)), Y[:16]))
    assert found.groups == [("0.weight",), ("0.bias",)]


def test_starts_at_zero_do_not_hide_anything():
    """γ = 0 at the end of a branch, as many ResNets start: the branch has no effect yet."""
    model = network()
    nn.init.zeros_(model[1].weight)
    assert report(model, loss_of).groups == report(network(), loss_of).groups


def test_parameters_of_a_transformer():
    """Pre-norm: what writes into the residual stream scales together, and nothing else does."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False),
                          nn.Linear(8, 3))
    x = torch.randn(4, 5, 4)
    writers = ("self_attn.out_proj", "linear2")
    names = [n for n, _ in model.named_parameters() if n.startswith("0.") or any(w in n for w in writers)]
    assert report(model, lambda model: model(x).square().mean()).groups == [tuple(names)]


def test_what_the_report_cannot_measure():
    model, noise = network(), iter(np.random.default_rng(0).standard_normal(1000).tolist())
    cases = [(lambda copy: loss_of(model), "must use the model that it is given"),
             (lambda copy: copy(X[:16]), "must return the scalar loss"),
             (lambda copy: loss_of(copy) / 0, "the loss is inf"),
             (lambda copy: loss_of(copy) + 1e-8 * next(noise) * copy[0].weight.sum(), "not exact enough")]
    for loss_fn, message in cases:
        with pytest.raises(ValueError, match=message):
            report(model, loss_fn)
    with pytest.raises(ValueError, match="no parameters that require gradients"):
        report(network().requires_grad_(False), loss_of)


def test_exponents_that_are_fractions():
    """Only a² b³ enters the loss: 2 and 3 times the exponents are opposites."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1))
            self.head = nn.Linear(4, 3).requires_grad_(False)

        def forward(self, x):
            return self.head(x * self.a**2 * self.b**3)

    torch.manual_seed(0)
    x, model = torch.randn(8, 4), Model()
    found = report(model, lambda model: F.cross_entropy(model(x), torch.arange(8) % 3))
    assert found.basis in ([{"a": 3, "b": -2}], [{"a": -3, "b": 2}])
    assert found.groups == []


def test_float32_inside_is_measured_in_float64_however_it_is_asked_for():
    class Norm(nn.Module):
        def forward(self, x):
            x = x.float()
            spread = torch.mean(x * x, -1, keepdim=True, dtype=torch.float32)
            return x * torch.rsqrt(spread + 1e-6)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), Norm(), nn.Linear(6, 10))
    found = report(model, lambda model: F.cross_entropy(model(X[:16].float().flatten(1)), Y[:16]))
    assert found.groups == [("0.weight", "0.bias")]


def test_the_gap_of_a_branch_that_starts_at_zero_is_measured_too():
    """With γ = 0 the conv before it has no gradient; with a little γ its eps shows."""
    model = network(1e-5)
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    found = report(model, loss_of)
    assert 1e-9 < found.gaps[found.groups.index(("0.weight",))] < 0.1


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6])
def test_biases_before_batch_norm_may_be_scaled_at_any_depth(layers):
    """Multiplied by 2**8 beside weights by 2**-8, they leave BatchNorm few digits to work with."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(layers) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *blocks, nn.Linear(64, 10))
    found = report(model, lambda m: F.cross_entropy(m(X[:64].float()), Y[:64]))
    linear = [1 + 3 * i for i in range(layers)]
    assert {(f"{i}.{name}",) for i in linear for name in ("weight", "bias")} <= set(found.groups)
    assert found.carried.unfit == []
    assert {(f"{i}.weight", f"{i}.bias") for i in linear} <= set(found.sets(with_averages=True))


def test_sets_that_do_not_hold_do_not_spoil_those_after_them():
    """BatchNorm of two numbers gives their sign alone: weights before it have no slope, and larger ones may change the sign."""
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(3, 4, stride=2), n.bn(4), nn.ReLU(), n.conv(4, 4, stride=2), n.bn(4), nn.ReLU(),
                          n.conv(4, 8, 1), n.bn(8), *n.head(8)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = report(model, lambda m: F.cross_entropy(m(x), torch.tensor([0, 1])))
    assert found.groups == [("0.weight",), ("3.weight",), ("6.weight",)]
    assert set(found.refused) == {("1.weight",), ("1.bias",), ("4.weight",), ("4.bias",)}


def with_class_weights(model, x, y):
    return F.cross_entropy(model(x), y, weight=torch.linspace(0.5, 1, 10, dtype=torch.float32))


def with_a_teacher(model, x, _):
    torch.manual_seed(1)
    teacher = network(1e-5).float().eval()
    with torch.no_grad():
        target = teacher(x.float())
    return F.kl_div(model(x).log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


def with_a_critic(model, x, _):
    torch.manual_seed(1)
    return -nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1)).float()(model(x)).mean()


def with_a_matrix(model, x, y):
    return F.cross_entropy(model(x) @ torch.linspace(-1, 1, 100, dtype=torch.float32).reshape(10, 10), y)


def with_a_gradient_penalty(model, x, y):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return F.cross_entropy(model(x), y) + gradient.square().mean()


@pytest.mark.parametrize("loss", [with_class_weights, with_a_teacher, with_a_critic, with_a_matrix, with_a_gradient_penalty])
def test_what_the_loss_brings_along_may_be_of_the_scripts_own_dtype(loss):
    model = network(1e-5).float()
    found = report(model, lambda m: loss(m, X[:32].float(), Y[:32]))
    assert found.groups == report(model, lambda m: F.cross_entropy(m(X[:32]), Y[:32])).groups
    assert max(found.gaps) < 1e-2


def test_what_the_loss_writes_into_a_tensor_of_its_own_is_not_lost():
    means, total = torch.zeros(10), torch.zeros(())

    def loss(model):
        y = model(X[:32])
        means[:] = y.detach().mean(0)
        total.add_(y.detach().sum())
        return F.cross_entropy(y, Y[:32])

    report(network(1e-5).float(), loss)
    assert means.all()
    assert total != 0


CENTRED = {"batch": lambda x, g, b: F.batch_norm(x, None, None, g, b, True, eps=1e-20),
         "instance": lambda x, g, b: F.instance_norm(x, None, None, g, b, eps=1e-20),
         "group": lambda x, g, b: F.group_norm(x, 2, g, b, 1e-20),
         "layer": lambda x, g, b: F.layer_norm(x.movedim(1, -1), (4,), g, b, 1e-20).movedim(-1, 1)}


@pytest.mark.parametrize("name", CENTRED)
def test_without_eps_a_constant_becomes_the_shift_and_the_rest_is_normalised_as_ever(name):
    """Its rounding errors are not normalised, and no gradient goes into it."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    x[1] = 1 + 0.01 * x[1]  # this is no constant
    constant = torch.zeros(x.shape, dtype=bool)
    constant[(slice(None), [2]) if name == "batch" else (2,)] = True
    x[constant] = 0.1 + 1e-15 * torch.randn(int(constant.sum()), dtype=x.dtype)
    x.requires_grad_()
    gain, shift = torch.rand(2, 4, dtype=torch.float64)
    usual = CENTRED[name](x, gain, shift)
    with Exact(tiny=True):
        y = CENTRED[name](x, gain, shift)
    (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
    assert torch.equal(y[constant], shift.reshape(4, 1, 1).expand(x.shape)[constant])
    assert not gradient[constant].any()
    assert gradient[~constant].all()
    assert float((y - usual)[~constant].detach().abs().max()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("norm", [F.batch_norm, lambda *a: F.instance_norm(*a, use_input_stats=False)])
def test_a_constant_that_is_normalised_by_running_averages_keeps_its_value(norm):
    x = torch.full((2, 3, 2, 2), 0.1, dtype=torch.float64)
    averages = torch.rand(2, 3, dtype=torch.float64)
    with Exact(tiny=True):
        y = norm(x, *averages)
    torch.testing.assert_close(y, norm(x, *averages), rtol=1e-3, atol=1e-3)


def test_a_model_whose_trained_parameters_are_all_scale_invariant_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8, 1e-30, affine=False), nn.Linear(8, 10))
    model[2].requires_grad_(False)
    assert report(model, lambda m: F.cross_entropy(m(X[:16].flatten(1)), Y[:16])).groups == [("0.weight",)]


def test_a_loss_function_that_has_taken_the_backward_pass_and_lazy_layers_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def backward(model):
        (loss := F.cross_entropy(model(X[:16]), Y[:16])).backward()
        return loss

    with pytest.raises(ValueError, match="leave its backward pass to report"):
        report(model, backward)
    with pytest.raises(ValueError, match="lazy layers, .* run it once"):
        report(nn.Sequential(nn.LazyLinear(10)), backward)
