"""Errors in the middle of a step: the last whole step is saved, and the run goes on from it to the same bits."""

import errno
import os
from itertools import islice

import numpy as np
import pytest
from runs import Run, assert_same_bits

from minibn import nn, schedules
from minibn.equivalence import undecayed
from minibn.invariance import symmetries
from minibn.optim import AdamStep, AdamW
from minibn.training import DivergenceError, checkpoint, loop, recorder
from minibn.training.rescue import LastStep

EVERY, VALIDATION = 6, 8  # steps between two saves; images of an evaluation


class Fault(RuntimeError):
    """Something that a user's own code raises."""


class Failing(nn.CrossEntropy):
    """A loss that raises in one of the steps; `where` is "forward", "backward" or, in the evaluation after it, "validation"."""

    def __init__(self, where=None, step=0):
        super().__init__()
        self.where, self.step, self.calls = where, step, 0

    def forward(self, logits, labels):
        training = len(logits) != VALIDATION
        self.calls += training
        if self.calls == self.step and self.where == ("forward" if training else "validation"):
            raise Fault
        return super().forward(logits, labels)

    def backward(self):
        if self.calls == self.step and self.where == "backward":
            raise Fault
        return super().backward()


class Augment:
    """Noise, so that what it draws counts; it raises at one of its calls."""

    def __init__(self, step=0):
        self.step, self.calls = step, 0

    def __call__(self, x, rng):
        self.calls += 1
        if self.calls == self.step:
            raise Fault
        return (x + rng.standard_normal(x.shape)).astype(x.dtype)


