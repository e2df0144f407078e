"""Experiments as data, the commands `train` and `sweep`, and sweeps over processes and a Dask cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from test_cifar10 import make_batches, write_binary

from minibn import equivalence, experiment, sweep
from minibn.__main__ import main
from minibn.experiment import Experiment
from minibn.training import History

TINY = {"width": 4, "epochs": 2, "batch": 256}  # 10 steps


# ---- Experiment ----


@pytest.mark.parametrize("options", [{"schedule": "step", "milestones": (1.0,)}, {"schedule": "cosine", "warmup": 0.4},
                                     {"schedule": "constant", "nesterov": True}, {"schedule": "step", "model": "mlp"},
                                     {"schedule": "step", "model": "vgg", "norm": "layer", "fixed": True},
                                     {"schedule": "step", "model": "resnet", "affine": False, "norm": "group"}])
def test_converted_and_usual_are_one_run(options):
    options = {**TINY, "dtype": "float64", **options}
    one = experiment.run(Experiment(**options), progress=False)
    other = experiment.run(Experiment(**options, convert=True), progress=False)
    assert len(one.history) == 10
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], atol=1e-11)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-9)
    assert one.history["lr/invariant"][-1] != other.history["lr/invariant"][-1]


@pytest.mark.parametrize(("form", "usual"), [("exponential", "constant"), ("texp++", "step")])
def test_the_papers_forms_are_the_usual_schedules(form, usual):
    options = {**TINY, "dtype": "float64", "fixed": True, "affine": False}
    one, other = (experiment.run(Experiment(**options, schedule=name), progress=False) for name in (form, usual))
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], atol=1e-11)


def test_schedules_are_those_of_the_paper():
    one = Experiment(schedule="texp--", epochs=4, batch=287)  # 5 steps an epoch
    assert one.phases() == [(10, 0.1), (5, pytest.approx(0.01)), (float("inf"), pytest.approx(0.001))]
    expected = equivalence.texp_minus_minus(one.phases(), momentum=0.9, weight_decay=5e-3)
    assert list(islice(one.invariant(), 20)) == list(islice(expected, 20))
    assert [s.lr for s in islice(one.usual(), 9, 11)] == [0.1, pytest.approx(0.01)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_instant_drops_are_longer_weights(momentum):
    """lr of an exponential schedule times 1/4 at step 5 is the schedule itself with weights twice as long from there on."""
    phases = [(5, 0.1), (float("inf"), 0.025)]
    dropped = list(islice(equivalence.instant_drops(phases, momentum=momentum, weight_decay=2e-3), 9))
    plain = list(islice(equivalence.exponential_equivalent(0.1, momentum, 2e-3), 9))
    assert [s.lr for s in dropped] == pytest.approx([s.lr / (4 if t >= 5 else 1) for t, s in enumerate(plain)], rel=1e-15)
    assert [s.kick for s in dropped] == [s.kick for s in plain]
    with pytest.raises(ValueError, match="needs a first lr above 0, got 0"):
        equivalence.instant_drops([(5, 0.0)], momentum=0.0, weight_decay=0.0)
    one = Experiment(schedule="instant-drop", milestones=(1,), epochs=2, batch=287)
    assert list(islice(one.invariant(), 9)) == list(islice(equivalence.instant_drops(
        [(5, 0.1), (float("inf"), 0.1 * 0.1)], momentum=0.9, weight_decay=5e-3), 9))


def test_fixed_leaves_the_rest_where_it_starts():
    one = Experiment(**TINY, fixed=True)
    before, after = one.network().state_dict(), experiment.run(one, progress=False).model.state_dict()
    assert np.array_equal(before["head.weight"], after["head.weight"])
    assert np.array_equal(before["norm.weight"], after["norm.weight"])
    assert not np.array_equal(before["stem.weight"], after["stem.weight"])


def test_test_accuracy_at_the_end_of_each_epoch():
    history = experiment.run(Experiment(**TINY), progress=False).history
    assert np.flatnonzero(np.isfinite(history["test_accuracy"])).tolist() == [4, 9]
    assert 0 < history["test_accuracy"][9] < 1
    assert np.isfinite(history["test_loss"][4])


@pytest.mark.parametrize(("options", "message"), [
    ({"model": "transformer"}, "model must be one of"), ({"lr": -1}, "lr=-1"),
    ({"epochs": 0}, "epochs must be a number of at least 1"),
    ({"data": "cifar10"}, "data='cifar10' needs path"), ({"path": "x"}, "data='digits' takes no path"),
    ({"milestones": (2, 1)}, r"milestones must be increasing epochs above 0, got \[2, 1\]"),
    ({"schedule": "texp", "convert": True}, "schedule='texp' has no weight decay already"), ({"momentum": 1}, "momentum"),
    ({"eps": float("nan")}, "eps must be a number"),
])
def test_bad_experiments(options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**options)


# ---- minibn train ----


def test_train_on_cifar10_stopped_and_resumed(tmp_path, capsys):
    """End to end on small files in the real format: the same bits with a stop in the middle, and another setting is refused."""
    write_binary(tmp_path / "cifar", make_batches())
    flags = ["train", "--data", "cifar10", "--path", str(tmp_path / "cifar"), "--no-checksum", "--width", "4", "--epochs", "4",
             "--batch", "25", "--schedule", "texp", "--no-affine", "--fixed", "--quiet"]
    assert main([*flags, "--output", str(tmp_path / "whole")]) == 0
    assert "test accuracy" in capsys.readouterr().out
    checkpoint = str(tmp_path / "run.npz")
    calls = []
    original = experiment.data.crop_flip

    def interrupted(x, rng):
        calls.append(None)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return original(x, rng=rng)

    resumable = [*flags, "--output", str(tmp_path / "resumed"), "--checkpoint", checkpoint, "--every", "3"]
    experiment.data.crop_flip = interrupted
    try:
        assert main(resumable) == 130
    finally:
        experiment.data.crop_flip = original
    assert "stopped; what was saved can be continued" in capsys.readouterr().err
    assert main(resumable) == 0
    whole, resumed = (History.read_csv(tmp_path / name / "history.csv") for name in ("whole", "resumed"))
    for column in whole.columns:
        np.testing.assert_array_equal(whole[column], resumed[column])
    assert len(whole) == 16
    assert (tmp_path / "whole" / "history.png").exists()
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["settings"]["schedule"] == "texp"
    with pytest.raises(SystemExit):
        main([*resumable, "--lr", "0.2"])
    assert "was written with other settings" in capsys.readouterr().err


# ---- sweeps ----


def square(configuration):
    """A run: fails at x = 3."""
    if configuration["x"] == 3:
        raise RuntimeError("three")
    return configuration["x"] ** 2


def slow_square(configuration):
    time.sleep(0.05)
    return configuration["x"] ** 2


def die(configuration):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_failed_run_is_recorded_and_the_rest_goes_on(tmp_path):
    path, todo = tmp_path / "new" / "sweep.jsonl", sweep.grid(x=range(5))
    with ThreadPoolExecutor(2) as executor:
        records = sweep.run(square, todo, path, executor, progress=False)
    assert [r.get("result") for r in records] == [0, 1, 4, None, 16]
    assert records[3]["error"] == "RuntimeError: three"
    assert len(sweep.read(path)) == 5
    with ThreadPoolExecutor(1) as executor:
        again = sweep.run(None, todo, path, executor, progress=False)  # nothing is called
        assert again == records
        retried = sweep.run(slow_square, todo, path, executor, retry=True, progress=False)
    assert retried[3]["result"] == 9
    assert len(sweep.read(path)) == 6


def test_a_sweep_killed_half_way_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "sweep.jsonl"
    code = ("import sys; from concurrent.futures import ThreadPoolExecutor; from minibn import sweep;"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_experiment_sweep import slow_square;"
            f"sweep.run(slow_square, sweep.grid(x=range(40)), {str(path)!r}, ThreadPoolExecutor(2), progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (path.exists() and path.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    done = len(sweep.read(path))
    assert 5 <= done < 40
    with path.open("ab") as file:
        file.write(b'{"configuration": {"x": 39}, "res')  # a line cut short
    calls = []

    def counted(configuration):
        calls.append(configuration)
        return slow_square(configuration)

    with ThreadPoolExecutor(2) as executor:
        records = sweep.run(counted, sweep.grid(x=range(40)), path, executor, progress=False)
    assert len(calls) == 40 - done
    assert [r["result"] for r in records] == [x**2 for x in range(40)]
    assert sorted(r["configuration"]["x"] for r in sweep.read(path)) == list(range(40))


def test_a_dead_worker_loses_nothing(tmp_path):
    path = tmp_path / "sweep.jsonl"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        sweep.run(square, sweep.grid(x=[1]), path, executor, progress=False)
        with pytest.raises(BrokenExecutor, match="a worker of the sweep died .*1 of 3 runs are in .*sweep.jsonl"):
            sweep.run(die, sweep.grid(x=[1, 2, 4]), path, executor, progress=False)
    assert [r["configuration"]["x"] for r in sweep.read(path)] == [1]


def test_equal_configurations_run_once(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        records = sweep.run(square, [{"x": 1, "y": 2}, {"y": 2, "x": 1}], tmp_path / "s", executor, progress=False)
    assert len(records) == len(sweep.read(tmp_path / "s")) == 1


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"configuration": 3, "result": 1}', '{"configuration": {}}'])
def test_files_that_are_no_sweeps(tmp_path, line):
    (tmp_path / "s").write_text('{"configuration": {"x": 1}, "result": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 of .* is not a record of a sweep"):
        sweep.read(tmp_path / "s")


def test_grid():
    assert sweep.grid(a=[1, 2], b="xy") == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ValueError, match="no values for"):
        sweep.grid(a=[1], b=[])


FLAGS = ["sweep", "--model", "mlp", "--epochs", "1", "--batch", "256", "--lr", "0.1", "0.01", "--seeds", "2", "--quiet"]


def test_the_sweep_command(tmp_path, capsys):
    flags = [*FLAGS, "--output", str(tmp_path / "sweep.jsonl"), "--workers", "2"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "4 runs, 0 failed" in out
    lines = (tmp_path / "sweep.jsonl").read_text()
    assert lines.count("\n") == 4
    assert main(flags) == 0
    assert capsys.readouterr().out == out
    assert (tmp_path / "sweep.jsonl").read_text() == lines
    failing = [*flags, "--weight-decay", "100", "--convert"]  # no conversion: each run fails, and is recorded
    assert main(failing) == 1
    assert "4 runs, 4 failed" in capsys.readouterr().out


def test_on_a_dask_cluster(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert main([*FLAGS, "--output", str(tmp_path / "sweep.jsonl"), "--dask", cluster.scheduler_address]) == 0
    assert "4 runs, 0 failed" in capsys.readouterr().out
    assert [r["configuration"]["seed"] for r in sweep.read(tmp_path / "sweep.jsonl")].count(1) == 2
