"""Theorem 2.12 on a real network: the headline experiment, which `minibn` without a command runs.

One PreResNet on handwritten digits is trained twice. The first run has weight decay and a usual
schedule: warm-up, then step decay. In the second run the convolutions, which are scale-invariant
together, have no weight decay, and a learning rate that grows exponentially: that of
`equivalence.remove_weight_decay` for SGD, that of `equivalence.undecayed` for AdamW, Lion and Muon.
The norms' γ and β and the last layer keep their schedule in both runs. By the theorem both have the
same loss at every step and end as the same function. The experiment measures how far floating-point
rounding drives them apart.
"""

import math
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from minibn import arguments, experiment, kernels, optimizer_numbers, plots, processes
from minibn.data import TRAIN_IMAGES
from minibn.equivalence.methods import METHODS
from minibn.experiment import FIELDS, Experiment, Run
from minibn.optim import AdamStep, LionStep, MuonStep, Step, StepNumbers

# Largest gap between the losses of one run and the same. In float32 there is none that would tell others apart from it:
# training magnifies rounding until the losses of equivalent runs part as well.
TOLERANCE = {"float64": 1e-9, "float32": math.inf}
USUAL, EXPONENTIAL = "weight decay, usual schedule", "no weight decay, growing lr"
FILES = ("headline.png", "usual.csv", "exponential.csv")

DEFAULTS: dict[str, StepNumbers]  # strong decay, so that the learning rates of the two runs end far apart
DEFAULTS = {"sgd": Step(0.1, 0.9, 1e-2), "adamw": AdamStep(3e-3, weight_decay=3.0), "lion": LionStep(1e-3, weight_decay=10.0),
            "muon": MuonStep(0.02, weight_decay=0.5)}


def settings(*, depth: int = 8, epochs: int = 24, batch: int = 48, optimizer: str = "sgd", lr: float | None = None,
             momentum: float | None = None, beta1: float | None = None, beta2: float | None = None, eps: float | None = None,
             weight_decay: float | None = None, seed: int = 0, dtype: str = "float64", backend: str = "numpy") -> Experiment:
    """The `Experiment`: warm-up over the first seventh of training, lr / 10 after 3/4 of it and again after 11/12.

    Numbers of the optimiser's steps that are None are taken from `DEFAULTS`. What would be less than
    a step, in a very short run, is left out.
    """
    per_epoch = TRAIN_IMAGES // batch
    drops = [epoch for epoch in (epochs * 3 / 4, epochs * 11 / 12) if round(epoch * per_epoch) < epochs * per_epoch]
    step = optimizer_numbers.chosen(DEFAULTS, optimizer, {
        "lr": lr, "momentum": momentum, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay})
    numbers = {FIELDS[name]: getattr(step, name) for name in METHODS[optimizer].numbers}
    return Experiment(depth=depth, epochs=epochs, batch=batch, optimizer=optimizer, seed=seed, dtype=dtype, backend=backend,
                      warmup=epochs / 7 if round(epochs / 7 * per_epoch) else 0.0, milestones=tuple(drops), **numbers)


