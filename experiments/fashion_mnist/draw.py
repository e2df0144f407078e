"""Draw the pictures and write the table of docs/fashion-mnist.md, from the CSV files of the runs that are there.

    python -m experiments.fashion_mnist.draw

Thin lines are single seeds, thick lines their mean. The first schedule of a picture is drawn wide
and pale. A picture shows the seeds with which its first two schedules have both been run. The table
has a row for each schedule that has a run.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.fashion_mnist.run import PAPER, RUNS, SPARSE
from minibn import sweep
from minibn.history import History
from minibn.plots import smooth

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- table: written by python -m experiments.fashion_mnist.draw -->\n", "<!-- end of table -->\n"
STEPS_PER_EPOCH = 60_000 // PAPER["batch"]
# label, colour (of Okabe & Ito, which all eyes tell apart), dashes: they differ in brightness and
# in dashes, too
LOOKS = {"step": ("step decay, weight decay", "#000000", "-"), "texp++": ("TEXP++, no weight decay", "#e69f00", "-"),
         "texp": ("TEXP, no weight decay", "#56b4e9", "--"), "disturbed": ("step decay, weights disturbed", "#cc79a7", ":"),
         "no-decay": ("step decay, no weight decay", "#0072b2", "-"), "constant": ("constant lr, weight decay", "#000000", "-"),
         "exponential": ("growing lr, no weight decay", "#e69f00", "-"), "texp--": ("TEXP--: no instant drop", "#0072b2", "-"),
         "instant-drop": ("instant drops only", "#0072b2", "-"), "cosine": ("cosine, weight decay", "#000000", "-"),
         "cosine-converted": ("its counterpart, no weight decay", "#e69f00", "-"),
         "adamw": ("AdamW, step decay, weight decay", "#000000", "-"),
         "adamw-converted": ("its counterpart, no weight decay", "#e69f00", "-"),
         "adamw-no-decay": ("AdamW, step decay, no weight decay", "#0072b2", "-")}
LOSS, ERROR = "training loss of the epoch", "test error of the epoch [%]"
LR, NORM, ANGLE = "learning rate", "norm of the weights |w|", "angle turned per step [rad]"
EFFECTIVE, ADAMS = "effective lr, lr / |w|²", "effective lr, lr / |w|"
COLUMNS = {LR: "lr", NORM: "norm", EFFECTIVE: "effective_lr", ADAMS: "effective_lr", ANGLE: "angle"}  # of the steps' file
PICTURES = {  # file: (schedules, the two that it compares first; panels)
    "constant": (["constant", "exponential"], [LR, NORM, EFFECTIVE, LOSS]),
    "step": (["step", "texp++", "texp", "disturbed"], [LR, EFFECTIVE, LOSS, ERROR]),
    "instant-drop": (["exponential", "instant-drop", "texp++"], [LR, EFFECTIVE, ANGLE, ERROR]),
    "texp--": (["texp++", "texp--"], [LR, EFFECTIVE, LOSS, ERROR]),
    "cosine": (["cosine", "cosine-converted"], [LR, EFFECTIVE, LOSS, ERROR]),
    "no-decay": (["step", "no-decay", "texp++"], [NORM, EFFECTIVE, LOSS, ERROR]),
    "adamw": (["adamw", "adamw-converted", "adamw-no-decay"], [LR, ADAMS, LOSS, ERROR]),
}


def read(folder: Path) -> dict[str, dict[int, dict[str, History]]]:
    """{schedule: {seed: {"steps": History, "epochs": History}}} of all runs in the folder."""
    runs: dict[str, dict[int, dict[str, History]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.epochs.csv")):
        base = path.name.removesuffix(".epochs.csv")
        name, _, seed = base.rpartition("-")
        if name in RUNS:
            runs[name][int(seed)] = {"epochs": History.read_csv(path), "steps": History.read_csv(folder / f"{base}.steps.csv")}
    return runs


def compared(runs: dict[str, dict[int, Any]], names: Sequence[str]) -> dict[str, dict[int, Any]]:
    """The runs of these schedules with the seeds that the first two both have; nothing where they share none."""
    common = runs.get(names[0], {}).keys() & runs.get(names[1], {}).keys()
    shown = {name: {seed: run for seed, run in sorted(runs.get(name, {}).items()) if seed in common} for name in names}
    return {name: seeds for name, seeds in shown.items() if seeds}


def picture(runs: dict[str, Any], panels: Sequence[str]) -> Figure:
    """Panels of all `runs` {schedule: {seed: …}}, with one legend above them, where it hides nothing."""
    figure = Figure(figsize=(10, 3.6 * ((len(panels) + 1) // 2)), layout="constrained")
    for axis, panel in zip(figure.subplots(-(-len(panels) // 2), 2).flat, panels, strict=True):
        for i, (name, seeds) in enumerate(runs.items()):
            curves = [curve(run, panel) for run in seeds.values()]
            label, colour, dashes = LOOKS[name]
            x, mean = curves[0][0], np.mean([y for _, y in curves], axis=0)
            for _, y in curves if len(curves) > 1 else ():
                axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.6)
            style = {"linewidth": 6, "alpha": 0.35} if i == 0 else {"linewidth": 2}  # what lies on the first shows in it
            axis.plot(x, mean, color=colour, linestyle=dashes, label=label, **style)
        axis.set(xlabel="epoch", title=panel, yscale="linear" if panel == ERROR else "log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def curve(run: dict[str, History], panel: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, numbers) of one panel."""
    if panel in COLUMNS:
        steps = run["steps"]["step"]
        sparse = steps % SPARSE == SPARSE - 1
        y = run["steps"][COLUMNS[panel]][sparse]
        return (steps[sparse] + 1) / STEPS_PER_EPOCH, smooth(y, 13) if panel == ANGLE else y  # 13 of them are an epoch
    epochs = run["epochs"]
    return epochs["epoch"], epochs["loss"] if panel == LOSS else 100 * (1 - epochs["test_accuracy"])


