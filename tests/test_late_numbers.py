"""No step waits for a GPU: a step reads nothing, numbers are fetched later, and divergence is found where it began."""

import math
import sys
from itertools import chain, islice

import numpy as np
import pytest
from backend_runs import Run, assert_close, network

from minibn import backend, nn, schedules
from minibn.training import DivergenceError, convert, recorder, train_step
from minibn.training.evaluation import accuracy


def test_a_step_of_training_reads_nothing():
    """On PyTorch's device "meta", whose arrays have no numbers: whoever reads one gets an error."""
    torch = pytest.importorskip("torch")
    for name, norm in [("preresnet", "batch"), ("vgg", "layer")]:
        net = network(name, norm).to("torch", device="meta")
        groups = convert(net, schedules.nesterov(schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)), band=1.01).optimizers
        x, y = torch.zeros((4, 8, 8, 1), dtype=torch.float64, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
        watched = recorder.watch(net, groups, {})
        for _ in range(4):
            before = recorder.weights(watched)
            outputs, value = train_step(net, nn.CrossEntropy(), groups.values(), x, y)
            row = {"loss": value, "accuracy": accuracy(outputs, y), **recorder.measure(watched, before)}
        unread = [name for name, value in row.items() if not isinstance(value, int | float)]
        assert unread == ["loss", "accuracy", *(f"{what}/{group}" for group in groups for what in
                                                ("norm", "effective_lr", "angle"))]
        assert {row[name].device.type for name in unread} == {"meta"}
    loss = nn.Logistic()
    assert loss(torch.zeros(3, device="meta"), torch.ones(3, device="meta")).ndim == 0
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        backend.read([row["loss"]])


@pytest.mark.parametrize(("options", "rows"), [
    ({}, [8]), ({"path": "c.npz", "every": 3}, [3, 3, 2]), ({"validation": True}, [4, 4]), ({"max_steps": 5}, [5])])
def test_numbers_are_fetched_at_checkpoints_epochs_and_the_end(options, rows, far, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run()
    if "validation" in options:
        options = {"validation": (run.x, run.y)}
    assert len(run.fit(**options)) == sum(rows)
    assert far == rows


@pytest.mark.parametrize(("progress", "rows"), [(True, [4, 4]), (False, [8])])
def test_numbers_are_fetched_at_the_rate_of_the_progress_bar(progress, rows, far, monkeypatch, capsys):
    clock = iter(np.arange(0, 9, 0.03))  # a step takes 0.03 s
    monkeypatch.setattr(recorder.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Run().fit(progress=progress)
    assert far == rows
    assert ("8/8" in capsys.readouterr().err) == progress


def test_rows_fetched_late_are_the_same_rows(far, monkeypatch):
    late = Run().fit()
    monkeypatch.undo()
    at_once = Run().fit()
    assert_close(late.columns, at_once.columns, 0)


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("when", ["at once", "late"])
def test_divergence_is_reported_for_the_step_where_it_began(when, every, tmp_path, request):
    if when == "late":
        request.getfixturevalue("far")
    path, run = tmp_path / "c.npz", Run()
    sgd = run.optimizers["rest"]
    sgd.schedule = chain(islice(sgd.schedule, 5), schedules.constant(1e308))
    saved = "there is no" if every > 5 else "the last good"
    message = rf"step 5: a weight is not finite .* group 'rest' with lr 1e\+308; {saved} checkpoint"
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
        run.fit(path=path, every=every)
    if every > 5:
        assert not path.exists()
    else:
        resumed = Run()
        assert len(history := resumed.fit(path=path, max_steps=5)) == 5
        assert np.all(np.isfinite(history["loss"]))


@pytest.mark.parametrize("when", ["at once", "late"])
def test_a_loss_that_is_not_finite_is_reported_with_the_rates_before_it(when, request):
    if when == "late":
        request.getfixturevalue("far")
    run = Run()
    forward, calls = run.net.forward, []
    run.net.forward = lambda x: forward(x) * (math.nan if (calls.append(None) or len(calls)) == 4 else 1.0)
    message = r"step 3: the loss is nan after .*'invariant' with lr .*'rest' with lr 0.075; there is no"
    with pytest.raises(DivergenceError, match=message):
        run.fit()
