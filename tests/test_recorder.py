"""What training measures: the columns of each set of weights, and rows that are read later."""

import math

import numpy as np
import pytest
from runs import Run
from tqdm import tqdm

from minibn import backend, models, monitor, nn, schedules
from minibn.optim import SGD
from minibn.training import DivergenceError, History, convert, fit, train_step
from minibn.training.recorder import Recorder, measure, watch, weights

WHAT = ("lr", "norm", "effective_lr", "angle", "predicted_angle", "predicted_norm")


def test_each_scale_invariant_group_has_its_own_columns():
    """A group's effective lr is lr over its own |w|², not over the sum of all groups' |w|²."""
    run = Run("float64")
    names = dict(run.net.named_parameters())
    assert run.conversion.groups == {"conv1.weight": ("conv1.weight",), "conv3.weight": ("conv3.weight",)}
    norms = {name: [np.linalg.norm(names[name].data)] for name in run.conversion.groups}
    step = run.optimizers["invariant"].step

    def stepped():
        done = step()
        for name in norms:
            norms[name].append(np.linalg.norm(names[name].data))
        return done

    run.optimizers["invariant"].step = stepped
    history = run.fit(groups=run.conversion.groups)
    assert list(history.columns) == ["step", "loss", "accuracy"] + [
        f"{what}/{name}" for name in ("invariant", "rest", "conv1.weight", "conv3.weight") for what in WHAT]
    for name, measured in norms.items():
        np.testing.assert_allclose(history[f"norm/{name}"], measured[1:], rtol=1e-12)
        np.testing.assert_allclose(history[f"effective_lr/{name}"],
                                   history["lr/invariant"] / np.array(measured[:-1]) ** 2, rtol=1e-12)
        np.testing.assert_array_equal(history[f"lr/{name}"], history["lr/invariant"])
        assert np.all(history[f"effective_lr/{name}"] > 1.1 * history["effective_lr/invariant"])


def test_measuring_groups_changes_nothing_else():
    plain, more = (Run().fit(**options) for options in ({}, {"groups": Run().conversion.groups}))
    for name in plain.columns:
        np.testing.assert_array_equal(plain[name], more[name])


def test_the_angle_of_a_group_is_that_of_its_own_weights():
    net = nn.Sequential(one=nn.Linear(1, 2, bias=False, rng=np.random.default_rng(0), dtype="float64"))
    net["one"].weight.data = np.array([[3.0, 4.0]])
    optimizers = {"all": SGD(net.parameters(), schedules.constant(1.0))}
    watched = watch(net, optimizers, {"just one": ["one.weight"]})
    before = weights(watched)
    net["one"].weight.grad = np.array([[7.0, 1.0]])  # turns (3, 4) to (-4, 3)
    optimizers["all"].step()
    row = measure(watched, before)
    assert row["angle/just one"] == pytest.approx(math.pi / 2)
    assert row["effective_lr/just one"] == pytest.approx(1 / 25)
    assert row["norm/just one"] == pytest.approx(5)
    assert math.isnan(row["predicted_angle/just one"])


@pytest.mark.parametrize(("groups", "message"), [
    ({"invariant": ["conv1.weight"]}, "group 'invariant' of .* needs a name that no optimiser has"),
    ({"mine": ["conv9.weight"]}, r"group 'mine' of \['conv9.weight'\] needs .* names of parameters"),
    ({"mine": []}, r"group 'mine' of \[\] needs"),
    ({"mine": ["conv1.weight", "head.weight"]}, "is not trained by one optimiser"),
])
def test_groups_that_cannot_be_measured_are_refused_at_the_call(groups, message):
    run = Run()
    before = run.net.state_dict()
    with pytest.raises(ValueError, match=message):
        run.fit(groups=groups)
    for name, value in run.net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_optimisers_of_another_model_are_refused_and_parameters_without_one_are_not():
    """Or the copy would not be trained, while the History looks like that of any run."""
    run, other = Run(), Run()
    before = other.net.state_dict()
    for optimizers in (run.optimizers, {**other.optimizers, "more": run.optimizers["rest"]}):
        with pytest.raises(ValueError, match=r"the optimiser '(invariant|more)' would train what is no parameter of this model "
                                             r"\((2 of its 2|6 of its 6) parameters, the first is number 0\)"):
            fit(other.net, optimizers, run.x, run.y, epochs=1, batch_size=16, rng=run.rng, progress=False)
    assert all(np.array_equal(value, before[name]) for name, value in other.net.state_dict().items())
    del other.optimizers["rest"]
    assert len(other.fit(epochs=1)) == 4


