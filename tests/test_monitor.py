"""Equilibrium: what the theory predicts is what is measured."""

import math
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import data, models, monitor, nn, schedules
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Step
from minibn.training import convert, fit, split


class RandomGradients:
    """Gradients of independent random directions, orthogonal to w, of size 1/|w|: a scale-invariant loss that is all noise."""

    def __init__(self, lr, momentum, weight_decay, dim=50, norm=None, seed=0):
        self.rng = np.random.default_rng(seed)
        w = self.rng.standard_normal(dim)
        self.parameter = nn.Parameter(w if norm is None else w * norm / np.linalg.norm(w))
        self.sgd = SGD([self.parameter], schedules.constant(lr, momentum=momentum, weight_decay=weight_decay))
        self.mean_square = dim - 1  # G

    def run(self, steps):
        """|w| and the angle of each step."""
        norms, angles = np.empty((2, steps))
        for t in range(steps):
            w = self.parameter.data
            norm = np.linalg.norm(w)
            xi = self.rng.standard_normal(w.shape)
            self.parameter.grad = (xi - (xi @ w) * w / norm**2) / norm
            self.sgd.step()
            norms[t], angles[t] = norm, monitor.angular_update([w], [self.parameter.data])
        return norms, angles


@pytest.mark.parametrize(("lr", "momentum", "weight_decay"), [(0.1, 0.0, 0.01), (0.1, 0.9, 1e-3), (0.01, 0.5, 0.05)])
def test_equilibrium(lr, momentum, weight_decay):
    setting = lr, momentum, weight_decay
    run = RandomGradients(*setting)
    steps = int(40 * monitor.time_to_equilibrium(*setting))
    norms, angles = run.run(steps)
    norms, angles = norms[steps // 4 :], angles[steps // 4 :]
    assert np.mean(norms**4) ** 0.25 == pytest.approx(monitor.predicted_norm(*setting, run.mean_square), rel=0.02)
    assert np.sqrt(np.mean(angles**2)) == pytest.approx(monitor.predicted_angular_update(*setting), rel=0.02)


N = 1000
EQUILIBRIA = {  # (optimiser, step, shape, U; None: as measured)
    "SGD, L2": (SGD, Step(0.1, 0.9, 2e-3), (N,), math.sqrt(N / (1 - 0.81))),
    "SGDW": (SGD, Step(0.1, 0.9, shrink=1e-3), (N,), math.sqrt(N / (1 - 0.81))),
    "AdamW .9 .99": (AdamW, AdamStep(1e-2, 0.9, 0.99, 0.0, 0.1), (N,), math.sqrt(N * 0.1 / 1.9)),
    "AdamW .9 .95": (AdamW, AdamStep(1e-2, 0.9, 0.95, 0.0, 0.1), (N,), math.sqrt(N * 0.1 / 1.9)),
    "AdamW 0 .99": (AdamW, AdamStep(1e-2, 0.0, 0.99, 0.0, 0.1), (N,), math.sqrt(N)),
    "signSGD": (Lion, LionStep(1e-2, 0.0, 0.99, 0.1), (N,), math.sqrt(N)),
    "Lion .9 .99": (Lion, LionStep(1e-2, 0.9, 0.99, 0.03), (N,), math.sqrt(N)),
    "Lion .95 .98": (Lion, LionStep(1e-2, 0.95, 0.98, 0.03), (N,), math.sqrt(N)),
    "Muon .9": (Muon, MuonStep(1e-2, 0.9, 0.1), (40, 50), None),
    "Muon .95": (Muon, MuonStep(1e-2, 0.95, 0.1), (40, 50), None),
}


@pytest.mark.parametrize("name", EQUILIBRIA)
def test_equilibrium_of_every_optimiser(name):
    """Angle and norm within 3 % of the one formula, in a simulation of gradients that are all noise."""
    make, step, shape, size = EQUILIBRIA[name]
    rng, steps = np.random.default_rng(0), 10_000 if make is Lion else 5000
    w = rng.standard_normal(shape)
    start = monitor.predicted_norm_of(step, size or 6.0)
    parameter = nn.Parameter(w * start / np.linalg.norm(w))
    optimizer = make([parameter], repeat(step))
    norms, angles, sizes = np.empty((3, steps))
    for t in range(steps):
        w = parameter.data
        norms[t] = np.linalg.norm(w)
        xi = rng.standard_normal(shape)
        parameter.grad = (xi - np.sum(xi * w) * w / norms[t] ** 2) / norms[t]
        optimizer.step()
        angles[t] = monitor.angular_update([w], [parameter.data])
        sizes[t] = np.linalg.norm(parameter.data - (1 - step.shrink) * w) / step.lr
    norms, angles = norms[steps // 4 :], angles[steps // 4 :]
    assert np.sqrt(np.mean(angles**2)) == pytest.approx(monitor.predicted_angle_of(step), rel=0.03)
    assert np.sqrt(np.mean(norms**2)) == pytest.approx(monitor.predicted_norm_of(step, size or np.mean(sizes)), rel=0.03)
    here = monitor.predicted_norm_here(step, math.prod(shape), norms, angles)
    assert np.sqrt(np.mean(norms**2)) == pytest.approx(np.sqrt(np.mean(here**2)), rel=0.03)
    assert make in (SGD, Muon) or here == pytest.approx(monitor.predicted_norm_of(step, size), rel=1e-12)


def test_where_there_is_no_prediction_it_is_nan():
    for step in (Step(0.1, 0.9, 0.1, shrink=0.1), Step(0.1, 0.9, 0.1, lookahead=1.0), Step(0.1, 0.9), AdamStep(0.1),
                 MuonStep(0.1, 0.5, 0.1)):
        assert math.isnan(monitor.predicted_angle_of(step))
        assert math.isnan(monitor.predicted_norm_of(step, 1.0))
        assert math.isnan(monitor.predicted_norm_here(step, 10, 1.0, 0.1))


def test_effective_lr_of_updates_of_degree_0():
    assert monitor.effective_lr(AdamStep(0.1), [np.array([3.0, 4.0])]) == pytest.approx(0.1 / 5)


def test_time_to_equilibrium():
    """The distance of |w|⁴ from its equilibrium falls by e in the predicted time: from 16 times it, mean of 20 runs."""
    setting = 0.1, 0.5, 2e-3
    time = int(monitor.time_to_equilibrium(*setting))
    equilibrium = monitor.predicted_norm(*setting, 49)
    quartic = np.mean([RandomGradients(*setting, norm=2 * equilibrium, seed=s).run(2 * time)[0] ** 4 for s in range(20)], axis=0)
    distance = quartic / equilibrium**4 - 1
    assert distance[0] == pytest.approx(15)
    assert distance[0] / distance[time] == pytest.approx(math.e, rel=0.1)
    assert distance[time] / distance[-1] == pytest.approx(math.e, rel=0.15)


@given(st.floats(1e-12, math.pi), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_angular_update_is_accurate_for_the_smallest_angles(angle, p, q):
    u, v = [p, 0.0], [q * math.cos(angle), q * math.sin(angle)]
    measured = monitor.angular_update([np.array(u[:1]), np.array(u[1:])], [np.array(v[:1]), np.array(v[1:])])
    assert measured == pytest.approx(angle, rel=1e-3, abs=1e-15)


def test_small_cases():
    assert monitor.effective_lr(Step(0.1), [np.array([3.0]), np.array([4.0])]) == pytest.approx(0.1 / 25)
    assert monitor.effective_lr(Step(0.1), [np.zeros(2)]) == math.inf
    assert monitor.effective_lr(Step(0.4, rescale=2.0), [np.array([3.0, 4.0])]) == pytest.approx(0.1 / 25)
    assert monitor.angular_update([np.zeros(2)], [np.ones(2)]) == 0.0
    assert monitor.time_to_equilibrium(0.1, 0.9, 0.0) == math.inf
    assert math.isnan(monitor.predicted_angle_of(Step(0.1, 0.9)))
    assert monitor.predicted_angle_of(Step(0.1, 0.9, 5e-4)) == monitor.predicted_angular_update(0.1, 0.9, 5e-4)
    with pytest.raises(ValueError, match="without weight decay there is no equilibrium"):
        monitor.predicted_norm(0.1, 0.9, 0.0, 1.0)
    with pytest.raises(ValueError, match="momentum from 0 to below 1; got lr=0.1, momentum=1.0"):
        monitor.time_to_equilibrium(0.1, 1.0, 0.1)


def test_history_has_measured_next_to_predicted_on_a_real_network():
    """In equilibrium a network on digits turns by the predicted angle; its converted run turns alike, without weight decay."""
    digits, lr, decay = data.digits("float64"), 0.05, 0.02
    histories = []
    for converted in (False, True):
        net = models.vgg((6, "M", 8), in_channels=1, eps=0.0, rng=np.random.default_rng(0), dtype="float64")
        optimizers = convert(net, schedules.constant(lr, momentum=0.9, weight_decay=decay), ["conv1.weight"]).optimizers
        if not converted:
            optimizers = {k: SGD(s.parameters, schedules.constant(lr, momentum=0.9, weight_decay=decay))
                          for k, s in optimizers.items()}
        histories.append(fit(net, optimizers, digits.x_train[:320], digits.y_train[:320], epochs=30, batch_size=16,
                             rng=np.random.default_rng(1), progress=False))
    usual, grown = histories
    measured, predicted = usual["angle/invariant"][200:], usual["predicted_angle/invariant"][200:]
    assert 0.8 < np.sqrt(np.mean(measured**2)) / predicted[0] < 1.25
    ratio = usual["predicted_norm/invariant"][200:] / usual["norm/invariant"][200:]
    np.testing.assert_allclose(ratio, np.sqrt(measured / predicted), rtol=1e-12)
    np.testing.assert_allclose(usual["angle/invariant"][:100], grown["angle/invariant"][:100], rtol=1e-6)
    assert np.all(np.isnan(grown["predicted_angle/invariant"]))
    assert np.all(np.isnan(grown["predicted_norm/invariant"]))


@pytest.mark.parametrize("step", [AdamStep(1e-2, 0.9, 0.95, weight_decay=0.5), LionStep(3e-3, 0.9, 0.98, 0.5)])
def test_history_has_the_predictions_of_adaptive_methods(step):
    x, y = data.synthetic(50, size=4, rng=np.random.default_rng(5))
    net = models.vgg((4, "M", 4), in_channels=1, rng=np.random.default_rng(0))
    optimizers = split(net, repeat(step), repeat(step)).optimizers
    history = fit(net, optimizers, x, y, epochs=1, batch_size=16, rng=np.random.default_rng(1), progress=False)
    n = sum(p.data.size for p in optimizers["invariant"].parameters)
    assert set(history["predicted_angle/invariant"]) == {monitor.predicted_angle_of(step)}
    assert set(history["predicted_norm/invariant"]) == {monitor.predicted_norm_of(step, monitor.update_size(step, n))}
