"""The headline experiment, at a few epochs."""

import dataclasses
import multiprocessing
import os

import numpy as np
import pytest

import minibn
from minibn import equivalence, experiment, kernels, plots
from minibn.__main__ import main
from minibn.equivalence.methods import METHODS
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


@pytest.mark.parametrize(("batch", "effect"), [(1437, (0.0, ())), (400, (0.0, (0.75,))), (300, (1 / 7, (0.75,))),
                                               (48, (1 / 7, (0.75, 11 / 12)))])
def test_in_a_short_run_what_is_less_than_a_step_is_left_out(batch, effect):
    settings = headline.settings(epochs=1, batch=batch)
    assert (settings.warmup, settings.milestones) == effect
    assert next(settings.usual()).lr > 0  # not refused


OPTIMIZERS = ["adamw", "lion", "muon"]
SHORT = ["--epochs", "1", "--batch", "256", "--quiet", "--workers", "1"]  # 5 steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_two_runs_are_one_for_every_optimiser(optimizer, tmp_path, capsys):
    decay = {"adamw": "30", "lion": "100", "muon": "5"}[optimizer]  # for a large gap between the two learning rates soon
    assert main([*SHORT, "--optimizer", optimizer, "--weight-decay", decay, "--output", str(tmp_path)]) == 0
    assert "the same run" in capsys.readouterr().out
    usual, exponential = (History.read_csv(tmp_path / f"{name}.csv") for name in ("usual", "exponential"))
    assert np.abs(usual["loss"] - exponential["loss"]).max() < 1e-12
    assert exponential["lr/invariant"][-1] > 1.1 * usual["lr/invariant"][-1]
    np.testing.assert_array_equal(usual["lr/rest"], exponential["lr/rest"])
    assert (tmp_path / "headline.png").read_bytes().startswith(b"\x89PNG")


def test_float32_decides_nothing(tmp_path, capsys, monkeypatch):
    """A gap that equivalent runs have there, runs without weight decay have as well."""
    monkeypatch.setattr(plots, "compare", lambda *_, **__: None)
    assert main([*SHORT, "--dtype", "float32", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "(float32: nothing is decided)" in out
    assert "--dtype float64 decides whether these two are the same\n" in out
    assert "same run" not in out


@pytest.mark.parametrize("optimizer", ["sgd", *OPTIMIZERS])
def test_exit_status_1_when_the_runs_differ(optimizer, tmp_path, capsys, monkeypatch):
    method = METHODS[optimizer]

    def without_growth(parameters, schedule, band):
        return method.optimizer(parameters, (dataclasses.replace(s, weight_decay=0.0) for s in schedule))

    monkeypatch.setitem(METHODS, optimizer, method._replace(converted=without_growth))
    monkeypatch.setattr(plots, "compare", lambda *_, **__: None)  # no picture, which is half of the time
    assert main([*SHORT, "--optimizer", optimizer, "--output", str(tmp_path)]) == 1
    assert "NOT the same run" in capsys.readouterr().out


def test_both_runs_at_once_give_the_same_files_as_one_after_the_other(tmp_path, capsys):
    said = []
    for workers in ("1", "2"):
        assert main([*SHORT[:-1], workers, "--output", str(tmp_path / workers)]) == 0
        said.append(capsys.readouterr().out.replace(str(tmp_path / workers), "FOLDER"))
    assert said[0] == said[1]
    for name in ("usual.csv", "exponential.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(("flags", "cores", "workers"), [
    ([], 1, 1), ([], 2, 2), ([], 16, 2), (["--workers", "1"], 2, 1), (["--workers", "2"], 1, 2), (["--backend", "torch"], 2, 1),
    (["--backend", "torch", "--workers", "2"], 2, 2)])
def test_the_command_trains_both_at_once_where_there_are_two_cores_and_no_gpu_to_share(flags, cores, workers, monkeypatch,
                                                                                       tmp_path):
    used = []
    monkeypatch.setattr(kernels, "cores", lambda: cores)
    monkeypatch.setattr(headline, "run", lambda *_, workers, **__: used.append(workers))
    main([*flags, "--output", str(tmp_path)])
    assert used == [workers]


def test_more_than_two_workers_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="workers must be 1 or 2, since there are two runs; got 3"):
        headline.run(headline.settings(), tmp_path, workers=3)
    with pytest.raises(SystemExit):
        main(["--workers", "3"])
    assert "needs a whole number from 1 to 2, got '3'" in capsys.readouterr().err


def dies_in_another_process(*_, **__):
    if multiprocessing.parent_process():
        os._exit(1)


def test_when_the_process_of_the_second_run_dies_the_message_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiment, "run", dies_in_another_process)
    with pytest.raises(SystemExit, match="2"):
        main([*SHORT[:-1], "2", "--output", str(tmp_path)])
    assert "the process of the second run died, perhaps from lack of memory; train one run after the other, with --workers 1" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_default_lr_of_the_others_grows_by_more_than_30(optimizer):
    settings = headline.settings(optimizer=optimizer)
    assert METHODS[optimizer].scale_after(settings.usual(), settings.steps) < 1 / 30


def test_numbers_of_another_optimiser_are_refused():
    with pytest.raises(ValueError, match="beta1=0.5 has no effect with optimizer='muon'; it is for adamw, lion"):
        headline.settings(optimizer="muon", beta1=0.5)


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
