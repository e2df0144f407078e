"""The same lines on every array library, on any number of threads; and `import minibn` stays light."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import backend, models, nn, schedules
from minibn.equivalence import remove_weight_decay
from minibn.optim import SGD

NETWORKS = {"mlp": lambda **kw: models.mlp((8, 8), in_features=64, **kw), "vgg": lambda **kw: models.vgg((4, "M", 8), **kw),
            "resnet": lambda **kw: models.resnet(8, width=4, **kw),
            "preresnet": lambda **kw: models.preresnet(8, width=4, **kw)}
NORMS = {"batch": nn.BatchNorm, "layer": nn.LayerNorm, "group": lambda c, **kw: nn.GroupNorm(2, c, **kw)}


def strict():
    xp = pytest.importorskip("array_api_strict")
    return xp, xp.Device("device1")  # not the default one: mixing in an array of the default device is an error


def torch():
    return pytest.importorskip("torch"), "cpu"


def cupy():
    return pytest.importorskip("cupy"), None


LIBRARIES = [strict, torch, pytest.param(cupy, marks=pytest.mark.gpu)]


def train(network, norm, xp=None, device=None, steps=4, dtype="float64"):
    """Losses of a few steps, then weights and evaluation-mode outputs, all as NumPy; one group has a converted schedule."""
    rng = np.random.default_rng(0)
    shape = {"in_channels": 1} if network != "mlp" else {}
    net = NETWORKS[network](norm=NORMS[norm], eps=0.0, rng=rng, dtype=dtype, **shape).to(xp, device=device)
    x, y = rng.standard_normal((6, 8, 8, 1)).astype(dtype), rng.integers(10, size=6)
    if xp is not None:
        x, y = xp.asarray(x, device=device), xp.asarray(y, device=device)
    weights = [p for p in net.parameters() if p.data.ndim > 1]
    rest = [p for p in net.parameters() if p.data.ndim == 1]
    usual = {"momentum": 0.9, "weight_decay": 0.01}
    optimizers = [SGD(weights, remove_weight_decay(schedules.constant(0.1, **usual), band=1.001)),  # rescales often
                  SGD(rest, schedules.nesterov(schedules.constant(0.1, **usual)))]
    loss, losses = nn.CrossEntropy(), []
    for _ in range(steps):
        net.zero_grad()
        losses.append(loss(net(x), y))
        net.backward(loss.backward())
        for sgd in optimizers:
            sgd.step()
    state = {name: backend.to_numpy(value) for name, value in net.state_dict().items()}
    return np.array(backend.read(losses)), state, backend.to_numpy(net.eval()(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_training_is_the_same(library, network, norm):
    xp, device = library()
    losses, state, outputs = train(network, norm, xp, device)
    expected_losses, expected_state, expected_outputs = train(network, norm)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-11)
    for name, value in expected_state.items():
        np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
def test_pooling_and_logistic(library):
    xp, device = library()
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 5, 5, 3)), np.array([1.0, -1.0])
    for layer in (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.GlobalAvgPool(), nn.Flatten(), nn.ReLU()):
        y = layer(x)
        dx = layer.backward(y)
        their_y = layer(xp.asarray(x, device=device))
        np.testing.assert_allclose(backend.to_numpy(their_y), y, rtol=0, atol=1e-14)
        np.testing.assert_allclose(backend.to_numpy(layer.backward(their_y)), dx, rtol=0, atol=1e-14)
    loss = nn.Logistic()
    value, gradient = loss(x[:, 0, 0, 0], labels), loss.backward()
    theirs = loss(xp.asarray(x[:, 0, 0, 0].copy(), device=device), xp.asarray(labels, device=device))
    assert theirs == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(backend.to_numpy(loss.backward()), gradient, rtol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(norm, dtype):
    def run(threads):
        rng = np.random.default_rng(0)
        net = models.preresnet(8, norm=NORMS[norm], rng=rng, dtype=dtype)
        x, y = rng.standard_normal((48, 16, 16, 3)).astype(dtype), rng.integers(10, size=48)  # many chunks
        loss = nn.CrossEntropy()
        with backend.threads(threads):
            value = loss(net(x), y)
            dx = net.backward(loss.backward())
        return [value, dx, *(p.grad for p in net.parameters())]

    expected = run(1)
    for threads in (2, 3):
        for one, other in zip(expected, run(threads), strict=True):
            np.testing.assert_array_equal(one, other)


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 400), st.integers(1, 3))
def test_map_chunks_covers_everything_once_in_order(length, numbers, chunk_bytes, threads):
    x = np.arange(length * 1.0)
    with backend.threads(threads):
        parts = backend.map_chunks(lambda s: x[s], x, numbers, chunk_bytes)
    np.testing.assert_array_equal(np.concatenate(parts), x)


def test_norm_does_not_overflow():
    assert backend.norm([np.full(4, 1e30, dtype="float32"), np.zeros(3, dtype="float32")]) == pytest.approx(2e30)


def test_threads_below_one():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"), backend.threads(0):
        pass


def test_import_is_light():
    code = "import sys, minibn; print(*[m for m in ('matplotlib', 'torch', 'cupy', 'dask') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
