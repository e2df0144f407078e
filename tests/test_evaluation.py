"""Outputs, loss and accuracy of a model outside training, and BatchNorm's recomputed statistics."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runs import Run, assert_same_bits

from minibn import nn
from minibn.training import evaluate, predict, update_bn


def test_predict_and_evaluate_use_running_statistics_and_keep_the_mode():
    run = Run("float64")
    run.fit(epochs=1)
    before = run.net.state_dict()
    loss, accuracy = evaluate(run.net, run.x, run.y, batch_size=7)
    logits = predict(run.net, run.x)
    assert run.net.training
    assert_same_bits(before, run.net.state_dict())
    assert accuracy == (logits.argmax(axis=1) == run.y).mean()
    assert loss == pytest.approx(nn.CrossEntropy()(run.net.eval()(run.x), run.y), rel=1e-12)
    with pytest.raises(ValueError, match="x must hold examples"):
        predict(run.net, run.x[:0])


def test_update_bn_takes_plain_averages():
    norm = nn.BatchNorm(1, dtype="float64")
    x = np.random.default_rng(0).standard_normal((20, 2, 2, 1))
    update_bn(norm, x, batch_size=5)
    means = [x[i : i + 5].mean() for i in range(0, 20, 5)]
    variances = [x[i : i + 5].var(ddof=1) for i in range(0, 20, 5)]
    assert norm.running_mean[0] == pytest.approx(np.mean(means), rel=1e-12)
    assert norm.running_var[0] == pytest.approx(np.mean(variances), rel=1e-12)
    assert norm.momentum == 0.1


def test_update_bn_of_less_than_a_batch():
    norm = nn.BatchNorm(1, dtype="float64")
    x = np.random.default_rng(0).standard_normal((20, 1))
    update_bn(norm, x)
    assert norm.running_mean[0] == pytest.approx(x.mean())


def test_accuracy_of_scores_is_that_of_their_signs():
    net = nn.Sequential(nn.Linear(1, 1, bias=False, rng=np.random.default_rng(0)), Column())
    net[0].weight.data[...] = 1
    x, y = np.array([[1.0], [2], [-1], [-3]], dtype="float32"), np.array([1, -1, -1, -1])
    assert evaluate(net, x, y, loss=nn.Logistic())[1] == 0.75


class Column(nn.Module):
    """(N, 1) -> (N,)."""

    def forward(self, x):
        return x[:, 0]


def test_evaluation_leaves_each_module_in_its_own_mode():
    rng = np.random.default_rng(0)
    net, x = nn.Sequential(nn.BatchNorm(4), nn.BatchNorm(4)), rng.standard_normal((8, 4)).astype("float32")
    net[0].eval()  # frozen
    predict(net, x)
    update_bn(net, x)
    assert [module.training for module in (net, net[0], net[1])] == [True, False, True]


def test_update_bn_of_numbers_that_are_not_finite_leaves_the_statistics_as_they_were():
    norm = nn.BatchNorm(1)
    for bad in (np.nan, np.inf):
        x = np.ones((20, 1), dtype="float32")
        x[7, 0] = bad
        with pytest.raises(ValueError, match=rf"numbers that are not finite: x\[7, 0\] is {bad}, the first of 1"):
            update_bn(norm, x, batch_size=5)
    assert norm.running_mean[0] == 0
    assert norm.running_var[0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_update_bn_mends_statistics_that_are_not_finite(bad):
    x = np.random.default_rng(0).standard_normal((20, 3)).astype("float32")
    good, mended = nn.BatchNorm(3), nn.BatchNorm(3)
    mended.running_mean[:] = mended.running_var[:] = bad
    for norm in (good, mended):
        update_bn(norm, x, batch_size=5)
    assert_same_bits(good.state_dict(), mended.state_dict())
    assert np.all(np.isfinite(mended.running_var))


def test_update_bn_that_fails_leaves_statistics_and_momentum_as_they_were():
    net = nn.Sequential(nn.BatchNorm(2), nn.Linear(3, 1, rng=np.random.default_rng(0)))
    before = net.state_dict()
    with pytest.raises(ValueError, match="needs input of shape"):
        update_bn(net, np.random.default_rng(0).standard_normal((20, 2)).astype("float32"), batch_size=5)
    assert_same_bits(before, net.state_dict())
    assert net[0].momentum == 0.1


class Slow(nn.Module):
    """Passes its input on, and lets other threads run meanwhile."""

    def __init__(self):
        self.inside = threading.Event()

    def forward(self, x):
        self.inside.set()
        time.sleep(0.05)
        return x


def test_several_threads_predict_with_one_model_as_one_does():
    """Modules in training mode, as `fit` leaves them: a thread that is done must not put that back for the others."""
    x = np.random.default_rng(0).standard_normal((20, 2)).astype("float32")
    net = nn.Sequential(Slow(), nn.BatchNorm(2))
    before, right = net.state_dict(), predict(net, x)
    net[0].inside.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predict, net, x)
        net[0].inside.wait()
        second = pool.submit(predict, net, x, batch_size=5)  # takes longer
    np.testing.assert_array_equal(first.result(), right)
    np.testing.assert_array_equal(second.result(), right)
    assert_same_bits(before, net.state_dict())
    assert all(module.training for _, module in net.named_modules())
