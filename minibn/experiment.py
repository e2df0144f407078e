"""A training run as data: `Experiment` says what to train and how, and `run` does it."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from minibn import backend, data, equivalence, jsonable, models, nn, schedules
from minibn.data import Split
from minibn.invariance import symmetries
from minibn.optim import SGD, Schedule, Step
from minibn.training import History, evaluate, fit, interruption, predict, split, update_bn

NORMS: dict[str, models.Norm]
NORMS = {"batch": nn.BatchNorm, "layer": nn.LayerNorm, "instance": nn.InstanceNorm, "group": partial(nn.GroupNorm, 4)}
MODELS: dict[str, Callable[..., nn.Sequential]]
MODELS = {"mlp": models.mlp, "vgg": models.vgg, "resnet": models.resnet, "preresnet": models.preresnet}
DATA: dict[str, Callable[..., Split]]
DATA = {"digits": data.digits, "cifar10": data.cifar10, "fashion-mnist": data.fashion_mnist}  # all but digits have a path
# name: (the schedule with weight decay, and its form in the paper without weight decay, or None)
SCHEDULES: dict[str, tuple[str, Callable[..., Iterator[Step]] | None]]
SCHEDULES = {"constant": ("constant", None), "step": ("step", None), "cosine": ("cosine", None),
             "exponential": ("constant", equivalence.texp_plus_plus), "texp": ("step", equivalence.texp),
             "texp++": ("step", equivalence.texp_plus_plus), "texp--": ("step", equivalence.texp_minus_minus),
             "instant-drop": ("step", equivalence.instant_drops)}


DROPS = tuple(name for name, (usual, _) in SCHEDULES.items() if usual == "step")  # those that have milestones


def _flag(default, text, choices=None, *, low=None, below=math.inf, when=None):
    """A field of `Experiment` and, on the command line, a flag.

    Its help, the values or the range it may have, and {other field: values of it with which this one acts}.
    """
    return field(default=default, metadata={"help": text, "choices": choices and tuple(choices), "low": low, "below": below,
                                            "when": when or {}})


@dataclass(frozen=True)
class Experiment:
    """What to train and how. The defaults train a small PreResNet on digits within a minute.

    The weights of convolutions and hidden linear layers are scale-invariant together. They follow
    `schedule` as it is, or a form of it without weight decay: `convert`, or one of the paper's forms
    by name. All other parameters (the norms' γ and β, the head) follow the usual schedule with weight
    decay, or keep their initial values (`fixed`, as in the paper).

    Figure 2 of the paper compares schedule="step" with `Experiment(data="cifar10", path=…, depth=32,
    affine=False, fixed=True, schedule="texp", epochs=160, milestones=(80, 120), batch=128,
    weight_decay=5e-4, dtype="float32")`.

    Numbers of NumPy become Python's, and a path a string.

    Raises:
        TypeError, ValueError: a field is of another type, or out of range. The message names it.
    """

    data: str = _flag("digits", "images to learn", DATA)
    path: str | None = _flag(None, "folder of Fashion-MNIST, or archive or folder of CIFAR-10")
    checksum: bool = _flag(True, "insist on the original files of CIFAR-10 or Fashion-MNIST",
                           when={"data": ("cifar10", "fashion-mnist")})
    augment: bool = _flag(True, "crop and flip the images of CIFAR-10 at random", when={"data": ("cifar10",)})
    model: str = _flag("preresnet", "network", MODELS)
    depth: int = _flag(8, "layers of a resnet or preresnet, 6n + 2", low=8, when={"model": ("resnet", "preresnet")})
    width: int = _flag(16, "channels of the first stage of a resnet or preresnet", low=1, when={"model": ("resnet", "preresnet")})
    norm: str = _flag("batch", "normalisation", NORMS)
    eps: float = _flag(0.0, "added to the variance; 0 makes the network exactly scale-invariant", low=0)
    affine: bool = _flag(True, "give the normalisations gamma and beta")
    fixed: bool = _flag(False, "train the scale-invariant weights only, as the paper does")
    schedule: str = _flag("step", "of the scale-invariant weights; those after cosine have no weight decay", SCHEDULES)
    convert: bool = _flag(False, "remove the weight decay from constant, step or cosine, exactly")
    milestones: tuple[float, ...] | None = _flag(None, "epochs at which lr drops; default: 1/2 and 3/4 of training",
                                                 when={"schedule": DROPS})
    factor: float = _flag(0.1, "by which lr drops", low=0, when={"schedule": DROPS})
    warmup: float = _flag(0.0, "epochs of linear warm-up", low=0)
    nesterov: bool = _flag(False, "Nesterov momentum instead of heavy-ball")
    epochs: int = _flag(24, "passes through the training images", low=1)
    batch: int = _flag(64, "images per step", low=2)
    lr: float = _flag(0.1, "highest learning rate, with weight decay", low=0)
    momentum: float = _flag(0.9, "from 0 to below 1", low=0, below=1)
    weight_decay: float = _flag(5e-3, "L2, as PyTorch's SGD has it", low=0)
    seed: int = _flag(0, "of the weights, the shuffling and the augmentation", low=0)
    dtype: str = _flag("float32", "of all numbers", ["float32", "float64"])
    backend: str = _flag("numpy", "array library; cupy and torch run on a GPU, torch without one on the CPU", backend.LIBRARIES)

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, jsonable.plain(getattr(self, f.name), f.name)))
        if (self.data == "digits") != (self.path is None):
            raise ValueError(f"data={self.data!r} {'needs' if self.path is None else 'takes no'} path")
        if SCHEDULES[self.schedule][1] and (self.convert or self.warmup or self.nesterov):
            raise ValueError(f"schedule={self.schedule!r} has no weight decay already, and no warm-up or Nesterov form; give "
                             "schedule 'constant', 'step' or 'cosine' with convert")
        if self.milestones is not None and not all(a < b < self.epochs for a, b in itertools.pairwise((0, *self.milestones))):
            raise ValueError(f"milestones must be increasing epochs above 0 and below epochs={self.epochs}, "
                             f"got {list(self.milestones)}")

    @cached_property
    def split(self) -> Split:
        """`data.Split`: the images, read once per process."""
        return _split(self.data, self.path, self.checksum, self.dtype)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.split.y_train) // self.batch

    @property
    def steps(self) -> int:
        """Number of updates."""
        return self.epochs * self.steps_per_epoch

    def network(self) -> nn.Module:
        """The `nn.Module`, its weights drawn with `seed`."""
        channels = self.split.x_train.shape[-1]
        options: dict[str, Any]
        options = {"norm": NORMS[self.norm], "eps": self.eps, "affine": self.affine, "dtype": self.dtype,
                   "rng": np.random.default_rng(self.seed)}
        if self.model in ("resnet", "preresnet"):
            options |= {"depth": self.depth, "width": self.width}
        if self.model == "mlp":
            return models.mlp(in_features=math.prod(self.split.x_train.shape[1:]), **options)
        return MODELS[self.model](in_channels=channels, **options)

    def usual(self) -> Iterator[Step]:
        """The schedule with weight decay, a stream of `Step`."""
        stream = schedules.by_name(SCHEDULES[self.schedule][0], self.lr, steps=self.steps, milestones=self._drops(),
                                   factor=self.factor, momentum=self.momentum, weight_decay=self.weight_decay)
        stream = schedules.warmup(round(self.warmup * self.steps_per_epoch), stream)
        return schedules.nesterov(stream) if self.nesterov else stream

    def phases(self) -> list[tuple[float, float]]:
        """The usual schedule as `equivalence.texp` takes it: a list of (steps, lr), the last one endless."""
        drops = [] if SCHEDULES[self.schedule][0] == "constant" else self._drops()
        lengths = [b - a for a, b in itertools.pairwise([0, *drops])]
        return [(length, self.lr * self.factor**i) for i, length in enumerate([*lengths, math.inf])]

    def invariant(self) -> Iterator[Step]:
        """The schedule of the scale-invariant weights: the usual one, or without weight decay."""
        form = SCHEDULES[self.schedule][1]
        if form:
            return form(self.phases(), momentum=self.momentum, weight_decay=self.weight_decay)
        return equivalence.remove_weight_decay(self.usual()) if self.convert else self.usual()

    def optimizers(self, model: nn.Module, schedule: Schedule | None = None) -> dict[str, SGD]:
        """The optimisers for `training.fit`; `schedule` replaces `invariant()`.

        Returns:
            {"invariant": SGD of the scale-invariant convolutions and hidden linear layers,
            "rest": SGD of all other parameters}, without "rest" if the experiment is `fixed`.

        Raises:
            ValueError: the network has no such weights.
        """
        rest = None if self.fixed else self.usual()
        return split(model, schedule or self.invariant(), rest, symmetries(model).weights).optimizers

    def _drops(self):
        """The milestones in steps, at least one step apart."""
        epochs = (self.epochs / 2, self.epochs * 3 / 4) if self.milestones is None else self.milestones
        drops = [0]
        for epoch in epochs:
            drops.append(max(drops[-1] + 1, round(epoch * self.steps_per_epoch)))
        return drops[1:]


@dataclass(frozen=True)
class Run:
    """A trained network, its History, and at the end: test logits, loss on all training images, test accuracy."""

    model: nn.Module
    history: History
    logits: np.ndarray
    train_loss: float
    test_accuracy: float


def run(experiment: Experiment, schedule: Schedule | None = None, *, checkpoint: str | Path | None = None, every: int = 500,
        threads: int | None = None, progress: bool = True, description: str = "train") -> Run:
    """Train, and evaluate after each epoch and at the end -> `Run`.

    The test loss and accuracy of each epoch are in the History. Before the last evaluation BatchNorm's
    running statistics, which lag behind weights that grow, are recomputed (`training.update_bn`).

    Args:
        experiment: `Experiment`.
        schedule: stream of `Step` for the scale-invariant weights, instead of the experiment's.
        checkpoint: file to resume from, and to write every `every` steps. It must be of the same
            experiment; only the backend may differ.
        threads, progress, description: as in `training.fit`.

    Returns:
        Run

    Raises:
        ValueError, DivergenceError, OSError: as in `training.fit`.
        Interrupted, Terminated: as in `training.fit`, also during the last evaluation.
        BackendError: the experiment's backend cannot be used here.
    """
    backend.library(experiment.backend)  # raises before the images are read
    split, model = experiment.split, experiment.network().to(experiment.backend)
    settings = asdict(experiment)
    del settings["backend"]
    with interruption.deferred() as signals:
        history = fit(model, experiment.optimizers(model, schedule), split.x_train, split.y_train, epochs=experiment.epochs,
                      batch_size=experiment.batch, rng=np.random.default_rng(experiment.seed + 1), path=checkpoint, every=every,
                      augment=data.crop_flip if experiment.data == "cifar10" and experiment.augment else None,
                      validation=(split.x_test, split.y_test), settings=settings, threads=threads, progress=progress,
                      description=description)
        parts: list[Any] = []
        for part in (lambda: update_bn(model, split.x_train, threads=threads),
                     lambda: predict(model, split.x_test, threads=threads),
                     lambda: evaluate(model, split.x_train, split.y_train, threads=threads)[0],
                     lambda: evaluate(model, split.x_test, split.y_test, threads=threads)[1]):
            signals.stop_if_received(len(history), checkpoint, history)
            parts.append(part())
    return Run(model, history, *parts[1:])


def _checked(f, value):
    """The value of a field as its own type; ValueError if it is not one of its choices or out of its range."""
    choices, low, below = f.metadata["choices"], f.metadata["low"], f.metadata["below"]
    if f.name == "milestones":
        if value is not None and not (isinstance(value, list) and all(_is_number(item) for item in value)):
            raise ValueError(f"milestones must be a list of epochs, got {value!r}")
        return value if value is None else tuple(map(float, value))
    if isinstance(f.default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{f.name} must be True or False, got {value!r}")
    elif isinstance(f.default, (int, float)):
        whole = isinstance(f.default, int)
        if not _is_number(value) or (whole and not isinstance(value, int)) or not low <= value < below:
            limits = f"of at least {low}" + ("" if below == math.inf else f" and below {below}")
            raise ValueError(f"{f.name} must be a {'whole ' if whole else ''}number {limits}, got {value!r}")
        return value if whole else float(value)
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"{f.name} must be a string, got {value!r}")
    if choices and value not in choices:
        raise ValueError(f"{f.name} must be one of {list(choices)}, got {value!r}")
    return value


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@lru_cache(maxsize=1)
def _split(name, path, checksum, dtype):
    return DATA[name](dtype) if path is None else DATA[name](path, dtype, checksum=checksum)
