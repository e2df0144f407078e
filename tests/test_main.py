"""The command line and the headline experiment, at a few epochs."""

import dataclasses
import io
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from minibn import equivalence, schedules
from minibn.__main__ import main
from minibn.paper import headline
from minibn.training import History


def test_the_two_runs_are_one(tmp_path, capsys):
    assert main(["--epochs", "3", "--batch", "128", "--output", str(tmp_path / "new" / "folder")]) == 0
    out, err = capsys.readouterr()
    for text in ("weight decay, usual schedule", "no weight decay, growing lr", "lr at the last step", "|w| at the end",
                 "training loss", "test accuracy", "the same run", "headline.png"):
        assert text in out
    assert "33/33" in err
    usual, exponential = (History.read_csv(tmp_path / "new" / "folder" / f"{name}.csv") for name in ("usual", "exponential"))
    assert np.abs(usual["loss"] - exponential["loss"]).max() < 1e-9
    np.testing.assert_allclose(usual["effective_lr/invariant"], exponential["effective_lr/invariant"], rtol=0.02)  # apart by α
    np.testing.assert_array_equal(usual["lr/rest"], exponential["lr/rest"])
    assert (tmp_path / "new" / "folder" / "headline.png").read_bytes().startswith(b"\x89PNG")


def test_the_default_schedule_grows_by_more_than_10_000():
    """And it has a growth rate at every step of constant lr: ηλ <= (1 - √γ)²."""
    settings = headline.settings()
    steps = [s for s, _ in zip(settings.usual(), range(settings.steps), strict=False)]
    converted = list(equivalence.remove_weight_decay(steps, band=None))
    growth = [new.lr / old.lr for old, new in zip(steps, converted, strict=True)]
    assert growth[-1] / growth[0] > 1e4
    assert settings.lr * settings.weight_decay <= (1 - settings.momentum**0.5) ** 2
    assert settings.dtype == "float64"


def test_exit_status_1_when_the_runs_differ(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(headline, "remove_weight_decay",
                        lambda schedule, **_: (dataclasses.replace(s, weight_decay=0.0) for s in schedule))
    assert main(["--epochs", "1", "--batch", "128", "--output", str(tmp_path), "--quiet"]) == 1
    assert "NOT the same run" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "message"), [
    (["--depth", "9"], "--depth: needs 6n + 2 (8, 14, 20, 26, 32, …), got '9'"),
    (["--epochs", "0"], "--epochs: needs a whole number of at least 1, got '0'"),
    (["--epochs", "many"], "--epochs: needs a whole number of at least 1, got 'many'"),
    (["--batch", "1"], "--batch: needs a whole number from 2 to 1437, got '1'"),
    (["--lr", "-1"], "--lr: needs a number of at least 0, got '-1'"),
    (["--lr", "nan"], "--lr: needs a number of at least 0, got 'nan'"),
    (["--momentum", "1"], "--momentum: needs a number from 0 to 1, got '1'"),
    (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
    (["--lr", "1", "--weight-decay", "1", "--quiet"], "cannot be converted: weight decay would carry"),
    (["--output", __file__, "--quiet"], "File exists"),
    (["sweep", "--norm", "none"], "invalid choice: 'none'"), (["sweep", "--lr", "-1"], "lr=-1"),
    (["train", "--data", "cifar10", "--path", "no/such"], "no CIFAR-10 at no/such: it does not exist. Download"),
    (["train", "--batch", "100000"], "batch_size must lie between 1 and the number of examples, 1437"),
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
    return out, list(schedules.read_csv(out.splitlines()))


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


@pytest.mark.parametrize(("text", "message"), [
    ("", "must name its columns"), ("step,momentum\n0,0.9\n", "must name its columns"), ("lr,speed\n", "must name its columns"),
    ("lr,lr\n", "must name its columns"), ("lr,momentum\n0.1\n", "line 2 of the schedule, '0.1', is not a Step"),
    ("lr\n0.1\nfast\n", "line 3 of the schedule, 'fast'"), ("lr\nnan\n", "line 2 .* finite lr"), ("lr\n-1\n", "lr=-1.0"),
])
def test_bad_csv(text, message):
    with pytest.raises(ValueError, match=message):
        list(schedules.read_csv(text.splitlines()))


@pytest.mark.parametrize(("flags", "message"), [
    (["convert"], "convert needs --steps"),
    (["convert", "--steps", "5", "--read", "no/such/file"], "No such file"),
    (["convert", "--steps", "500", "--lr", "1", "--weight-decay", "1"], "cannot be converted: weight decay would carry"),
    (["convert", "--steps", "0"], "--steps: needs a whole number of at least 1, got '0'"),
    (["convert", "--steps", "5", "--schedule", "magic"], "invalid choice: 'magic'"),
    (["symmetries"], "the following arguments are required: model"),
    (["symmetries", "vgg", "--depth", "8"], "--depth is for resnet and preresnet, not vgg"),
    (["symmetries", "vgg", "--explain", "nothing"], "no parameters named ['nothing']"),
])
def test_bad_flags_of_the_commands(flags, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_symmetries(capsys):
    assert main(["symmetries", "preresnet", "--depth", "8", "--no-affine"]) == 0
    out = capsys.readouterr().out
    assert "stem.weight" in out
    assert "scale-invariant groups" in out
    assert main(["symmetries", "vgg", "--norm", "layer", "--explain", "conv1.weight"]) == 0
    assert capsys.readouterr().out == "conv1.weight may be scaled alone: norm1 takes it out again\n"
