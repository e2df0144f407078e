"""Figures of training runs. In this package only this file imports Matplotlib."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minibn.history import History


def compare(runs: Mapping[str, History], group: str, path: str | Path, title: str | None = None, *,
            degree: int = 1) -> None:
    """Draw the loss, learning rate, weight norm and effective learning rate of several runs.

    Args:
        runs: {label: History}. Of several, the first is drawn wide and pale, so that equal curves
            on top of it show.
        group: name of the weights whose "lr/…", "norm/…" and "effective_lr/…" are drawn.
        path: image file to write, such as "figure.png".
        title: text above the figure. Like the labels, it is taken as it is, without mathematics.
        degree: that of the optimiser's step objects, for the label of the effective learning rate.

    Raises:
        TypeError: runs is no dict.
        ValueError: there are no runs, or a History has no such group.
    """
    if not isinstance(runs, Mapping):
        raise TypeError(f"compare: runs must be a dict, {{label: History}}, got {type(runs).__name__}")
    if not runs:
        raise ValueError("compare needs at least one run")
    for label, history in runs.items():
        if f"lr/{group}" not in history.columns:
            groups = [name.removeprefix("lr/") for name in history.columns if name.startswith("lr/")]
            raise ValueError(f"the run {label!r} has no group {group!r}; it has {groups}")

    ready()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("loss", "training loss (mean over 15 steps)"), (f"lr/{group}", "learning rate"),
              (f"norm/{group}", "norm of the weights |w|"),
              (f"effective_lr/{group}", f"effective learning rate, lr / |w|{'²' if degree else ''}")]
    with rc_context({"font.size": 13, "axes.formatter.min_exponent": 4}):  # 0.001, not 10^-3
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (column, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for i, history in enumerate(runs.values()):
                y = smooth(history[column], 15) if column == "loss" else history[column]
                style = {"linewidth": 6, "alpha": 0.35} if i == 0 < len(runs) - 1 else {"linewidth": 1.5}
                axes.plot(history["step"], y, color=f"C{i}", label=str(i), **style)
            positive = any((history[column] > 0).any() for history in runs.values())
            axes.set(xlabel="step", title=label, yscale="log" if positive else "linear")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        legend = figure.axes[0].legend(frameon=False)
        for text, name in zip(legend.get_texts(), runs, strict=True):  # set here: a label that begins with "_" is left out
            text.set(text=name, parse_math=False)
        if title:
            figure.suptitle(title, parse_math=False)
        figure.savefig(Path(path).expanduser(), dpi=110)


def ready() -> None:
    """Do nothing if Matplotlib starts here, for those who train before they draw.

    Raises:
        ImportError: it does not, for example because MPLBACKEND names no backend.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except Exception as error:
        raise ImportError(f"Matplotlib does not start: {error}. Install it, or unset MPLBACKEND") from error


def smooth(y: np.ndarray, width: int) -> np.ndarray:
    """Running mean: of each number and the up to `width - 1` numbers before it. Same length as `y`.

    Each mean is a sum of its own, so that a huge number or NaN counts only where it is among them.
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(width), y]), width)[1:]
    return windows.sum(axis=-1) / np.minimum(np.arange(1, len(y) + 1), width)
