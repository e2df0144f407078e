"""The same lines on every array library and any number of threads: layers, networks, the theorem and what is measured."""

import math

import numpy as np
import pytest
from backend_runs import arrays, assert_close, network
from common import NETWORKS, NORMS
from conftest import others

from minibn import backend, data, kernels, models, monitor, nn, schedules
from minibn.equivalence import remove_weight_decay
from minibn.optim import SGD, Step
from minibn.training import convert, fit

KW = {"dtype": "float64"}
LAYERS = {"Linear": lambda rng: nn.Linear(3, 4, rng=rng, **KW), "BatchNorm": lambda rng: nn.BatchNorm(3, **KW),
          "Conv2d": lambda rng: nn.Conv2d(3, 2, (3, 2), (2, 1), (1, 0), True, rng=rng, **KW),
          "Conv2d 1x1": lambda rng: nn.Conv2d(3, 2, 1, rng=rng, **KW), "LayerNorm": lambda rng: nn.LayerNorm(3, eps=0.0, **KW),
          "BatchNorm in evaluation": lambda rng: nn.BatchNorm(3, **KW).eval(),
          "GroupNorm": lambda rng: nn.GroupNorm(3, 3, affine=False, **KW), "InstanceNorm": lambda rng: nn.InstanceNorm(3, **KW),
          "ReLU": lambda rng: nn.ReLU(), "Flatten": lambda rng: nn.Flatten(), "GlobalAvgPool": lambda rng: nn.GlobalAvgPool(),
          "AvgPool2d": lambda rng: nn.AvgPool2d(2), "MaxPool2d": lambda rng: nn.MaxPool2d(2),
          "Residual": lambda rng: nn.Sequential(nn.Residual(nn.Conv2d(3, 3, 1, rng=rng, **KW), nn.ReLU()))}


@others
@pytest.mark.parametrize("name", LAYERS)
def test_layers(library, name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3) if name == "Linear" else (2, 5, 5, 3))
    results = []
    for there in (False, True):
        layer = LAYERS[name](np.random.default_rng(1))
        if there:
            layer.to(library.xp, device=library.device)
        y = layer(library.array(x) if there else x)
        dx = layer.backward(y * y)
        assert not there or all(map(library.is_home_of, (y, dx, *layer.arrays(), *(p.grad for p in layer.parameters()))))
        results.append({"y": backend.to_numpy(y), "dx": backend.to_numpy(dx), **arrays(layer)})
    assert_close(*results, 1e-13)


def steps(name, norm, library=None, count=4):
    """Losses of a few steps, then weights and evaluation-mode outputs, all as NumPy; one group has a converted schedule."""
    rng = np.random.default_rng(1)
    net = network(name, norm)
    x, y = rng.standard_normal((6, 8, 8, 1)), rng.integers(10, size=6)
    if library:
        net.to(library.xp, device=library.device)
        x, y = library.array(x), library.array(y)
    usual = {"momentum": 0.9, "weight_decay": 0.01}
    weights, rest = ([p for p in net.parameters() if (p.data.ndim > 1) == wanted] for wanted in (True, False))
    optimizers = [SGD(weights, remove_weight_decay(schedules.constant(0.1, **usual), band=1.001)),  # rescales often
                  SGD(rest, schedules.nesterov(schedules.constant(0.1, **usual)))]
    loss, losses = nn.CrossEntropy(), []
    for _ in range(count):
        net.zero_grad()
        losses.append(loss(net(x), y))
        net.backward(loss.backward())
        for sgd in optimizers:
            sgd.step()
    return {"losses": backend.read(losses), **arrays(net), "outputs": backend.to_numpy(net.eval()(x))}


@others
@pytest.mark.parametrize(("name", "norm"), [*((name, "batch") for name in NETWORKS), ("preresnet", "layer"), ("mlp", "group")])
def test_networks(library, name, norm):
    assert_close(steps(name, norm, library), steps(name, norm), 1e-9)


