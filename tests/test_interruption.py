"""Signals wait until the step is done and saved; what is said about it, by the library and by the command line."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from runs import Run, assert_same_bits

from minibn import experiment, nn
from minibn.__main__ import main
from minibn.training import History, checkpoint, interruption
from minibn.training.interruption import Interrupted, Stopped, Terminated, deferred

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Signalling(nn.CrossEntropy):
    """A loss that sends this process a signal in step 5."""

    def __init__(self, number):
        super().__init__()
        self.number, self.step = number, 0

    def forward(self, logits, labels):
        self.step += 1
        if self.step == 5:
            signal.raise_signal(self.number)
        return super().forward(logits, labels)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_fit_has_saved_its_last_step_and_says_so(tmp_path, number):
    whole, run = Run(), Run()
    expected = whole.everything(whole.fit(loss=Signalling(0)))
    with pytest.raises(Interrupted if number == signal.SIGINT else Terminated) as raised:
        run.fit(loss=Signalling(number), path=tmp_path / "run.npz")
    stopped = raised.value
    assert str(stopped) == f"stopped by {number.name} after 5 steps; saved at step 5 in {tmp_path / 'run.npz'}"
    assert (stopped.signal, stopped.step, stopped.path, stopped.status) == (number, 5, tmp_path / "run.npz", 128 + number)
    np.testing.assert_array_equal(stopped.history["loss"], expected["loss"][:5])
    again = Run()
    assert_same_bits(again.everything(again.fit(loss=Signalling(0), path=tmp_path / "run.npz")), expected)


def test_without_a_path_nothing_is_saved_and_the_exception_has_the_history():
    message = "stopped by SIGINT after 5 steps; nothing was saved: no path was given"
    with pytest.raises(KeyboardInterrupt, match=message) as raised:
        Run().fit(loss=Signalling(signal.SIGINT))
    assert len(raised.value.history) == 5
    with pytest.raises(SystemExit) as raised:
        Run().fit(loss=Signalling(signal.SIGTERM))
    assert raised.value.code == 143


def test_the_handlers_are_those_of_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with deferred():
        assert all(signal.getsignal(number) is not old for number, old in zip(SIGNALS, before, strict=True))
    with pytest.raises(ZeroDivisionError), deferred():
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt):
        Run().fit(loss=Signalling(signal.SIGINT))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_nobody_asked_for_takes_effect_at_the_end_of_the_outermost_block():
    reached = []

    def blocks():
        with deferred() as outer:
            with deferred() as inner:
                signal.raise_signal(signal.SIGINT)
            reached.append(inner is outer)

    with pytest.raises(KeyboardInterrupt):
        blocks()
    assert reached == [True]


def test_the_same_signal_a_second_later_takes_effect_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])

    def block():
        with deferred():
            for now[0] in (0.0, 0.5, 0.9, 1.1, 2.0):  # some terminals and schedulers send it twice, at the same moment
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert now[0] == 1.1


def test_signals_that_the_program_handles_or_ignores_are_left_alone():
    calls = []
    own = {signal.SIGTERM: lambda number, frame: calls.append(number), signal.SIGINT: signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    try:
        for number in own:
            assert len(Run().fit(loss=Signalling(number))) == 16
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert calls == [signal.SIGTERM]


def test_a_fit_in_another_thread_ends_as_usual():
    lengths, before = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: lengths.append(len(Run().fit())))
    thread.start()
    thread.join()
    assert lengths == [16]
    assert signal.getsignal(signal.SIGINT) is before


# ---- the command line ----

TRAIN = ["train", "--model", "mlp", "--epochs", "2", "--batch", "256", "--quiet"]  # 10 steps


@pytest.fixture
def signalled(monkeypatch):
    """Let the trainings that follow get a signal in step 5."""
    original = experiment.fit

    def by(number):
        monkeypatch.setattr(experiment, "fit", lambda *a, **k: original(*a, loss=Signalling(number), **k))

    return by


@pytest.mark.parametrize("number", SIGNALS[:2])
@pytest.mark.parametrize("saved", [True, False])
def test_a_stopped_command_says_what_was_saved_and_writes_the_history(number, saved, tmp_path, capsys, signalled):
    file = tmp_path / "run.npz"
    flags = [*TRAIN, "--output", str(tmp_path / "out"), *(["--checkpoint", str(file)] if saved else [])]
    signalled(number)
    assert main(flags) == 128 + number
    said = capsys.readouterr().err
    assert said == f"\nminibn: stopped by {number.name}; " + (
        f"saved at step 5 in {file}; the same command goes on from there\n" if saved else "nothing was saved: no --checkpoint\n")
    assert len(History.read_csv(tmp_path / "out" / "history.csv")) == 5
    if saved:
        assert len(checkpoint.load(file)[0]["history/step"]) == 5
        signalled(0)
        assert main(flags) == 0
        assert len(History.read_csv(tmp_path / "out" / "history.csv")) == 10


def test_a_stopped_comparison_says_that_nothing_was_saved(tmp_path, capsys, signalled):
    signalled(signal.SIGINT)
    assert main(["--epochs", "1", "--output", str(tmp_path), "--quiet"]) == 130
    assert capsys.readouterr().err == "\nminibn: stopped by SIGINT; nothing was saved\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals to a process")
def test_a_sweep_that_is_stopped_keeps_what_ended_and_leaves_no_worker(tmp_path):
    flags = ["sweep", "--model", "mlp", "--epochs", "1", "5000", "--workers", "2", "--output", str(tmp_path / "s"), "--quiet"]
    sweep = subprocess.Popen([sys.executable, "-m", "minibn", *flags], stderr=subprocess.PIPE, text=True)
    while not ((tmp_path / "s").exists() and (tmp_path / "s").read_bytes()):
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    _, said = sweep.communicate(timeout=60)  # which waits for the end of all that hold its stderr, the workers too
    assert sweep.returncode == 130
    assert f"the runs that ended are in {tmp_path / 's'}; the same command goes on with the others" in said
    assert "Traceback" not in said
    assert (tmp_path / "s").read_text().count("\n") == 1


def test_stopped_is_what_the_two_have_in_common():
    assert issubclass(Interrupted, Stopped)
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert issubclass(Terminated, Stopped)
    assert issubclass(Terminated, SystemExit)


def test_a_killed_training_leaves_no_semaphore_behind():
    """tqdm's lock between processes would be one, and Python would warn of it after the end."""
    code = """if True:
        import multiprocessing, os
        from minibn import experiment
        multiprocessing.set_start_method("spawn")  # as in the workers of a sweep
        experiment.run(experiment.Experiment(model="mlp", schedule="constant", batch=512, epochs=1), progress=False)
        os._exit(3)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3
    assert not done.stderr
