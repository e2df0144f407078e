"""Figures: every run is in the legend under its own name, and what cannot be drawn is named."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from minibn import experiment, plots
from minibn.__main__ import main
from minibn.training import History


def history():
    return History({"step": [0, 1], "loss": [2.0, 1.0], "lr/all": [0.1, 0.1], "norm/all": [1.0, 2.0],
                    "effective_lr/all": [0.1, 0.2]})


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    original = Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        original(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize("labels", [["_hidden", "shown"], ["cost $5 and $6", "a_b^c"], ["one"]])
def test_labels_are_shown_as_they_are(labels, drawn, tmp_path):
    plots.compare({label: history() for label in labels}, "all", tmp_path / "f.png", title="_100 $ or $ 200")
    (figure,) = drawn
    texts = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == labels
    assert not any(text.get_parse_math() for text in texts)


def test_a_single_run_is_drawn_in_the_usual_style(drawn, tmp_path):
    plots.compare({"one": history()}, "all", tmp_path / "f.png")
    plots.compare({"one": history(), "other": history()}, "all", tmp_path / "g.png")
    widths = [[line.get_linewidth() for line in figure.axes[0].lines] for figure in drawn]
    assert widths == [[1.5], [6, 1.5]]


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the run 'one' has no group 'zz'; it has \['all'\]"):
        plots.compare({"one": history()}, "zz", tmp_path / "f.png")
    with pytest.raises(ValueError, match="needs at least one run"):
        plots.compare({}, "all", tmp_path / "f.png")


def test_runs_are_a_dict(tmp_path):
    for bad in ([], [1], None, "runs"):
        with pytest.raises(TypeError, match=r"compare: runs must be a dict, \{label: History\}, got"):
            plots.compare(bad, "invariant", tmp_path / "x.png")


@pytest.mark.filterwarnings("error")
def test_a_learning_rate_of_0_is_drawn_too(tmp_path):
    still = History({**history().columns, "lr/all": [0.0, 0.0], "effective_lr/all": [0.0, 0.0]})
    plots.compare({"still": still}, "all", tmp_path / "x.png")
    plots.compare({"still": still, "moving": history()}, "all", tmp_path / "x.png")


@pytest.mark.parametrize("odd", [1e17, np.inf, np.nan])
def test_a_huge_loss_or_nan_counts_in_the_means_that_hold_it_and_in_no_other(odd):
    y = np.arange(40.0)
    y[3] = odd
    expected = [np.mean(y[max(0, t - 14):t + 1]) for t in range(40)]
    np.testing.assert_allclose(plots.smooth(y, 15), expected, rtol=1e-15)
    assert np.isfinite(expected[18:]).all()
    np.testing.assert_allclose(plots.smooth(y[:4], 15), expected[:4], rtol=1e-15)
    assert plots.smooth(np.array([]), 15).shape == (0,)


def test_a_matplotlib_that_does_not_start_is_noticed_before_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(experiment, "run", None)
    for flags in (["train", "--model", "mlp"], []):
        with pytest.raises(SystemExit):
            main([*flags, "--output", str(tmp_path)])
        assert "minibn: Matplotlib does not start: " in capsys.readouterr().err


def test_a_backend_that_matplotlib_does_not_know_is_named_with_what_to_do():
    done = subprocess.run([sys.executable, "-c", "from minibn import plots; plots.ready()"], capture_output=True, text=True,
                          env={**os.environ, "MPLBACKEND": "bo"}, check=False)
    assert "ImportError: Matplotlib does not start: Key backend: 'bo' is not a valid value" in done.stderr
    assert done.stderr.endswith("Install it, or unset MPLBACKEND\n")


def test_a_figure_that_fails_does_not_cost_the_result(monkeypatch, tmp_path, capsys):
    def fail(*args, **options):
        raise OSError("no")

    monkeypatch.setattr(plots, "compare", fail)
    with pytest.raises(SystemExit):
        main(["train", "--model", "mlp", "--epochs", "1", "--batch", "512", "--quiet", "--output", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "result.json"]
