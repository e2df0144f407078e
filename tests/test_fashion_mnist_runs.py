"""The experiments on Fashion-MNIST in small: what a run leaves behind, what the control is, pictures and table."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_idx import make_fashion, write_fashion

from minibn import sweep
from minibn.equivalence import fixed_point
from minibn.history import History

pytest.importorskip("experiments")  # a folder of the repository, not of the package
from experiments.fashion_mnist import draw, run

SMALL = {"batch": 10, "epochs": 15, "width": 4, "depth": 8}  # 3 steps per epoch


@pytest.fixture
def small(tmp_path, monkeypatch):
    write_fashion(tmp_path / "images", make_fashion())
    monkeypatch.setattr(run, "PAPER", run.PAPER | SMALL)
    return tmp_path


def train(folder, name, seed=0):
    configuration = next(c for c in run.configurations() if (c["run"], c["seed"]) == (name, seed))
    return configuration, run.train(configuration, str(folder / "images"), str(folder), checksum=False)


def test_the_most_informative_runs_come_first_and_compared_ones_have_three_seeds():
    order = [(c["run"], c["seed"]) for c in run.configurations()]
    assert order[:2] == [("step", 0), ("texp++", 0)]
    assert [seed for _, seed in order] == sorted(seed for _, seed in order)
    for name in run.RUNS:
        assert [seed for other, seed in order if other == name] == (list(range(3)) if name in run.COMPARED else [0])
    json.dumps(run.configurations())


def test_a_run_leaves_two_small_files_that_say_what_happened(small):
    _, result = train(small, "step")
    epochs, steps = (History.read_csv(small / f"step-0.{kind}.csv") for kind in ("epochs", "steps"))
    assert epochs["epoch"].tolist() == list(range(1, 16))
    assert steps["step"].tolist() == list(range(45))
    np.testing.assert_allclose(epochs["loss"], steps["loss"].reshape(15, 3).mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose(steps["lr"], np.repeat([0.1, 0.01, 0.001], [24, 12, 9]))
    np.testing.assert_allclose(steps["effective_lr"][1:], steps["lr"][1:] / steps["norm"][:-1] ** 2, rtol=1e-6)
    assert 0 <= result["test_accuracy"] <= 1
    assert np.isfinite(epochs["test_loss"]).all()


def test_long_runs_are_thinned_out(tmp_path):
    step = np.arange(7020)
    names = ["loss", "accuracy", "test_loss", "test_accuracy", "lr/invariant", "norm/invariant", "effective_lr/invariant",
             "angle/invariant"]
    columns = {name: step.astype(float) for name in names}
    run.write(History({"step": step, **columns}), 468, tmp_path / "x")
    kept = History.read_csv(tmp_path / "x.steps.csv")["step"]
    assert kept[: run.DENSE].tolist() == list(range(run.DENSE))
    assert set(np.diff(kept[run.DENSE :])) == {run.SPARSE}
    assert kept[-1] == 7019
    assert History.read_csv(tmp_path / "x.epochs.csv")["test_loss"].tolist() == [468 * i - 1 for i in range(1, 16)]
    assert (tmp_path / "x.steps.csv").stat().st_size < 40_000


def test_texp_plus_plus_is_step_decay_and_no_decay_is_not(small):
    """Over so few steps even in float32. TEXP++ divides lr by P_t P_{t+1} = α P_t², so its effective lr is 1/α times as large."""
    for name in ("step", "texp++", "no-decay"):
        train(small, name)
    step, converted, without = (History.read_csv(small / f"{name}-0.steps.csv") for name in ("step", "texp++", "no-decay"))
    alpha = np.array([fixed_point(lr, 0.9, 5e-4)[0] for lr in step["lr"]])
    np.testing.assert_allclose(alpha * converted["effective_lr"], step["effective_lr"], rtol=1e-5)
    np.testing.assert_array_equal(without["lr"], step["lr"])
    assert converted["norm"][-1] > without["norm"][-1] > step["norm"][-1]


def test_the_control_starts_one_rounding_error_away(small):
    fields = {"path": str(small / "images"), "checksum": False, **run.PAPER}
    plain, disturbed = (kind(**fields).network().state_dict() for kind in (run.Experiment, run.Disturbed))
    up = []
    for name, w in plain.items():
        if "weight" in name:
            np.testing.assert_array_equal(np.abs(np.spacing(w)) >= np.abs(w - disturbed[name]), True)
            assert (w != disturbed[name]).all()
            up += (disturbed[name] > w).reshape(-1).tolist()
    assert 0.4 < np.mean(up) < 0.6


def test_the_command_goes_on_where_it_stopped_and_the_pictures_follow(small, monkeypatch, capsys):
    monkeypatch.setattr(run, "SEEDS", 2)
    monkeypatch.setattr(draw, "STEPS_PER_EPOCH", 3)
    flags = ["--path", str(small / "images"), "--no-checksum", "--output", str(small / "o"), "--workers", "2"]
    assert run.main([*flags, "--only", "step"]) == 0
    before = (small / "o" / "runs.jsonl").read_bytes()
    assert run.main([*flags, "--only", "step", "constant", "exponential"]) == 0
    assert (small / "o" / "runs.jsonl").read_bytes().startswith(before)
    assert len(sweep.read(small / "o" / "runs.jsonl")) == 4
    page = small / "page.md"
    page.write_text(f"before\n{draw.BEGIN}old\n{draw.END}after\n")
    capsys.readouterr()
    assert draw.main(["--data", str(small / "o"), "--output", str(small / "p"), "--page", str(page)]) == 0
    assert (small / "p" / "constant.png").read_bytes().startswith(b"\x89PNG")
    assert not (small / "p" / "texp--.png").exists()  # it has no run
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| step decay, weight decay (`step`) | 2 |" in text


def test_a_picture_compares_runs_of_the_same_seeds():
    """A mean over other seeds would show a difference that is none of the schedules."""
    runs = {"step": {0: "s0", 1: "s1", 2: "s2"}, "texp++": {1: "t1", 0: "t0"}, "disturbed": {0: "d0"}, "texp": {2: "x2"}}
    shown = draw.compared(runs, ["step", "texp++", "texp", "disturbed", "cosine"])
    assert shown == {"step": {0: "s0", 1: "s1"}, "texp++": {0: "t0", 1: "t1"}, "disturbed": {0: "d0"}}
    assert list(shown["texp++"]) == [0, 1]
    assert draw.compared(runs, ["disturbed", "texp"]) == {}
    assert draw.compared(runs, ["step", "cosine"]) == {}


def test_a_folder_without_runs_leaves_the_page_alone(tmp_path, capsys):
    (tmp_path / "page.md").write_text(f"{draw.BEGIN}old\n{draw.END}")
    with pytest.raises(SystemExit):
        draw.main(["--data", str(tmp_path), "--output", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert "there are no runs in" in capsys.readouterr().err
    assert "old" in (tmp_path / "page.md").read_text()


def test_the_table_gives_mean_standard_deviation_and_the_difference_with_the_same_seed():
    def record(name, seed, accuracy):
        return {"configuration": {"run": name, "seed": seed}, "result": {"test_accuracy": accuracy, "train_loss": 0.25}}

    rows = draw.table([record("step", 0, 0.90), record("step", 1, 0.94), record("texp", 1, 0.93), record("texp", 0, 0.91),
                       {"configuration": {"run": "cosine", "seed": 0}, "error": "no"}]).splitlines()
    assert len(rows) == 4
    assert rows[2].endswith("| 2 | 92.00 ± 2.83 % |  | 0.2500 ± 0.0000 |")
    assert rows[3].endswith("| 2 | 92.00 ± 1.41 % | +0.00 ± 1.41 % | 0.2500 ± 0.0000 |")


def test_the_page_shows_the_pictures_that_are_there():
    docs = Path(draw.DOCS)
    page = (docs / "fashion-mnist.md").read_text(encoding="utf-8")
    assert draw.BEGIN in page
    assert draw.END in page
    for file in (docs / "fashion-mnist").glob("*.png"):
        assert f"(fashion-mnist/{file.name})" in page
