"""A training run as data: `Experiment` says what to train and how, and `run` does it."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from minibn import backend, data, equivalence, jsonable, models, nn, optimizer_numbers, schedules
from minibn.data import Split
from minibn.equivalence.methods import METHODS
from minibn.fields import check_effects, checked, flag
from minibn.invariance import symmetries
from minibn.optim import AdamStep, LionStep, MuonStep, Optimizer, Step, StepNumbers
from minibn.optimizer_numbers import NUMBERS
from minibn.training import History, evaluate, fit, interruption, predict, update_bn
from minibn.training.convert import assign

GROUPS = 4
NORMS: dict[str, models.Norm]
NORMS = {"batch": nn.BatchNorm, "layer": nn.LayerNorm, "instance": nn.InstanceNorm, "group": partial(nn.GroupNorm, GROUPS)}
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
DEFAULTS: dict[str, StepNumbers]  # that suit the digits
DEFAULTS = {"sgd": Step(0.1, 0.9, 5e-3), "adamw": AdamStep(3e-3, weight_decay=0.5), "lion": LionStep(1e-3, weight_decay=1.0),
            "muon": MuonStep(0.02, weight_decay=0.2)}
FIELDS = {name: "adam_eps" if name == "eps" else name for name in NUMBERS}  # number of a step: field. eps is the norms'
DROPS = tuple(name for name, (usual, _) in SCHEDULES.items() if usual == "step")  # those that have milestones


def _number(name):
    """The field of a number of the optimiser's steps. None stands for the optimiser's default."""
    return flag(None, optimizer_numbers.described(name, DEFAULTS), kind=float, low=0, below=NUMBERS[name].below,
                 when=optimizer_numbers.when(name))


@dataclass(frozen=True)
class Experiment:
    """What to train and how. The defaults train a small PreResNet on digits within a minute.

    The weights of convolutions and hidden linear layers are scale-invariant together. They are
    trained by `optimizer` with `schedule` as it is, or in a form without weight decay: `convert`,
    or for SGD one of the paper's forms by name. All other parameters (the norms' γ and β, the head)
    follow the usual schedule with weight decay, or keep their initial values (`fixed`, as in the
    paper). Muon trains matrices only; AdamW at `rest_lr` then trains all other parameters.

    lr, momentum, beta1, beta2, adam_eps and weight_decay are the numbers of the optimiser's steps.
    A number that is not given gets the optimiser's default. A number that the optimiser does not
    have stays None. NumPy's numbers become Python's, and a path becomes a string.

    Figure 2 of the paper compares schedule="step" with `Experiment(data="cifar10", path=…,
    depth=32, affine=False, fixed=True, schedule="texp", epochs=160, milestones=(80, 120),
    batch=128, weight_decay=5e-4, dtype="float32")`.

    Raises:
        TypeError, ValueError: a field is of another type, out of range, or without effect. The
            message names it.
    """

    data: str = flag("digits", "images to learn", DATA)
    path: str | None = flag(None, "folder of Fashion-MNIST, or archive or folder of CIFAR-10")
    checksum: bool = flag(True, "insist on the original files of CIFAR-10 or Fashion-MNIST",
                           when={"data": ("cifar10", "fashion-mnist")})
    augment: bool = flag(True, "crop and flip the images of CIFAR-10 at random", when={"data": ("cifar10",)})
    model: str = flag("preresnet", "network", MODELS)
    depth: int = flag(8, "layers of a resnet or preresnet, 6n + 2", low=8, when={"model": ("resnet", "preresnet")})
    width: int = flag(16, "channels of the first stage of a resnet or preresnet", low=1, when={"model": ("resnet", "preresnet")})
    norm: str = flag("batch", "normalisation", NORMS)
    eps: float = flag(0.0, "added to the variance; 0 makes the network exactly scale-invariant", low=0)
    affine: bool = flag(True, "give the normalisations gamma and beta")
    fixed: bool = flag(False, "train the scale-invariant weights only, as the paper does")
    schedule: str = flag("step", "of the scale-invariant weights; those after cosine have no weight decay", SCHEDULES)
    convert: bool = flag(False, "remove the weight decay from constant, step or cosine, exactly")
    milestones: tuple[float, ...] | None = flag(None, "epochs at which lr drops; default: 1/2 and 3/4 of training",
                                                 when={"schedule": DROPS})
    factor: float = flag(0.1, "by which lr drops", low=0, when={"schedule": DROPS})
    warmup: float = flag(0.0, "epochs of linear warm-up", low=0)
    optimizer: str = flag("sgd", "of the scale-invariant weights, and of the others too if it can train these", METHODS)
    nesterov: bool = flag(False, "Nesterov momentum instead of heavy-ball", when={"optimizer": ("sgd",)})
    epochs: int = flag(24, "passes through the training images", low=1)
    batch: int = flag(64, "images per step", low=2)
    lr: float = _number("lr")
    momentum: float | None = _number("momentum")
    beta1: float | None = _number("beta1")
    beta2: float | None = _number("beta2")
    adam_eps: float | None = _number("eps")
    weight_decay: float = _number("weight_decay")
    rest_lr: float | None = flag(None, f"highest learning rate of the others, which AdamW trains; default: "
                                  f"{DEFAULTS['adamw'].lr:g}", kind=float, low=0, when={"optimizer": ("muon",)})
    seed: int = flag(0, "of the weights, the shuffling and the augmentation", low=0)
    dtype: str = flag("float32", "of all numbers", ["float32", "float64"])
    backend: str = flag("numpy", "array library; cupy and torch run on a GPU, torch without one on the CPU", backend.LIBRARIES)

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, checked(f, jsonable.plain(getattr(self, f.name), f.name)))
        step = self._step()
        check_effects(self)
        if self.rest_lr is not None and self.fixed:
            raise ValueError(f"rest_lr={self.rest_lr} has no effect with fixed=True, which trains no other weights")
        if self.nesterov and not step.momentum:
            raise ValueError("nesterov=True has no effect with momentum=0.0; give a momentum above 0")
        for name in METHODS[self.optimizer].numbers:
            object.__setattr__(self, FIELDS[name], getattr(step, name))
        if METHODS[self.optimizer].others and not self.fixed and self.rest_lr is None:
            object.__setattr__(self, "rest_lr", DEFAULTS["adamw"].lr)
        if self.optimizer != "sgd" and SCHEDULES[self.schedule][1]:
            raise ValueError(f"schedule={self.schedule!r} is for optimizer='sgd', not for {self.optimizer!r}; give schedule "
                             "'constant', 'step' or 'cosine', with convert for the form without weight decay")
        if (self.data == "digits") != (self.path is None):
            raise ValueError(f"data={self.data!r} {'needs' if self.path is None else 'takes no'} path")
        if SCHEDULES[self.schedule][1] and (self.convert or self.warmup or self.nesterov):
            raise ValueError(f"schedule={self.schedule!r} has no weight decay already, and no warm-up or Nesterov form; give "
                             "schedule 'constant', 'step' or 'cosine' with convert")
        if self.milestones is not None and not all(a < b < self.epochs for a, b in itertools.pairwise((0, *self.milestones))):
            raise ValueError(f"milestones must be increasing epochs above 0 and below epochs={self.epochs}, "
                             f"got {list(self.milestones)}")
        if self.warmup > self.epochs:
            raise ValueError(f"warmup must be at most epochs={self.epochs}, or lr is never reached; got {self.warmup:g}")
        if self.model in ("resnet", "preresnet") and (self.depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, …), got {self.depth}")
        if self.norm == "group" and self.model in ("resnet", "preresnet") and self.width % GROUPS:
            raise ValueError(f"width must be divisible by {GROUPS} with norm='group', got {self.width}")

    @cached_property
    def split(self) -> Split:
        """`data.Split`: the images, read once per process."""
        return _split(self.data, self.path, self.checksum, self.dtype)

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates in a pass through the images. ValueError if a batch has more images than there are."""
        if self.batch > (examples := len(self.split.y_train)):
            raise ValueError(f"batch must lie between 1 and the number of examples, {examples}; got {self.batch}")
        return examples // self.batch

    @property
    def steps(self) -> int:
        """Number of updates."""
        return self.epochs * self.steps_per_epoch

    def network(self) -> nn.Module:
        """The `nn.Module`, its weights drawn with `seed`."""
        options: dict[str, Any] = {"norm": NORMS[self.norm], "eps": self.eps, "affine": self.affine, "dtype": self.dtype,
                                   "rng": np.random.default_rng(self.seed)}
        if self.model in ("resnet", "preresnet"):
            options |= {"depth": self.depth, "width": self.width}
        if self.model == "mlp":
            return models.mlp(in_features=math.prod(self.split.x_train.shape[1:]), **options)
        return MODELS[self.model](in_channels=self.split.x_train.shape[-1], **options)

    def _step(self):
        """The step object of the optimiser, at the highest learning rate."""
        given = {name: getattr(self, field) for name, field in FIELDS.items()}
        return optimizer_numbers.chosen(DEFAULTS, self.optimizer, given, FIELDS)

    def usual(self) -> Iterator[Any]:
        """The schedule with weight decay, a stream of the optimiser's step objects."""
        return self._scheduled(self._step())

    def rest(self) -> Iterator[Any]:
        """The schedule of the parameters that are not scale-invariant: the usual one, or that of AdamW beside Muon."""
        if METHODS[self.optimizer].others is None:
            return self.usual()
        lr = DEFAULTS["adamw"].lr if self.rest_lr is None else self.rest_lr
        return self._scheduled(AdamStep(lr, weight_decay=self.weight_decay))

    def _scheduled(self, step):
        """`step` with the learning rates of the schedule."""
        stream = schedules.by_name(SCHEDULES[self.schedule][0], step.lr, steps=self.steps, milestones=self._drops(),
                                   factor=self.factor)
        warmup = round(self.warmup * self.steps_per_epoch)
        if self.warmup and not warmup:
            raise ValueError(f"warmup={self.warmup:g} has no effect: it is 0 steps, for an epoch has {self.steps_per_epoch}")
        stream = schedules.like(step, schedules.warmup(warmup, stream))
        return schedules.nesterov(stream) if self.nesterov else stream

    def phases(self) -> list[tuple[float, float]]:
        """The usual schedule as `equivalence.texp` takes it: a list of (steps, lr), the last one endless."""
        drops = [] if SCHEDULES[self.schedule][0] == "constant" else self._drops()
        lengths = [b - a for a, b in itertools.pairwise([0, *drops])]
        return [(length, self.lr * self.factor**i) for i, length in enumerate([*lengths, math.inf])]

    def invariant(self) -> Iterator[Any]:
        """The schedule of the scale-invariant weights: the usual one, or without weight decay.

        Raises:
            ValueError: Muon with `convert`: its conversion is an optimiser, not a schedule. See
                `optimizers`.
        """
        form = SCHEDULES[self.schedule][1]
        if form:
            return form(self.phases(), momentum=self.momentum, weight_decay=self.weight_decay)
        return METHODS[self.optimizer].remove(self.usual()) if self.convert else self.usual()

    def optimizers(self, model: nn.Module, schedule: Iterable[Any] | None = None, *,
                   band: float | None = 2.0**32) -> dict[str, Optimizer]:
        """The optimisers for `training.fit`; `schedule` replaces `invariant()`.

        Args:
            model: the network.
            schedule: stream of step objects for the scale-invariant weights, instead of the
                experiment's.
            band: as in `equivalence.undecayed`, with `convert`.

        Returns:
            {"invariant": `Optimizer` of the scale-invariant convolutions and hidden linear layers,
            "rest": that of all other parameters}, without "rest" if the experiment is `fixed`.

        Raises:
            ValueError: the network has no such weights.
        """
        rest = None if self.fixed else partial(equivalence.optimizer_for, schedule=self.rest())
        if schedule is None and self.convert:
            invariant = partial(METHODS[self.optimizer].converted, schedule=self.usual(), band=band)
        else:
            invariant = partial(equivalence.optimizer_for, schedule=schedule or self.invariant())
        return assign(model, invariant, rest, symmetries(model).weights).optimizers

    def _drops(self):
        """The milestones in steps, at least one step apart."""
        epochs = (self.epochs / 2, self.epochs * 3 / 4) if self.milestones is None else self.milestones
        drops = [0]
        for epoch in epochs:
            drops.append(max(drops[-1] + 1, round(epoch * self.steps_per_epoch)))
        if self.milestones and drops[-1] >= self.steps:
            raise ValueError(f"milestones={self.milestones[-1]:g} has no effect: it is step {drops[-1]} of {self.steps}")
        return drops[1:]


