"""PyTorch as an oracle: the same weights and inputs give the same outputs, gradients, statistics and updates."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minibn import models, nn, schedules
from minibn.optim import SGD, Step

torch = pytest.importorskip("torch", reason="PyTorch is the oracle; install it with: pip install -e '.[test,torch]'")

pytestmark = pytest.mark.usefixtures("arithmetic")  # by the equations themselves, and in many chunks
seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 4)


def to_torch(x):
    """Channels last -> PyTorch's channels first."""
    return torch.tensor(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x, requires_grad=True)


def from_torch(x):
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def weight_to_torch(x):
    """(kh, kw, in, out) -> (out, in, kh, kw); (in, out) -> (out, in); a norm's (C,) as it is."""
    return torch.tensor(x.transpose(3, 2, 0, 1).copy() if x.ndim == 4 else x.T.copy())


def assert_close(ours, theirs, what, tolerance=1e-10):
    theirs = theirs.detach().numpy()
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=what)


def compare(module, oracle, x, rng):
    """Copy the weights of `module` to `oracle`, run both, compare output, all gradients and running statistics."""
    ours = list(module.named_parameters())
    theirs = list(oracle.parameters())
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for (_, p), q in zip(ours, theirs, strict=True):
            q.copy_(weight_to_torch(p.data))
    tx = to_torch(x)
    y, ty = module(x), oracle(tx)
    np.testing.assert_allclose(y, from_torch(ty), rtol=0, atol=1e-10 * max(1.0, np.abs(y).max()))
    dy = rng.standard_normal(y.shape)
    dx = module.backward(dy)
    ty.backward(to_torch(dy).detach())
    np.testing.assert_allclose(dx, from_torch(tx.grad), rtol=0, atol=1e-10 * max(1.0, np.abs(dx).max()))
    for (name, p), q in zip(ours, theirs, strict=True):
        assert_close(p.grad, torch.tensor(weight_from_torch(q.grad)), name)
    mine = [m for _, m in module.named_modules() if isinstance(m, nn.BatchNorm)]
    other = [m for m in oracle.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for m, o in zip(mine, other, strict=True):
        assert_close(m.running_mean, o.running_mean, "running_mean")
        assert_close(m.running_var, o.running_var, "running_var")
    module.eval(), oracle.eval()
    np.testing.assert_allclose(module(x), from_torch(oracle(to_torch(x))), rtol=0, atol=1e-10 * max(1.0, np.abs(y).max()))


def weight_from_torch(x):
    x = x.detach().numpy()
    return x.transpose(2, 3, 1, 0).copy() if x.ndim == 4 else x.T.copy()


@given(seeds, sizes, sizes, sizes, st.booleans())
def test_linear(seed, n, inside, outside, bias):
    rng = np.random.default_rng(seed)
    compare(nn.Linear(inside, outside, bias, rng=rng, dtype="float64"),
            torch.nn.Linear(inside, outside, bias, dtype=torch.float64), rng.standard_normal((n, inside)), rng)


@given(seeds, sizes, st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.tuples(st.integers(0, 3), st.integers(0, 3)),
       st.booleans(), st.integers(1, 9), st.integers(1, 9))
def test_conv(seed, n, kernel, stride, padding, bias, height, width):
    assume(height + 2 * padding[0] >= kernel[0] and width + 2 * padding[1] >= kernel[1])
    rng = np.random.default_rng(seed)
    compare(nn.Conv2d(3, 2, kernel, stride, padding, bias, rng=rng, dtype="float64"),
            torch.nn.Conv2d(3, 2, kernel, stride, padding, bias=bias, dtype=torch.float64),
            rng.standard_normal((n, height, width, 3)), rng)


def batch_norm(c, **kw):
    return torch.nn.BatchNorm2d(c, **kw)


def group_norm(groups):
    return lambda c, eps, affine, dtype: torch.nn.GroupNorm(groups or c, c, eps=eps, affine=affine, dtype=dtype)


NORMS = {"batch": (nn.BatchNorm, batch_norm), "layer": (nn.LayerNorm, group_norm(1)),
         "group": (lambda c, **kw: nn.GroupNorm(2, c, **kw), group_norm(2)), "instance": (nn.InstanceNorm, group_norm(None))}


@given(seeds, st.sampled_from(sorted(NORMS)), st.booleans(), st.sampled_from([1e-5, 0.1]), st.integers(1, 4),
       st.integers(2, 5), st.integers(1, 5))
def test_normalisation(seed, norm, affine, eps, n, height, width):
    rng = np.random.default_rng(seed)
    ours, theirs = NORMS[norm]
    layer = ours(4, eps=eps, affine=affine, dtype="float64")
    if affine:
        layer.weight.data, layer.bias.data = rng.standard_normal((2, 4))
    x = 3 + 2 * rng.standard_normal((n, height, width, 4))
    compare(layer, theirs(4, eps=eps, affine=affine, dtype=torch.float64), x, rng)


@given(seeds, st.integers(2, 5))
def test_batch_norm_of_rows(seed, n):
    rng = np.random.default_rng(seed)
    compare(nn.BatchNorm(3, dtype="float64"), torch.nn.BatchNorm1d(3, dtype=torch.float64), rng.standard_normal((n, 3)), rng)


def test_running_statistics_over_many_batches():
    rng = np.random.default_rng(0)
    ours, theirs = nn.BatchNorm(3, dtype="float64"), torch.nn.BatchNorm2d(3, dtype=torch.float64)
    for _ in range(20):
        x = rng.standard_normal((2, 3, 2, 3))
        ours(x), theirs(to_torch(x))
    assert_close(ours.running_mean, theirs.running_mean, "running_mean", 1e-14)
    assert_close(ours.running_var, theirs.running_var, "running_var", 1e-14)


@given(seeds, st.sampled_from([(nn.ReLU(), torch.nn.ReLU()), (nn.AvgPool2d(2), torch.nn.AvgPool2d(2)),
                               (nn.AvgPool2d(3), torch.nn.AvgPool2d(3)), (nn.MaxPool2d(2), torch.nn.MaxPool2d(2)),
                               (nn.MaxPool2d(3), torch.nn.MaxPool2d(3))]), sizes, st.integers(3, 8), st.integers(3, 8))
def test_layers_without_parameters(seed, pair, n, height, width):
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 3, size=(n, height, width, 2)).astype("float64")  # with ties, and zeros for ReLU
    compare(*pair, x, rng)


