"""Train PreResNet-14 on Fashion-MNIST with the paper's settings and each of the paper's schedules, as one sweep.

    python -m experiments.fashion_mnist.run \\
        --path /usr/share/datasets/fashion-mnist --output results/fashion-mnist

Each run uses one thread. It writes two small CSV files into the output folder, and one line into
runs.jsonl there. A run that was stopped goes on from its last complete epoch, with the same bits as
a run that was not.
"""

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minibn import checkpoint, experiment, processes, sweep
from minibn.experiment import Experiment
from minibn.history import History

# Section 5 of the paper, at the size of these images: only the scale-invariant weights are trained.
PAPER: dict[str, Any]
PAPER = {"data": "fashion-mnist", "depth": 14, "affine": False, "fixed": True, "eps": 0.0, "batch": 128, "epochs": 15,
         "milestones": [8, 12], "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "dtype": "float32"}
# AdamW shrinks the weights by 1 - lr λ per step, SGD by nearly 1 - lr λ / (1 - momentum): these numbers make both equal
ADAMW: dict[str, Any]
ADAMW = {"schedule": "step", "optimizer": "adamw", "lr": 1e-3, "momentum": None, "weight_decay": 0.5}
RUNS: dict[str, dict[str, Any]]  # name: what differs from PAPER; `disturbed` is explained at `Disturbed`
RUNS = {
    "step": {"schedule": "step"},
    "texp++": {"schedule": "texp++"},
    "disturbed": {"schedule": "step", "disturbed": True},
    "no-decay": {"schedule": "step", "weight_decay": 0.0},
    "adamw": ADAMW,
    "adamw-converted": {**ADAMW, "convert": True},
    "cosine": {"schedule": "cosine"},
    "cosine-converted": {"schedule": "cosine", "convert": True},
    "texp": {"schedule": "texp"},
    "adamw-no-decay": {**ADAMW, "weight_decay": 0.0},
    "constant": {"schedule": "constant"},
    "exponential": {"schedule": "exponential"},
    "texp--": {"schedule": "texp--"},
    "instant-drop": {"schedule": "instant-drop"},
}
# compared by accuracy, so with several seeds
COMPARED = ("step", "texp++", "texp", "no-decay", "cosine", "cosine-converted", "adamw", "adamw-converted")
SEEDS = 3
DENSE, SPARSE = 234, 36  # the CSV has each of the first steps (half an epoch), then one in 36 (13 per epoch)


@dataclass(frozen=True)
class Disturbed(Experiment):
    """The control for float32: the same run, its first weights disturbed by one rounding error each.

    Every weight is replaced by the next float above or below it, at random. What this changes is
    chance alone. So two equivalent runs need not agree better than this run agrees with the
    undisturbed one.
    """

    def network(self):
        model = super().network()
        rng = np.random.default_rng([self.seed, 1])
        for parameter in model.parameters():
            towards = np.where(rng.random(parameter.data.shape) < 0.5, -np.inf, np.inf).astype(self.dtype)
            parameter.data = np.nextafter(parameter.data, towards)
        return model


def configurations() -> list[dict[str, Any]]:
    """All runs, the most informative first: each schedule with seed 0, then those that are compared with the other seeds."""
    order = [(name, 0) for name in RUNS] + [(name, seed) for seed in range(1, SEEDS) for name in COMPARED]
    return [{"run": name, "seed": seed, **PAPER, **RUNS[name]} for name, seed in order]


def train(configuration: Mapping[str, Any], path: str, output: str, checksum: bool = True) -> dict[str, Any]:
    """Train one configuration; write NAME-SEED.epochs.csv and NAME-SEED.steps.csv.

    Returns:
        {"test_accuracy", "train_loss": with BatchNorm's statistics recomputed;
        "wall_seconds_per_step", "cpu_seconds_per_step":
        of the steps since the last start, evaluations included}
    """
    fields = dict(configuration)
    name, disturbed = fields.pop("run"), fields.pop("disturbed", False)
    if fields["schedule"] not in experiment.DROPS:
        fields["milestones"] = None
    one = (Disturbed if disturbed else Experiment)(path=path, checksum=checksum, **fields)
    base = Path(output) / f"{name}-{one.seed}"
    saved = base.with_name(base.name + ".npz")
    first = len(checkpoint.load(saved)[0]["history/step"]) if saved.exists() else 0
    wall, cpu = time.perf_counter(), time.process_time()
    done = experiment.run(one, checkpoint=saved, every=one.steps_per_epoch, threads=1, progress=False)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    write(done.history, one.steps_per_epoch, base)
    return {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss,
            **{f"{clock}_seconds_per_step": round(value / max(one.steps - first, 1), 4) for clock, value in seconds.items()}}


def write(history: History, per_epoch: int, base: Path) -> None:
    """The History in two small files, its floats with the nine digits that tell all float32 apart.

    BASE.epochs.csv: epoch, loss and accuracy (means over its batches in training mode), test_loss,
    test_accuracy. BASE.steps.csv: at some steps `step`, `loss` of its batch, and of the
    scale-invariant weights `lr`, `norm` (after the step), `effective_lr` (lr / |w|², before it),
    `angle` (by which the step turned them).
    """
    epochs = np.arange(per_epoch - 1, len(history), per_epoch)
    means = {name: history[name].reshape(-1, per_epoch).mean(axis=1) for name in ("loss", "accuracy")}
    _write(f"{base}.epochs.csv", {"epoch": np.arange(1, len(epochs) + 1), **means,
                                  **{name: history[name][epochs] for name in ("test_loss", "test_accuracy")}})
    step = history["step"]
    rows = (step < DENSE) | (step % SPARSE == SPARSE - 1)
    weights = {name: history[f"{name}/invariant"][rows] for name in ("lr", "norm", "effective_lr", "angle")}
    _write(f"{base}.steps.csv", {"step": step[rows], "loss": history["loss"][rows], **weights})


def _write(path, columns):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{value:.9g}" for value in row] for row in zip(*columns.values(), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or go on with it; the exit status is 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fashion_mnist.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="/usr/share/datasets/fashion-mnist", help="folder with the images")
    parser.add_argument("--checksum", action=argparse.BooleanOptionalAction, default=True, help="insist on the original images")
    parser.add_argument("--output", default="results/fashion-mnist", help="folder for checkpoints and CSV files")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}")
    flags = parser.parse_args(arguments)
    Path(flags.output).mkdir(parents=True, exist_ok=True)
    chosen = [c for c in configurations() if c["run"] in flags.only]
    function = partial(train, path=flags.path, output=flags.output, checksum=flags.checksum)
    with processes.pool(flags.workers) as executor:
        records = sweep.run(function, chosen, Path(flags.output) / "runs.jsonl", executor, retry=True)
    for record in records:
        c = record["configuration"]
        print(f"{c['run']:>18} {c['seed']}  {record.get('result') or record['error']}")
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
