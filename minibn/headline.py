"""The headline experiment: one network trained twice, with weight decay and with an exponentially growing learning rate.

A PreResNet on handwritten digits. The first run has weight decay and a usual schedule (warm-up, then step decay). The second
gives the conv weights, which are scale-invariant together, `equivalence.remove_weight_decay` of the same schedule:
no weight decay, and a learning rate that grows exponentially. The norms' γ and β and the last layer keep their schedule in
both. By the theorem (paper, Theorem 2.12) both runs have the same loss at every step and end as the same function; what is
measured is by how much floating-point rounding keeps them apart.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibn import data, models, plots, schedules
from minibn.equivalence import frame_after
from minibn.history import History
from minibn.optim import SGD
from minibn.training import convert, evaluate, fit, predict, update_bn

TOLERANCE = {"float64": 1e-9, "float32": 0.5}  # largest gap between the losses; rounding grows as training goes on
USUAL, EXPONENTIAL = "weight decay, usual schedule", "no weight decay, growing lr"


@dataclass(frozen=True)
class Settings:
    """What to train; the fields are the command line's flags."""

    depth: int = 8
    epochs: int = 24
    batch: int = 48
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-2
    seed: int = 0
    dtype: str = "float64"

    @property
    def steps(self):
        """Number of updates."""
        return self.epochs * (data.TRAIN_IMAGES // self.batch)

    def schedule(self):
        """Warm-up over the first seventh of training, lr divided by 10 after 3/4 of it and again after 11/12."""
        drops = [max(1, self.steps * 3 // 4), max(2, self.steps * 11 // 12)]
        decay = schedules.step_decay(self.lr, drops, momentum=self.momentum, weight_decay=self.weight_decay)
        return schedules.warmup(self.steps // 7, decay)


@dataclass(frozen=True)
class Run:
    """One trained network: its History, logits on the test images, training loss and test accuracy at the end."""

    history: History
    logits: np.ndarray
    train_loss: float
    test_accuracy: float


def train(settings, label, converted, progress=True):
    """Train the PreResNet of `settings`, its conv weights with a `converted` schedule or the usual one -> Run."""
    digits = data.digits(settings.dtype)
    model = models.preresnet(settings.depth, in_channels=1, eps=0.0, rng=np.random.default_rng(settings.seed),
                             dtype=settings.dtype)
    convs = {name: p for name, p in model.named_parameters() if p.data.ndim == 4}
    if converted:
        optimizers = convert(model, settings.schedule(), convs, band=None).optimizers
    else:
        rest = [p for name, p in model.named_parameters() if name not in convs]
        optimizers = {"invariant": SGD(convs.values(), settings.schedule()), "rest": SGD(rest, settings.schedule())}
    history = fit(model, optimizers, digits.x_train, digits.y_train, epochs=settings.epochs, batch_size=settings.batch,
                  rng=np.random.default_rng(settings.seed + 1), progress=progress, description=label)
    update_bn(model, digits.x_train)  # running averages lag behind weights that grow
    return Run(history, predict(model, digits.x_test), evaluate(model, digits.x_train, digits.y_train)[0],
               evaluate(model, digits.x_test, digits.y_test)[1])


def run(settings, folder, progress=True):
    """Train both, write `headline.png` and a CSV of each History into `folder`, print the table.

    Returns:
        bool: whether the largest gap between the two runs' losses is within `TOLERANCE`.

    Raises:
        ValueError: the schedule has no conversion, or a setting is out of range.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frame_after(settings.schedule(), settings.steps, band=None)  # complains here if there is no conversion
    usual = train(settings, USUAL, converted=False, progress=progress)
    converted = train(settings, EXPONENTIAL, converted=True, progress=progress)
    runs = {USUAL: usual, EXPONENTIAL: converted}
    for name, one in zip(("usual", "exponential"), runs.values(), strict=True):
        one.history.write_csv(folder / f"{name}.csv")
    gap = np.abs(usual.history["loss"] - converted.history["loss"]).max()
    plots.compare({name: one.history for name, one in runs.items()}, "invariant", folder / "headline.png",
                  f"The same training run twice: PreResNet-{settings.depth} on digits, losses within {gap:.0e}")
    print(table(settings, runs, gap))
    print(f"figure and per-step numbers: {folder}/headline.png, usual.csv, exponential.csv")
    return bool(gap <= TOLERANCE[settings.dtype])


def table(settings, runs, gap):
    """What the two runs have in common and what not, as text."""
    lines = [f"{'conv weights':30}" + "".join(f"{name:>32}" for name in runs)]

    def row(name, values):
        lines.append(f"{name:30}" + "".join(f"{value:>32}" for value in values))

    lr = [one.history["lr/invariant"] for one in runs.values()]
    row("weight decay", [f"{settings.weight_decay:g}", "0"])
    row("lr at the first step", [f"{x[0]:.4g}" for x in lr])
    row("largest lr", [f"{x.max():.4g}" for x in lr])
    row("lr at the last step", [f"{x[-1]:.4g}" for x in lr])
    row("|w| at the end", [f"{one.history['norm/invariant'][-1]:.4g}" for one in runs.values()])
    row("effective lr at the end", [f"{one.history['effective_lr/invariant'][-1]:.4g}" for one in runs.values()])
    row("training loss at the end", [f"{one.train_loss:.10f}" for one in runs.values()])
    row("test accuracy", [f"{one.test_accuracy:.2%}" for one in runs.values()])
    usual, converted = runs.values()
    logits = np.abs(usual.logits - converted.logits).max()
    tolerance = TOLERANCE[settings.dtype]
    growth = (lr[1] / lr[0])[-1] / (lr[1] / lr[0])[0]
    lines += ["", f"growth of the learning rate, usual schedule divided out: {growth:.3g} x",
              f"largest gap between the losses of a step: {gap:.2e} (tolerance {tolerance:.0e}: "
              f"{'the same run' if gap <= tolerance else 'NOT the same run'})",
              f"largest gap between the test logits:      {logits:.2e} (logits up to {np.abs(usual.logits).max():.3g})"]
    return "\n".join(lines)