def test_losses():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((7, 5)) * 10, rng.integers(5, size=7)
    loss, tz = nn.CrossEntropy(), to_torch(z)
    theirs = torch.nn.functional.cross_entropy(tz, torch.tensor(y))
    theirs.backward()
    assert loss(z, y) == pytest.approx(float(theirs.detach()), rel=1e-14)
    assert_close(loss.backward(), tz.grad, "dlogits", 1e-15)

    s, sign = rng.standard_normal(9) * 10, rng.choice([-1, 1], size=9)
    loss, ts = nn.Logistic(), to_torch(s)
    theirs = torch.nn.functional.soft_margin_loss(ts, torch.tensor(sign))
    theirs.backward()
    assert loss(s, sign) == pytest.approx(float(theirs.detach()), rel=1e-14)
    assert_close(loss.backward(), ts.grad, "dscores", 1e-15)


# ---- whole networks, written again in PyTorch ----


class Add(torch.nn.Module):
    """branch(x) + shortcut(x)."""

    def __init__(self, branch, shortcut):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x):
        return self.branch(x) + (x if self.shortcut is None else self.shortcut(x))


def conv(inside, outside, kernel=3, stride=1):
    return torch.nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False, dtype=torch.float64)


def head(width):
    return [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10, dtype=torch.float64)]


def torch_vgg(norm):
    layers = [conv(3, 4), norm(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2), conv(4, 6), norm(6), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, *head(6))


def torch_resnet(norm, depth=14, width=4):
    layers, inside = [conv(3, width), norm(width), torch.nn.ReLU()], width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            outside, stride = width * 2**stage, 2 if stage and i == 0 else 1
            branch = torch.nn.Sequential(conv(inside, outside, 3, stride), norm(outside), torch.nn.ReLU(),
                                         conv(outside, outside), norm(outside))
            shortcut = torch.nn.Sequential(conv(inside, outside, 1, stride), norm(outside)) if stride == 2 else None
            layers += [Add(branch, shortcut), torch.nn.ReLU()]
            inside = outside
    return torch.nn.Sequential(*layers, *head(inside))


