"""Figures: every run is in the legend under its own name, and what cannot be drawn is named."""

import pytest
from matplotlib.figure import Figure

from minibn import plots
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