@others
def test_a_seed_gives_the_same_start(library):
    one, other = network("preresnet", dtype="float32"), network("preresnet", dtype="float32")
    other.to(library.xp, device=library.device)
    assert_close(arrays(one), arrays(other), 0)


def test_usual_and_converted_are_one_run(library):
    """Of a whole network, with and without weight decay: losses apart by rounding, at most 1e-13 in 8 steps."""
    def schedule():
        return schedules.warmup(3, schedules.cosine(0.1, 9, momentum=0.9, weight_decay=5e-3))

    x, y = data.synthetic(32, rng=np.random.default_rng(0), dtype="float64")
    losses = []
    for converted in (True, False):
        net = network("preresnet").to(library.xp, device=library.device)
        groups = convert(net, schedule()).optimizers
        if not converted:
            groups = {name: SGD(sgd.parameters, schedule()) for name, sgd in groups.items()}
        history = fit(net, groups, x, y, epochs=4, batch_size=16, rng=np.random.default_rng(0), progress=False)
        losses.append(history["loss"])
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert 0 < np.abs(losses[0] - losses[1]).max() < 1e-13


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(norm, dtype):
    def run(threads):
        rng = np.random.default_rng(0)
        net = models.preresnet(8, norm=NORMS[norm], rng=rng, dtype=dtype)
        x, y = rng.standard_normal((96, 16, 16, 3)).astype(dtype), rng.integers(10, size=96)
        loss = nn.CrossEntropy()
        with kernels.threads(threads):
            value = loss(net(x), y)
            dx = net.backward(loss.backward())
        return [value, dx, *(p.grad for p in net.parameters())]

    expected = run(1)
    for threads in (2, 3):
        for one, other in zip(expected, run(threads), strict=True):
            np.testing.assert_array_equal(one, other)


# ---- monitor ----


def test_monitor_stays_on_the_device(library):
    before, after = [np.array([3.0, 0.0]), np.array([[4.0]])], [np.array([0.0, 3.0]), np.array([[4.0]])]
    there, zeros = [library.array(x) for x in before], [library.array(np.zeros(2)), library.array(np.zeros((1, 1)))]
    with np.errstate(all="raise"):
        values = {"norm": (kernels.norm(there), 5.0), "lr": (monitor.effective_lr(Step(0.1), there), 0.1 / 25),
                  "angle": (monitor.angular_update(there, [library.array(x) for x in after]), math.acos(16 / 25)),
                  "no angle": (monitor.angular_update(there, zeros), 0.0),
                  "no angle either": (monitor.angular_update(zeros, there), 0.0),
                  "no norm": (kernels.norm(zeros), 0.0), "infinite": (monitor.effective_lr(Step(0.1), zeros), math.inf),
                  "at lr 0 too": (monitor.effective_lr(Step(0.0), zeros), math.inf)}
    for what, (value, expected) in values.items():
        assert library.is_home_of(value), what
        assert backend.dtype_name(value) == "float64", what
        assert value.shape == (), what
        assert backend.read([value]) == pytest.approx([expected], rel=1e-14), what
        assert library.name != "numpy" or isinstance(value, float), what


def test_float32_weights_of_any_size(library):
    weights = [library.array(np.full(4, 1e30, dtype="float32")), library.array(np.zeros(3, dtype="float32"))]
    turned = [library.array(np.array([1e30, 1e30, 1e30, -1e30], dtype="float32")), weights[1]]
    assert backend.read([kernels.norm(weights), monitor.angular_update(weights, turned)]) == pytest.approx([2e30, math.pi / 3])


def test_unit_vectors_of_float32_weights_are_float32(library):
    """So that no array is twice as large as the weights."""
    x, y = np.random.default_rng(0).standard_normal((2, 99)).astype("float32")
    u, v = x / np.float32(np.linalg.norm(x.astype(float))), y / np.float32(np.linalg.norm(y.astype(float)))
    expected = 2 * math.atan2(*(np.linalg.norm(z.astype(float)) for z in (u - v, u + v)))
    measured, = backend.read([monitor.angular_update([library.array(x)], [library.array(y)])])
    assert measured == pytest.approx(expected, rel=1e-13)
