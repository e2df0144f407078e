"""The training loop: what it records, exact resumption, and divergence."""

import os
import sys
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Run, assert_same_bits

from minibn import nn, schedules
from minibn.equivalence import remove_weight_decay
from minibn.optim import SGD
from minibn.training import DivergenceError, fit


@settings(max_examples=15)
@given(st.integers(1, 15), st.integers(1, 6), st.integers(1, 15), st.booleans())
def test_stopped_and_resumed_is_bit_for_bit_the_unbroken_run(tmp_path_factory, stop, every, second_stop, drop_last):
    whole = Run()
    expected = whole.everything(whole.fit(drop_last=drop_last))
    path = tmp_path_factory.mktemp("run") / "run.npz"
    for last in (stop, second_stop, None):
        run = Run()
        if path.exists():
            run.rng.random(3)  # whatever state it is in, the checkpoint's counts
        history = run.fit(path=path, every=every, max_steps=last, drop_last=drop_last)
    assert_same_bits(run.everything(history), expected)


class Killed(BaseException):
    """What SIGKILL would do, at any line."""


@settings(max_examples=15)
@given(st.integers(0, 11), st.integers(1, 5))
def test_killed_at_a_random_step_and_resumed(tmp_path_factory, at, every):
    expected = (whole := Run()).everything(whole.fit(epochs=3))
    path = tmp_path_factory.mktemp("run") / "run.npz"
    run = Run()
    backward, calls = run.net.backward, []

    def dying(dy):
        calls.append(None)
        if len(calls) > at:
            raise Killed
        return backward(dy)

    run.net.backward = dying
    with pytest.raises(Killed):
        run.fit(path=path, every=every, epochs=3)
    assert path.exists() == (at >= every)
    run = Run()
    assert_same_bits(run.everything(run.fit(path=path, every=every, epochs=3)), expected)


def test_threads_do_not_change_a_bit():
    results = []
    for threads in (1, 2):
        run = Run()
        results.append(run.everything(run.fit(threads=threads)))
    assert_same_bits(*results)


def test_training_learns_and_history_holds_what_happened(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = Run("float64")
    history = run.fit(epochs=10, progress=True, description="the bar")
    assert len(history) == 40
    assert history["loss"][-4:].mean() < 0.8 * history["loss"][:4].mean()
    assert list(history.columns) == ["step", "loss", "accuracy", "lr/invariant", "norm/invariant", "effective_lr/invariant",
                                     "angle/invariant", "predicted_angle/invariant", "predicted_norm/invariant",
                                     "lr/rest", "norm/rest", "effective_lr/rest", "angle/rest", "predicted_angle/rest",
                                     "predicted_norm/rest"]
    assert history["norm/rest"][-1] == pytest.approx(np.sqrt(sum(np.sum(p.data**2) for p in run.optimizers["rest"].parameters)))
    np.testing.assert_allclose(history["effective_lr/rest"][1:], history["lr/rest"][1:] / history["norm/rest"][:-1] ** 2)
    bar = capsys.readouterr().err
    for what in ("the bar", "loss=", "acc=", "lr/invariant=", "40/40"):
        assert what in bar


@pytest.mark.parametrize("columns", [80, 100])
def test_the_bar_shows_the_growing_lr_in_narrow_terminals_and_is_not_written_into_files(columns, capsys, monkeypatch):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    description = "no weight decay, growing lr"
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # a script that imports it is no notebook
    Run().fit(epochs=3, progress=True, description=description)
    assert capsys.readouterr().err == ""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (25, columns))
    with open(its, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        Run().fit(epochs=3, progress=True, description=description)
        terminal.flush()
        *_, last = os.read(ours, 2**16).decode().strip().split("\r")
    os.close(ours)
    assert "12/12" in last
    assert "lr/invariant=0." in last
    assert len(last) <= columns


def test_effective_lr_counts_a_rescale():
    """Rescaling changes lr and norm in one step, and so not the effective lr."""
    histories = []
    for band in (None, 1.1):
        run = Run("float64")
        schedule = schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)
        run.optimizers["invariant"].schedule = remove_weight_decay(schedule, band=band)
        histories.append(run.fit(epochs=8))
    one, other = histories
    assert one["lr/invariant"][-1] != other["lr/invariant"][-1]
    np.testing.assert_allclose(one["effective_lr/invariant"], other["effective_lr/invariant"], rtol=1e-4)  # eps = 1e-5


def test_divergence_names_step_group_lr_and_checkpoint(tmp_path):
    path = tmp_path / "run.npz"
    run = Run()
    run.fit(path=path, max_steps=3)
    saved = path.read_bytes()
    run = Run()
    good = run.optimizers["rest"].schedule
    run.optimizers["rest"].schedule = chain(islice(good, 3), schedules.constant(1e38))
    message = r"step [345]: .* group 'rest' with lr 1e\+38; the last good checkpoint is .*run.npz"
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
        run.fit(path=path, every=1000)
    assert path.read_bytes() == saved


def test_divergence_without_a_checkpoint():
    run = Run()
    run.x[:] = 1e38  # finite, but the first convolution is not
    message = "step 0: the loss is nan after an update of nothing yet; there is no checkpoint"
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
        run.fit()


def test_training_arguments():
    for options, message in (({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
                             ({"every": 1.5}, "every must be a whole number of at least 1, got 1.5"),
                             ({"max_steps": -1}, "max_steps must be a whole number of at least 0, got -1"),
                             ({"batch_size": 51}, "number of examples, 50; got 51"),
                             ({"threads": 0}, "count must be a whole number of at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            Run().fit(**options)


def test_a_parameter_of_two_optimisers_is_refused():
    run = Run()
    run.optimizers["again"] = SGD(run.optimizers["rest"].parameters[:1], schedules.constant(0.1))
    with pytest.raises(ValueError, match="parameter 0 of the optimiser 'again' is one of 'rest', too, and would be updated"):
        run.fit()


def test_one_stream_for_two_optimisers_is_refused_and_one_constant_is_not():
    def go(schedule):
        run = Run()
        parameters = run.net.parameters()
        run.optimizers = {"a": SGD(parameters[:2], schedule), "b": SGD(parameters[2:], schedule)}
        return run.fit()

    with pytest.raises(ValueError, match="the optimisers 'a' and 'b' have one schedule, .* make one for each"):
        go(schedules.cosine(0.1, 20))
    assert set(go(schedules.constant(0.1))["lr/b"]) == {0.1}


class Squares:
    """Mean square of the difference between logits (N, K) and onehot(y)."""

    def __call__(self, logits, labels):
        self.difference = logits - np.eye(logits.shape[1], dtype=logits.dtype)[labels]
        return np.mean(self.difference**2)

    def backward(self):
        return 2 * self.difference / self.difference.size


def test_validation_is_by_the_loss_that_is_trained():
    rng = np.random.default_rng(0)
    net, x, y = nn.Linear(4, 3, rng=rng), rng.standard_normal((32, 4)).astype("float32"), rng.integers(3, size=32)
    history = fit(net, {"all": SGD(net.parameters(), schedules.constant(0.1))}, x, y, epochs=1, batch_size=8, rng=rng,
                           loss=Squares(), validation=(x, y), progress=False)
    assert history["test_loss"][-1] == pytest.approx(Squares()(net(x), y))


@pytest.mark.parametrize(("limit", "steps"), [(0, 0), (3, 3), (None, 16), (99, 16)])
def test_max_steps_is_the_number_of_steps(limit, steps):
    assert len(Run().fit(max_steps=limit)) == steps
