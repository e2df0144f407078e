"""The headline experiment, at a few epochs."""

import dataclasses

import numpy as np

import minibn
from minibn import equivalence
from minibn.__main__ import main
from minibn.paper import headline
from minibn.training import History, fit


def test_the_two_runs_are_one(tmp_path, capsys):
    assert main(["--epochs", "3", "--batch", "128", "--output", str(tmp_path / "new" / "folder")]) == 0
    out = capsys.readouterr().out
    for text in ("weight decay, usual schedule", "no weight decay, growing lr", "lr at the last step", "|w| at the end",
                 "training loss", "test accuracy", "the same run", "headline.png"):
        assert text in out
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


def first_losses():
    experiment = headline.settings()
    model = experiment.network()
    return fit(model, experiment.optimizers(model), experiment.split.x_train, experiment.split.y_train, epochs=experiment.epochs,
               batch_size=experiment.batch, rng=np.random.default_rng(1), max_steps=50, progress=False)["loss"]


def test_the_equations_themselves_give_the_same_losses():
    """`minibn.plain()`, where every operation is the reference, against the chunked kernels: 50 steps of the headline."""
    with minibn.plain():
        plain = first_losses()
    np.testing.assert_allclose(first_losses(), plain, rtol=0, atol=1e-8)
    assert plain[-1] < plain[0]