def fails_at(patch, owner, name, call):
    """Let `owner.name` raise at its call number `call`."""
    original, calls = getattr(owner, name), []

    def failing(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise Fault
        return original(*arguments, **options)

    patch.setattr(owner, name, failing)


def fit(run, path=None, loss=None, augment=None, **options):
    some = run.x[:VALIDATION], run.y[:VALIDATION]
    return run.fit(path=path, loss=loss or Failing(), augment=augment or Augment(), validation=some, every=EVERY, **options)


def broken(patch, where, step):
    """(a run, its loss, its augmentation), of which one raises in step number `step`, counted from 1."""
    run, augment = Run(), Augment(step if where == "augment" else 0)
    loss = Failing(where, step)
    if where == "first layer":
        fails_at(patch, run.net.children()[0][1], "backward", step)
    elif where in run.optimizers:
        fails_at(patch, run.optimizers[where], "step", step)
    elif where == "measure":
        fails_at(patch, loop, "measure", step)
    elif where == "bar":
        fails_at(patch, recorder.Recorder, "_show", step)
    return run, loss, augment


WHERE = ["augment", "forward", "backward", "first layer", "invariant", "rest", "measure", "bar"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("step", [2, 7, 16])
def test_an_error_in_a_step_saves_the_last_whole_one_and_the_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, where, step):
    path, whole = tmp_path / "run.npz", Run()
    expected = whole.everything(fit(whole))
    with monkeypatch.context() as patch:
        run, loss, augment = broken(patch, where, step)
        with pytest.raises(Fault) as raised:
            fit(run, path, loss, augment)
    notes = [f"minibn: saved at step {step - 1}, which was the last whole one; the same call goes on from there"]
    if hasattr(raised.value, "add_note"):  # since Python 3.11
        assert getattr(raised.value, "__notes__", []) == (notes if (step - 1) % EVERY else [])  # else it was saved already
    assert len(checkpoint.load(path)[0]["history/step"]) == step - 1
    until = Run()
    fit(until, max_steps=step - 1)
    assert_same_bits(run.net.state_dict(), until.net.state_dict())
    for name, optimizer in run.optimizers.items():
        assert_same_bits(optimizer.state_dict(), until.optimizers[name].state_dict())
    again = Run()
    assert_same_bits(again.everything(fit(again, path)), expected)


def test_an_error_in_an_evaluation_saves_the_step_before_it(tmp_path):
    path, whole, run, again = tmp_path / "run.npz", Run(), Run(), Run()
    expected = whole.everything(fit(whole))
    with pytest.raises(Fault):
        fit(run, path, Failing("validation", 8))  # the last step of the second epoch
    assert len(checkpoint.load(path)[0]["history/step"]) == 7
    assert_same_bits(again.everything(fit(again, path)), expected)


def test_a_schedule_that_ends_too_early_saves_the_steps_that_it_had(tmp_path):
    path, run = tmp_path / "run.npz", Run()
    run.optimizers["rest"].schedule = islice(schedules.constant(0.1), 9)  # the other optimiser has taken the tenth step then
    with pytest.raises(RuntimeError, match="the schedule ended after 9 steps"):
        fit(run, path)
    assert len(checkpoint.load(path)[0]["history/step"]) == 9
    assert {optimizer.steps for optimizer in run.optimizers.values()} == {9}


def test_converted_optimisers_go_back_with_their_scale(tmp_path):
    def start():
        run = Run()
        names = symmetries(run.net).weights
        invariant = [p for name, p in run.net.named_parameters() if name in names]
        rest = [p for name, p in run.net.named_parameters() if name not in names]
        steps = schedules.like(AdamStep(0.0, weight_decay=2.0), schedules.warmup(3, schedules.constant(0.05)))
        run.optimizers = {"invariant": undecayed(AdamW(invariant, steps), band=1.2), "rest": AdamW(rest, [AdamStep(0.01)] * 16)}
        return run

    path, whole, run, again = tmp_path / "run.npz", start(), start(), start()
    history = fit(whole)
    fails_at(pytest.MonkeyPatch(), run.optimizers["rest"], "step", 12)
    with pytest.raises(Fault):
        fit(run, path)
    assert run.optimizers["invariant"].steps == run.optimizers["invariant"].optimizer.steps == 11
    np.testing.assert_array_equal(fit(again, path)["loss"], history["loss"])
    assert_same_bits(again.optimizers["invariant"].state_dict(), whole.optimizers["invariant"].state_dict())


def test_an_error_in_the_first_step_saves_nothing(tmp_path):
    run = Run()
    with pytest.raises(Fault) as raised:
        fit(run, tmp_path / "run.npz", Failing("backward", 1))
    assert not hasattr(raised.value, "__notes__")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_at_the_error_keeps_what_was_saved_and_does_not_hide_the_error(tmp_path, monkeypatch):
    path, run, again, whole = tmp_path / "run.npz", Run(), Run(), Run()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Loss(Failing):
        __qualname__ = "Failing"

        def forward(self, logits, labels):
            if self.calls + 1 == self.step:
                monkeypatch.setattr(os, "fsync", full)
            return super().forward(logits, labels)

    with pytest.raises(Fault) as raised:
        fit(run, path, Loss("forward", 9))
    monkeypatch.undo()
    (note,) = getattr(raised.value, "__notes__", ["step 8 could not be saved (No space left"])
    assert "step 8 could not be saved" in note
    assert "No space left" in note
    assert len(checkpoint.load(path)[0]["history/step"]) == EVERY
    assert os.listdir(tmp_path) == ["run.npz"]
    assert_same_bits(again.everything(fit(again, path)), whole.everything(fit(whole)))


def test_a_diverged_run_saves_nothing_more(tmp_path):
    path, run = tmp_path / "run.npz", Run()
    run.optimizers["rest"].schedule = iter([*islice(schedules.constant(0.1), 7), *islice(schedules.constant(1e38), 9)])
    with pytest.raises(DivergenceError) as raised, np.errstate(all="ignore"):
        fit(run, path)
    assert not hasattr(raised.value, "__notes__")
    assert len(checkpoint.load(path)[0]["history/step"]) == EVERY


def test_without_a_path_the_error_passes():
    run = Run()
    with pytest.raises(Fault) as raised:
        fit(run, None, Failing("backward", 4))
    assert not hasattr(raised.value, "__notes__")


def test_buffers_that_a_layer_changes_in_place_go_back_too():
    run = Run()
    before = LastStep(run.net, run.optimizers.values(), 0)
    expected = run.net.state_dict()
    for _, buffer in run.net.named_buffers():
        buffer += 1
    before.restore()
    assert_same_bits(run.net.state_dict(), expected)