def run(recipe: Experiment, folder: str | Path, progress: bool = True, workers: int = 1) -> bool:
    """Train both, write `headline.png` and each run's History as CSV into `folder`, and print the table.

    Args:
        recipe: the `Experiment` of the run with weight decay, as from `settings`.
        folder: made if it is missing.
        progress: whether to show progress bars.
        workers: 1 trains one after the other. 2 trains both at once, each with half of the cores,
            the second one in another process; a script that asks for this needs an `if __name__ ==
            "__main__":`. The numbers are the same.

    Returns:
        bool: whether the largest gap between the two runs' losses is within `TOLERANCE`; True in
            float32, where nothing is decided.

    Raises:
        ValueError: the schedule has no conversion, or a setting is out of range.
        BrokenExecutor: the other process died, for example from lack of memory.
    """
    if arguments.whole("workers", workers, 1) > 2:
        raise ValueError(f"workers must be 1 or 2, since there are two runs; got {workers}")
    plots.ready()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    METHODS[recipe.optimizer].scale_after(recipe.usual(), recipe.steps)  # raises now if there is no conversion
    usual, converted = _train(recipe, progress, workers)
    runs = {USUAL: usual, EXPONENTIAL: converted}
    for name, one in zip(("usual", "exponential"), runs.values(), strict=True):
        one.history.write_csv(folder / f"{name}.csv")
    gap = np.abs(usual.history["loss"] - converted.history["loss"]).max()
    plots.compare({name: one.history for name, one in runs.items()}, "invariant", folder / "headline.png",
                  f"The same training run twice: PreResNet-{recipe.depth} on digits, losses within {gap:.0e}",
                  degree=METHODS[recipe.optimizer].step.degree)
    print(table(recipe, runs, gap))
    print(f"figure and per-step numbers: {folder}/{', '.join(FILES)}")
    return bool(gap <= TOLERANCE[recipe.dtype])


def _train(recipe, progress, workers):
    """The run with weight decay and the converted one."""
    first = partial(experiment.run, recipe)
    second = partial(experiment.run, replace(recipe, convert=True), band=None)  # as in the paper, not rescaled
    if workers == 1:
        return first(progress=progress, description=USUAL), second(progress=progress, description=EXPONENTIAL)
    threads = max(1, kernels.cores() // 2)
    with processes.pool(1) as other:
        future = other.submit(second, threads=threads, progress=False)
        usual = first(threads=threads, progress=progress, description="both runs at once")
        try:
            return usual, future.result()
        except BrokenExecutor as error:
            raise BrokenExecutor("the process of the second run died, perhaps from lack of memory; train one run after the "
                                 "other, with workers=1") from error


def table(recipe: Experiment, runs: Mapping[str, Run], gap: float) -> str:
    """What the two runs have in common and what differs, as text. `gap` is the largest difference of their losses."""
    name = METHODS[recipe.optimizer].optimizer.__name__
    lines = [f"{f'conv weights, {name}':30}" + "".join(f"{name:>32}" for name in runs)]

    def row(name, values):
        lines.append(f"{name:30}" + "".join(f"{value:>32}" for value in values))

    lr = [one.history["lr/invariant"] for one in runs.values()]
    row("weight decay", [f"{recipe.weight_decay:g}", "0"])
    row("lr at the first step", [f"{x[0]:.4g}" for x in lr])
    row("largest lr", [f"{x.max():.4g}" for x in lr])
    row("lr at the last step", [f"{x[-1]:.4g}" for x in lr])
    row("|w| at the end", [f"{one.history['norm/invariant'][-1]:.4g}" for one in runs.values()])
    row("effective lr at the end", [f"{one.history['effective_lr/invariant'][-1]:.4g}" for one in runs.values()])
    row("training loss at the end", [f"{one.train_loss:.10f}" for one in runs.values()])
    row("test accuracy", [f"{one.test_accuracy:.2%}" for one in runs.values()])
    usual, converted = runs.values()
    logits = np.abs(usual.logits - converted.logits).max()
    tolerance = TOLERANCE[recipe.dtype]
    verdict = f"tolerance {tolerance:.0e}: {'the same run' if gap <= tolerance else 'NOT the same run'}"
    if recipe.dtype == "float32":
        verdict = "float32: nothing is decided"
    growth = (lr[1] / lr[0])[-1] / (lr[1] / lr[0])[0]
    if recipe.dtype == "float32":
        lines += ["", "float32: training magnifies rounding, so that the losses of two equivalent runs part, as those of two",
                  "different runs do; --dtype float64 decides whether these two are the same"]
    lines += ["", f"growth of the learning rate, usual schedule divided out: {growth:.3g} x",
              f"largest gap between the losses of a step: {gap:.2e} ({verdict})",
              f"largest gap between the test logits:      {logits:.2e} (logits up to {np.abs(usual.logits).max():.3g})"]
    return "\n".join(lines)
