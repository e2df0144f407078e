"""Fault injection: runs that are killed, stopped or out of disk go on as if unbroken, and nothing that was saved is lost.

The runs are forked off one process, so that none of them waits for imports.
"""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from runs import assert_same_bits

from minibn import data, models, nn, schedules
from minibn.optim import SGD
from minibn.training import checkpoint, fit
from minibn.training.interruption import Stopped

STEPS, EVERY = 12, 3
STOPPED, AT_ONCE = 3, 4  # statuses of a run: stopped at the end of a step; by a KeyboardInterrupt from elsewhere


class Counted(nn.CrossEntropy):
    """The loss of a run, and how many steps of it were begun."""

    begun = 0

    def forward(self, logits, labels):
        Counted.begun += 1
        return super().forward(logits, labels)


def train(path):
    """A run of `STEPS` steps, and all that it leaves: weights, velocities, history and generator."""
    net = models.mlp((4,), in_features=4, rng=np.random.default_rng(0))
    x, y = data.synthetic(32, size=2, rng=np.random.default_rng(1))
    sgd = SGD(net.parameters(), schedules.cosine(0.1, STEPS, momentum=0.9, weight_decay=1e-3))
    rng = np.random.default_rng(2)
    history = fit(net, {"all": sgd}, x, y, epochs=3, batch_size=8, rng=rng, loss=Counted(), path=path, every=EVERY, threads=1,
                  progress=False)
    return {**net.state_dict(), **{f"velocity/{i}": v for i, v in enumerate(sgd.velocity)}, **history.columns,
            "generator": str(rng.bit_generator.state)}


def steps_in(path):
    """Number of steps in the checkpoint at `path`, which must be whole; 0 without one."""
    return len(checkpoint.load(path)[0]["history/step"]) if path.exists() else 0


def run_in_child(path, tell, number, line):
    """Train at `path`, and send this process the signal `number` before the line of Python code that comes as number `line`.

    What happens is written to the file descriptor `tell`, one JSON value a line.
    """
    def say(**facts):
        os.write(tell, json.dumps(facts).encode() + b"\n")

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        if lines == line:
            lines += 1
            say(begun=Counted.begun)
            os.kill(os.getpid(), number)
        return trace

    def announced(path, model, optimizers, generator, history, run, *, commit=True):
        save_run(path, model, optimizers, generator, history, run, commit=commit)
        if commit:
            say(saved=len(history))

    lines, status, save_run = 0, 0, checkpoint.save_run
    checkpoint.save_run = announced
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Counted.begun = 0
    try:
        say(saved=steps_in(path))
        sys.settrace(trace if line is not None else None)
        train(path)
        sys.settrace(None)
    except Stopped as stopped:
        sys.settrace(None)
        say(stopped=stopped.step, path=stopped.path and str(stopped.path), rows=len(stopped.history), signal=stopped.signal)
        status = STOPPED
    except KeyboardInterrupt:
        sys.settrace(None)
        status = AT_ONCE
    say(lines=lines, ended=Counted.begun)
    return status


def forked(path, number=signal.SIGKILL, line=None, delay=None):
    """(status, {what: the last that was said about it}) of a run in a child, which gets a signal at `line` or after `delay`."""
    ours, its = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(ours)
            status = run_in_child(path, its, number, line)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(its)
    with open(ours) as file:
        said = json.loads(file.readline())  # when it begins
        if delay is not None:
            time.sleep(delay)
            os.kill(child, number)
        for text in file:
            said |= json.loads(text)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def loses_nothing(path, number, **when):
    """Whether the signal came before the end. What is at `path` afterwards must be what was promised."""
    before = steps_in(path)
    status, said = forked(path, number, **when)
    after = steps_in(path)
    case = f"{signal.Signals(number).name} {when} at step {before}: status {status}, said {said}, then at step {after}"
    assert after >= max(before, said.get("saved", 0)), case
    if status == STOPPED:
        assert number == said["signal"] != signal.SIGKILL, case
        assert said["path"] == str(path), case
        assert after == said["stopped"] == said["rows"] == before + said["ended"], case
        assert said["ended"] - said.get("begun", said["ended"]) in (0, 1), case  # the step that it was in is the last
    elif status in (AT_ONCE, -signal.SIGTERM):
        assert status == (AT_ONCE if number == signal.SIGINT else -number), case
        assert after == STEPS or not said.get("begun"), case  # before the first step, or after the last
    else:
        assert status == -number or (status == 0 and after == STEPS), case
    return status != 0