def torch_preresnet(norm, depth=14, width=4):
    layers, inside = [conv(3, width)], width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            outside, stride = width * 2**stage, 2 if stage and i == 0 else 1
            activate = [norm(inside), torch.nn.ReLU()]
            convs = [conv(inside, outside, 3, stride), norm(outside), torch.nn.ReLU(), conv(outside, outside)]
            if stride == 1:
                layers.append(Add(torch.nn.Sequential(*activate, *convs), None))
            else:
                layers += [*activate, Add(torch.nn.Sequential(*convs), conv(inside, outside, 1, stride))]
            inside = outside
    return torch.nn.Sequential(*layers, norm(inside), torch.nn.ReLU(), *head(inside))


NETWORKS = {
    "vgg": (lambda **kw: models.vgg((4, "M", 6), **kw), torch_vgg),
    "resnet": (lambda **kw: models.resnet(14, width=4, **kw), torch_resnet),
    "preresnet": (lambda **kw: models.preresnet(14, width=4, **kw), torch_preresnet),
}


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_whole_networks(name, norm):
    rng = np.random.default_rng(0)
    (ours, theirs), (our_norm, their_norm) = NETWORKS[name], NORMS[norm]
    net = ours(norm=our_norm, rng=rng, dtype="float64")
    for key, p in net.named_parameters():
        if p.data.ndim == 1:  # γ = 1 and β = 0 would hide a mix-up
            p.data = rng.standard_normal(p.data.shape) if key.endswith("bias") else rng.uniform(0.5, 1.5, p.data.shape)
    oracle = theirs(lambda c: their_norm(c, eps=1e-5, affine=True, dtype=torch.float64))
    compare(net, oracle, rng.standard_normal((5, 8, 8, 3)), rng)


# ---- SGD ----


def assert_same_path(step_of, optimizer_of, method=list, steps=100):
    """Both optimisers on the same gradients, which depend on the weights; largest difference below 1e-12."""
    rng = np.random.default_rng(0)
    start, a = rng.standard_normal(20), rng.standard_normal((20, 20)) / 5
    ours = nn.Parameter(start.copy())
    sgd = SGD([ours], method([step_of(t) for t in range(steps)]))
    theirs = torch.tensor(start.copy(), requires_grad=True)
    optimizer = optimizer_of(theirs)
    for t in range(steps):
        ours.grad = np.tanh(a @ ours.data)
        theirs.grad = torch.tanh(torch.tensor(a) @ theirs.detach())
        for key, value in {"lr": step_of(t).lr, "weight_decay": step_of(t).weight_decay}.items():
            optimizer.param_groups[0][key] = value
        sgd.step()
        optimizer.step()
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=0, atol=1e-12, err_msg=f"step {t}")


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0, 0), (0, 0.1), (0.9, 0), (0.9, 5e-4), (0.5, 0.3)])
def test_sgd(momentum, weight_decay):
    assert_same_path(lambda t: Step(0.1, momentum, weight_decay),
                     lambda w: torch.optim.SGD([w], 0.1, momentum=momentum, weight_decay=weight_decay))


def test_sgd_with_changing_lr_and_weight_decay():
    assert_same_path(lambda t: Step(0.2 / (t + 1), 0.9, 1e-3 * t), lambda w: torch.optim.SGD([w], 0.1, momentum=0.9))


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.5, 0), (0.9, 5e-4), (0.95, 0.1)])
def test_nesterov(momentum, weight_decay):
    """With lr that changes at every step, too."""
    assert_same_path(lambda t: Step(0.2 / (t + 1), momentum, weight_decay),
                     lambda w: torch.optim.SGD([w], 0.1, momentum=momentum, weight_decay=weight_decay, nesterov=True),
                     schedules.nesterov)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_decoupled_weight_decay(momentum):
    """SGDW is PyTorch's SGD after the weights were multiplied by 1 - ηλ."""

    class Decoupled(torch.optim.SGD):
        def step(self):
            group = self.param_groups[0]
            with torch.no_grad():
                group["params"][0].mul_(1 - group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0
            super().step()

    assert_same_path(lambda t: Step(0.2 / (t + 1), momentum, 0.1), lambda w: Decoupled([w], 0.1, momentum=momentum),
                     schedules.decoupled)


@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda: schedules.step_decay(0.3, [20, 50]),
     lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 50])),
    (lambda: schedules.cosine(0.3, 60, 0.01),
     lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60, eta_min=0.01)),
    (lambda: schedules.exponential(0.3, 1.05),
     lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 1.05)),
])
def test_schedules(ours, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler = theirs(optimizer)
    for step, _ in zip(ours(), range(60), strict=False):
        assert step.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()