@dataclass(frozen=True)
class Run:
    """A trained network, its History, and at the end: test logits, loss on all training images, test accuracy."""

    model: nn.Module
    history: History
    logits: np.ndarray
    train_loss: float
    test_accuracy: float


def run(experiment: Experiment, schedule: Iterable[Any] | None = None, *, band: float | None = 2.0**32,
        checkpoint: str | Path | None = None, every: int = 500, threads: int | None = None, progress: bool = True,
        description: str = "train") -> Run:
    """Train, and evaluate after each epoch and at the end -> `Run`.

    The test loss and accuracy of each epoch are in the History. Before the last evaluation
    BatchNorm's running statistics, which lag behind weights that grow, are recomputed
    (`training.update_bn`).

    Args:
        experiment: `Experiment`.
        schedule, band: as in `Experiment.optimizers`.
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
    settings = {name: value for name, value in asdict(experiment).items() if name != "backend"}
    with interruption.deferred() as signals:
        history = fit(model, experiment.optimizers(model, schedule, band=band), split.x_train, split.y_train,
                      epochs=experiment.epochs, batch_size=experiment.batch, rng=np.random.default_rng(experiment.seed + 1),
                      path=checkpoint, every=every,
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


@lru_cache(maxsize=1)
def _split(name, path, checksum, dtype):
    return DATA[name](dtype) if path is None else DATA[name](path, dtype, checksum=checksum)