def campaign(folder, seed=0, each=22):
    """Stop `each` runs by each signal, half of them at a random line of code, the others at a random time.

    Each run is stopped three times, then goes on to its end, which must be that of the unbroken
    run.
    """
    rng = random.Random(seed)
    expected = train(None)
    status, said = forked(Path(folder, "whole.npz"), line=-1)
    assert status == 0
    start = time.perf_counter()
    assert_same_bits(train(Path(folder, "again.npz")), expected)
    lines, seconds = said["lines"], time.perf_counter() - start
    counts = {signal.SIGKILL: 0, signal.SIGINT: 0, signal.SIGTERM: 0}
    chain = 0
    while min(counts.values()) < each:
        chain += 1
        path = Path(folder, f"{chain}", "run.npz")
        path.parent.mkdir()
        for _ in range(3):
            number = min(counts, key=counts.get)
            share = rng.random() * (1 - steps_in(path) / STEPS)
            when = {"line": int(share * lines)} if counts[number] % 2 else {"delay": share * seconds}
            counts[number] += loses_nothing(path, number, **when)
        assert_same_bits(train(path), expected)
        assert os.listdir(path.parent) == ["run.npz"], "what killed writers left was not removed"
    print(json.dumps({signal.Signals(number).name: count for number, count in counts.items()}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_66_runs_stopped_by_kill_sigint_and_sigterm_lose_nothing_and_go_on_to_the_same_bits(tmp_path):
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "import test_fault_injection; test_fault_injection.campaign(sys.argv[1])")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts.keys() == {"SIGKILL", "SIGINT", "SIGTERM"}
    assert min(counts.values()) >= 22


def fails_at(monkeypatch, module, name, call, error):
    """Let `module.name` raise OSError `error` from its call number `call` on."""
    calls, original = [], getattr(module, name)

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) >= call:
            raise OSError(error, os.strerror(error), "a temporary file")
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(("name", "first"), [("fsync", 2), ("replace", 1), ("open", None)])  # the rehearsal calls fsync, too
@pytest.mark.parametrize("saves", [0, 1, 2])
def test_a_disk_that_fails_after_some_saves_keeps_them_and_the_run_goes_on(tmp_path, monkeypatch, error, name, first, saves):
    path, expected = tmp_path / "run.npz", train(None)
    with monkeypatch.context() as patch:
        if name == "open":  # of a new file in the folder
            original, made = os.open, []

            def refusing(place, flags, *more, **options):
                made.append(flags & os.O_CREAT)
                if sum(map(bool, made)) > 1 + saves:
                    raise OSError(error, os.strerror(error), place)
                return original(place, flags, *more, **options)

            patch.setattr(os, "open", refusing)
        else:
            fails_at(patch, os, name, first + saves * (2 if name == "fsync" else 1), error)  # and so does the folder
        with pytest.raises(OSError, match="checkpoint not written .*; what was saved before is untouched") as raised:
            train(path)
    assert raised.value.errno == error
    assert raised.value.filename == str(path)
    assert steps_in(path) == saves * EVERY
    assert os.listdir(tmp_path) == (["run.npz"] if saves else [])
    assert_same_bits(train(path), expected)


def test_a_disk_that_is_full_in_the_middle_of_a_save_keeps_the_earlier_one(tmp_path):
    """By a real limit: the checkpoint grows with the history, until it no longer fits."""
    path, expected = tmp_path / "run.npz", train(None)
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, os, "replace", 2, errno.EIO)
        with pytest.raises(OSError, match="checkpoint not written"):
            train(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OSError, match="checkpoint not written .File too large"):
            train(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_in(path) == EVERY
    assert os.listdir(tmp_path) == ["run.npz"]
    assert_same_bits(train(path), expected)
