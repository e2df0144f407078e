"""The command line: what each command writes, and what it refuses."""

import dataclasses
import functools
import io
import json
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from cifar10_batches import make_batches, write_binary

from minibn import equivalence, experiment, export, schedules, sweep
from minibn.__main__ import main
from minibn.training import History


@pytest.mark.parametrize(("flags", "message"), [
    (["--depth", "9"], "--depth: needs 6n + 2 (8, 14, 20, 26, 32, and so on), got '9'"),
    (["--epochs", "0"], "--epochs: needs a whole number of at least 1, got '0'"),
    (["--epochs", "many"], "--epochs: needs a whole number of at least 1, got 'many'"),
    (["--batch", "1"], "--batch: needs a whole number from 2 to 1437, got '1'"),
    (["--lr", "-1"], "--lr: needs a number of at least 0, got '-1'"),
    (["--lr", "nan"], "--lr: needs a number of at least 0, got 'nan'"),
    (["--momentum", "1"], "--momentum: needs a number of at least 0 and below 1, got '1'"),
    (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
    (["--lr", "1", "--weight-decay", "1", "--quiet"], "cannot be converted: weight decay would carry"),
    (["--output", __file__, "--quiet"], "File exists"),
    (["sweep", "--norm", "none"], "invalid choice: 'none'"),
    (["sweep", "--lr", "-1"], "--lr: needs a number of at least 0, got '-1'"),
    (["train", "--data", "cifar10", "--path", "no/such"], "no CIFAR-10 at no/such: it does not exist. Download"),
    (["train", "--batch", "100000"], "--batch must lie between 1 and the number of examples, 1437"),
    (["train", "--depth", "9"], "depth must be 6n + 2"),
])
def test_bad_flags(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_python_m_minibn():
    done = subprocess.run([sys.executable, "-m", "minibn", "--help"], capture_output=True, text=True, check=True)
    assert "--weight-decay" in done.stdout
    assert "Traceback" not in done.stderr


# ---- minibn convert ----


def converted(capsys, *flags):
    assert main(["convert", *flags]) == 0
    out = capsys.readouterr().out
    return out, list(export.read_csv(out.splitlines()))


def test_convert_writes_the_converted_schedule(capsys):
    flags = ["--lr", "0.1", "--momentum", "0.9", "--weight-decay", "5e-3", "--schedule", "step", "--milestones", "300", "400",
             "--steps", "1500", "--warmup", "10"]
    out, steps = converted(capsys, *flags)
    usual = schedules.warmup(10, schedules.step_decay(0.1, [300, 400], momentum=0.9, weight_decay=5e-3))
    assert steps == list(islice(equivalence.remove_weight_decay(usual), 1500))
    assert out.splitlines()[0].startswith("step,lr,momentum,kick,rescale,log10_lr")


def test_log10_is_of_the_unbounded_learning_rate(capsys):
    flags = ["--lr", "0.5", "--momentum", "0", "--weight-decay", "0.1", "--steps", "3000"]
    out, steps = converted(capsys, *flags)
    assert any(s.rescale != 1 for s in steps)
    plain, _ = converted(capsys, *flags, "--no-rescale")
    logs, expected = ([float(line.split(",")[5]) for line in text.splitlines()[1:]] for text in (out, plain))
    np.testing.assert_allclose(logs, expected, rtol=1e-12)
    assert logs[-1] > 100


@pytest.mark.parametrize("flags", [[], ["--nesterov"], ["--decoupled"], ["--decoupled", "--nesterov"],
                                   ["--schedule", "cosine"], ["--schedule", "exponential", "--growth", "1.01"]])
def test_convert_there_and_back_through_files(flags, capsys, tmp_path, monkeypatch):
    setting = ["--lr", "0.1", "--weight-decay", "1e-3", "--steps", "50", *flags]
    out, there = converted(capsys, *setting)
    (tmp_path / "there.csv").write_text(out)
    back_out, back = converted(capsys, "--read", str(tmp_path / "there.csv"), "--to-weight-decay", "1e-3")
    assert {s.weight_decay for s in back} == {1e-3}
    monkeypatch.setattr("sys.stdin", io.StringIO(back_out))
    _, again = converted(capsys, "--read", "-")
    for one, other in zip(there, again, strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("flags", "message"), [
    (["convert"], "convert needs --steps"),
    (["convert", "--steps", "5", "--read", "no/such/file"], "No such file"),
    (["convert", "--steps", "500", "--lr", "1", "--weight-decay", "1"], "cannot be converted: weight decay would carry"),
    (["convert", "--steps", "0"], "--steps: needs a whole number from 1 to 1000000000, got '0'"),
    (["convert", "--steps", "5", "--schedule", "magic"], "invalid choice: 'magic'"),
    (["convert", "--steps", "5", "--optimizer", "muon"], "Muon without weight decay is not a schedule of lr and momentum"),
    (["convert", "--steps", "5", "--optimizer", "adamw", "--lr", "1", "--weight-decay", "1"],
     "lr * --weight-decay must be below 1"),
    (["convert", "--steps", "5", "--optimizer", "lion", "--momentum", "0.9"],
     "--momentum has no effect with --optimizer lion; it is for --optimizer sgd, muon"),
    (["convert", "--steps", "5", "--optimizer", "adamw", "--nesterov"], "--nesterov has no effect with --optimizer adamw"),
    (["convert", "--steps", "5", "--optimizer", "adamw", "--no-rescale"], "--no-rescale has no effect with --optimizer adamw"),
    (["convert", "--steps", "5", "--beta1", "0.9"],
     "--beta1 has no effect with --optimizer sgd; it is for --optimizer adamw, lion"),
    (["convert", "--optimizer", "adamw", "--read", "x.csv", "--eps", "1"], "--eps has no effect with --read x.csv"),
    (["--optimizer", "adamw", "--momentum", "0.5"], "--momentum has no effect with --optimizer adamw"),
    (["train", "--optimizer", "adamw", "--schedule", "texp"], "--schedule texp is for --optimizer sgd, not for 'adamw'"),
    (["train", "--optimizer", "adamw", "--nesterov"], "--nesterov has no effect with --optimizer adamw"),
    (["train", "--rest-lr", "0.1"], "--rest-lr has no effect with --optimizer sgd; it is for --optimizer muon"),
    (["sweep", "--optimizer", "sgd", "adamw", "--momentum", "0.5"], "--momentum has no effect with --optimizer adamw"),
    (["symmetries"], "the following arguments are required: model"),
    (["symmetries", "vgg", "--depth", "8"], "--depth has no effect with vgg; it is for resnet, preresnet"),
    (["symmetries", "vgg", "--explain", "nothing"], "no parameters named ['nothing']"),
])
def test_bad_flags_of_the_commands(flags, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_convert_writes_and_reads_the_numbers_of_every_optimiser(optimizer, capsys, tmp_path):
    numbers = ["--beta1", "0.8", "--beta2", "0.97", *(["--eps", "1e-6"] if optimizer == "adamw" else [])]
    setting = ["convert", "--optimizer", optimizer, "--lr", "1e-2", "--weight-decay", "2", *numbers, "--schedule", "cosine",
               "--steps", "40", "--warmup", "5"]
    assert main(setting) == 0
    out = capsys.readouterr().out
    method = equivalence.methods.METHODS[optimizer]
    step = method.step(lr=1e-2, beta1=0.8, beta2=0.97, weight_decay=2, **({"eps": 1e-6} if optimizer == "adamw" else {}))
    usual = list(islice(schedules.like(step, schedules.warmup(5, schedules.cosine(1e-2, 40))), 40))
    there = list(export.read_csv(out.splitlines(), method.step))
    assert there == list(method.remove(usual))
    assert out.splitlines()[0] == ",".join(["step", *method.numbers])
    assert there[-1].lr > 1.2 * usual[-1].lr
    (tmp_path / "there.csv").write_text(out)
    assert main(["convert", "--optimizer", optimizer, "--read", str(tmp_path / "there.csv"), "--to-weight-decay", "2"]) == 0
    for one, other in zip(export.read_csv(capsys.readouterr().out.splitlines(), method.step), usual, strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-10, abs=1e-13)
    assert main([*setting, "--output", str(tmp_path / "written.csv")]) == 0
    assert (tmp_path / "written.csv").read_text() == out
    summary = capsys.readouterr().out
    assert "40 steps written to" in summary
    assert "rescalings" not in summary


def test_symmetries(capsys):
    assert main(["symmetries", "preresnet", "--depth", "8", "--no-affine"]) == 0
    out = capsys.readouterr().out
    assert "stem.weight" in out
    assert "scale-invariant groups" in out
    assert main(["symmetries", "vgg", "--norm", "layer", "--explain", "conv1.weight"]) == 0
    assert capsys.readouterr().out == "conv1.weight may be scaled alone: norm1 cancels it\n"


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

    @functools.wraps(original)
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
    assert "minibn: stopped" in capsys.readouterr().err
    assert main(resumable) == 0
    whole, resumed = (History.read_csv(tmp_path / name / "history.csv") for name in ("whole", "resumed"))
    for column in whole.columns:
        np.testing.assert_array_equal(whole[column], resumed[column])
    assert len(whole) == 16
    assert (tmp_path / "whole" / "history.png").exists()
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["settings"]["schedule"] == "texp"
    with pytest.raises(SystemExit):
        main([*resumable, "--lr", "0.2"])
    assert "is of another run: settings.lr was 0.1, now 0.2" in capsys.readouterr().err


# ---- minibn sweep ----

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
    assert all(line.endswith("% (2 of 2 seeds)") for line in out.splitlines()[1:3])
    failing = [*flags, "--weight-decay", "100", "--convert"]  # no conversion: each run fails, and is recorded
    assert main(failing) == 1
    out = capsys.readouterr().out
    assert "4 runs, 4 failed" in out
    assert "  failed (0 of 2 seeds): " in out


def test_a_mean_says_of_how_many_seeds_it_is(tmp_path, capsys, monkeypatch):
    def records(function, configurations, *args, **options):
        return [{"configuration": c, **({"error": "no"} if c["seed"] == 1 and c["lr"] == 0.1 else {"result": {
            "test_accuracy": 0.5 + c["seed"] / 10}})} for c in configurations]

    monkeypatch.setattr(sweep, "run", records)
    assert main(["sweep", "--lr", "0.1", "0.01", "--seeds", "3", "--output", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().out.splitlines()[1:3] == ["         0.1  60.00% (2 of 3 seeds)",
                                                           "        0.01  60.00% (3 of 3 seeds)"]


def test_a_sweep_over_optimisers_records_the_numbers_of_each(tmp_path, capsys):
    flags = ["sweep", "--model", "mlp", "--epochs", "1", "--batch", "256", "--optimizer", "adamw", "muon", "--convert",
             "--schedule", "cosine", "--quiet", "--output", str(tmp_path / "sweep.jsonl"), "--workers", "1"]
    assert main(flags) == 0
    assert "2 runs, 0 failed" in capsys.readouterr().out
    found = {r["configuration"]["optimizer"]: r["configuration"] for r in sweep.read(tmp_path / "sweep.jsonl")}
    assert (found["adamw"]["beta2"], found["adamw"]["momentum"], found["adamw"]["rest_lr"]) == (0.999, None, None)
    assert (found["muon"]["beta2"], found["muon"]["momentum"]) == (None, 0.95)
    assert found["muon"]["rest_lr"] == experiment.DEFAULTS["adamw"].lr


def test_on_a_dask_cluster(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert main([*FLAGS, "--output", str(tmp_path / "sweep.jsonl"), "--dask", cluster.scheduler_address]) == 0
    assert "4 runs, 0 failed" in capsys.readouterr().out
    assert [r["configuration"]["seed"] for r in sweep.read(tmp_path / "sweep.jsonl")].count(1) == 2
