"""The command line and the headline experiment, at a few epochs."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from minibn import equivalence, headline, training
from minibn.__main__ import main
from minibn.history import History

SHORT = headline.Settings(epochs=3, batch=128)  # 33 steps


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
    settings = headline.Settings()
    steps = [s for s, _ in zip(settings.schedule(), range(settings.steps), strict=False)]
    converted = list(equivalence.remove_weight_decay(steps, band=None))
    growth = [new.lr / old.lr for old, new in zip(steps, converted, strict=True)]
    assert growth[-1] / growth[0] > 1e4
    assert settings.lr * settings.weight_decay <= (1 - settings.momentum**0.5) ** 2
    assert settings.dtype == "float64"


def test_exit_status_1_when_the_runs_differ(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "remove_weight_decay",
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
    (["--lr", "1", "--weight-decay", "1", "--quiet"], "cannot be converted: lr=0.0"),
    (["--output", __file__, "--quiet"], "File exists"),
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