def parting(runs: dict[str, Any], names: Sequence[str]) -> Figure:
    """|difference of the losses of the same batches| to the step decay's with the same seed, step by step, and by epochs."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    first, second = figure.subplots(1, 2)
    control = runs["step"][0]
    second.semilogy(control["epochs"]["epoch"], control["epochs"]["loss"], color="#000000", linewidth=6, alpha=0.35,
                    label=LOOKS["step"][0])
    for name in names:
        label, colour, dashes = LOOKS[name]
        steps, epochs = runs[name][0]["steps"], runs[name][0]["epochs"]
        gap = np.abs(steps["loss"] - control["steps"]["loss"])
        first.loglog(steps["step"] + 1, np.maximum(gap, 1e-8), color=colour, linestyle=dashes, linewidth=0.9, label=label)
        second.semilogy(epochs["epoch"], epochs["loss"], color=colour, linestyle=dashes, linewidth=2, label=label)
    first.set(xlabel="step", title="|difference of the batch losses|\n(0 is drawn as 1e-8)")
    second.set(xlabel="epoch", title=LOSS)
    figure.legend(*second.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def table(records: Sequence[dict[str, Any]]) -> str:
    """Test accuracy and training loss at the end, mean ± standard deviation over the seeds, as Markdown.

    The difference is to step decay with the same seed: same first weights, same batches.
    """
    results: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for record in records:
        if "result" in record:
            results[record["configuration"]["run"]][record["configuration"]["seed"]] = record["result"]
    lines = ["| schedule | seeds | test accuracy | its difference to step decay | training loss |", "|---|---|---|---|---|"]
    for name in (name for name in RUNS if name in results):
        seeds, control = results[name], results.get("step", {})
        gaps = [r["test_accuracy"] - control[seed]["test_accuracy"] for seed, r in seeds.items() if seed in control]
        cells = [spread([r["test_accuracy"] for r in seeds.values()], 100, " %"),
                 spread(gaps, 100, " %", "+") if gaps and name != "step" else "",
                 spread([r["train_loss"] for r in seeds.values()], 1, "", digits=4)]
        lines.append(f"| {LOOKS[name][0]} (`{name}`) | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], factor: float, unit: str, sign: str = "", digits: int = 2) -> str:
    """`mean ± standard deviation`, or the one value."""
    mean = f"{factor * np.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {factor * np.std(values, ddof=1):.{digits}f}{unit}" if len(values) > 1 else f"{mean}{unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all pictures for which there are runs, and renew the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fashion_mnist.draw", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DOCS / "fashion-mnist" / "data", help="folder with CSV files and runs.jsonl")
    parser.add_argument("--output", type=Path, default=DOCS / "fashion-mnist", help="folder for the pictures")
    parser.add_argument("--page", type=Path, default=DOCS / "fashion-mnist.md", help="Markdown page whose table is renewed")
    flags = parser.parse_args(arguments)
    mpl.rcParams.update({"font.size": 13, "axes.titlesize": 13, "axes.formatter.min_exponent": 4, "axes.grid": True,
                         "grid.alpha": 0.3, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False})
    runs = read(flags.data)
    if not runs:
        parser.error(f"there are no runs in {flags.data}; make some by python -m experiments.fashion_mnist.run, or give --data")
    flags.output.mkdir(parents=True, exist_ok=True)
    for file, (names, panels) in PICTURES.items():
        if shown := compared(runs, names):
            picture(shown, panels).savefig(flags.output / f"{file}.png", dpi=100)
    if names := [name for name in ("texp++", "texp", "disturbed") if 0 in runs[name] and 0 in runs["step"]]:
        parting(runs, names).savefig(flags.output / "parting.png", dpi=100)
    rows = table(sweep.read(flags.data / "runs.jsonl"))
    page = flags.page.read_text(encoding="utf-8")
    flags.page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: BEGIN + rows + END, page, flags=re.DOTALL), encoding="utf-8")
    print(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