def test_a_group_without_an_optimiser_is_refused():
    net = models.vgg((4,), in_channels=1, rng=np.random.default_rng(0))
    optimizers = {"head": SGD(net["head"].parameters(), schedules.constant(0.1))}
    with pytest.raises(ValueError, match="group 'conv' .* is not trained by one optimiser"):
        watch(net, optimizers, {"conv": ["conv1.weight"]})


def row(step, loss=1.0, norm=1.0):
    return {"step": step, "loss": loss, "accuracy": 0.5, "lr/all": 0.1, "norm/all": norm}


def recorder(**options):
    return Recorder(History(), ["all"], tqdm(disable=True), **{"pause": 1000.0, **options})


def test_rows_are_read_together_when_asked_for(monkeypatch):
    reads, read = [], backend.read
    monkeypatch.setattr(backend, "read", lambda numbers: reads.append(len(numbers)) or read(numbers))
    late = recorder()
    for step in range(3):
        late.add(row(step))
    assert len(late.history) == 0
    late.add(row(3), now=True)
    assert late.history["step"].tolist() == [0, 1, 2, 3]
    assert reads == [4 * 5]
    late.add(row(4), now=True)
    assert reads == [4 * 5, 5]


def test_without_a_pause_every_row_is_read_at_once():
    at_once = recorder(pause=0.0)
    for step in range(3):
        at_once.add(row(step))
        assert len(at_once.history) == step + 1


@pytest.mark.parametrize(("bad", "message"), [
    ({"loss": math.nan}, "step 1: the loss is nan after an update of group 'all' with lr 0.1; the last good checkpoint is here"),
    ({"norm": math.inf}, "step 1: a weight is not finite after an update of group 'all' with lr 0.1; the last good"),
])
def test_rows_up_to_the_one_that_diverged_are_kept(bad, message):
    late = recorder(saved="here")
    late.add(row(0))
    late.add(row(1, **bad))
    late.add(row(2))
    with pytest.raises(DivergenceError, match=message):
        late.add(row(3), now=True)
    assert late.history["step"].tolist() == [0]


def test_one_training_step_is_forward_loss_backward_step():
    """w <- w - lr * the gradient by central differences; what is returned is from before the update."""
    rng = np.random.default_rng(0)
    net, x, y = nn.Linear(3, 2, rng=rng, dtype="float64"), rng.standard_normal((5, 3)), rng.integers(2, size=5)
    before, h, gradient = net.weight.data.copy(), 1e-6, np.empty((3, 2))
    outputs, loss = net(x), nn.CrossEntropy()(net(x), y)
    for i, j in np.ndindex(3, 2):
        values = []
        for sign in (1, -1):
            net.weight.data = before.copy()
            net.weight.data[i, j] += sign * h
            values.append(nn.CrossEntropy()(net(x), y))
        gradient[i, j] = (values[0] - values[1]) / (2 * h)
    net.weight.data = before.copy()
    for _ in range(2):  # the second from the same start: old gradients do not count
        net.weight.data = before.copy()
        found = train_step(net, nn.CrossEntropy(), [SGD([net.weight], schedules.constant(0.5))], x, y)
        np.testing.assert_allclose(net.weight.data, before - 0.5 * gradient, atol=1e-9)
    np.testing.assert_array_equal(found[0], outputs)
    assert found[1] == loss


def test_a_converted_group_has_the_effective_lr_of_the_usual_run():
    histories = []
    for converted in (False, True):
        net = models.vgg((4, "M", 4), in_channels=1, eps=0.0, rng=np.random.default_rng(0), dtype="float64")
        run = Run("float64")
        found = convert(net, schedules.constant(0.1, momentum=0.9, weight_decay=5e-3), band=1.1)
        optimizers = found.optimizers if converted else {
            name: SGD(sgd.parameters, schedules.constant(0.1, momentum=0.9, weight_decay=5e-3))
            for name, sgd in found.optimizers.items()}
        histories.append(fit(net, optimizers, run.x, run.y, epochs=4, batch_size=16, rng=run.rng, progress=False,
                             groups=found.groups))
    usual, grown = histories
    for name in found.groups:
        # lr of the converted run is η / (P P'), its norm |w| / P: the two rates differ by α of that
        # step, 1 - η drag
        ratio = grown[f"effective_lr/{name}"] / usual[f"effective_lr/{name}"]
        assert np.all((ratio > 1) & (ratio < 1.01))
        np.testing.assert_allclose(grown[f"angle/{name}"], usual[f"angle/{name}"], rtol=1e-6)
    assert monitor.predicted_angular_update(0.1, 0.9, 5e-3) == usual["predicted_angle/conv1.weight"][0]
