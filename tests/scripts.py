"""Somebody's training script in PyTorch, small: what the tests of `minibn.pytorch` train with and without the one line."""

import copy
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

from minibn import data  # noqa: E402
from minibn.pytorch import effective_lr, remove_weight_decay, report  # noqa: E402

DIGITS = data.digits("float64")
X, Y = torch.tensor(DIGITS.x_train.transpose(0, 3, 1, 2).copy()), torch.tensor(DIGITS.y_train)
STEPS = 60


def network(eps=1e-30):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, eps), nn.ReLU(),
        nn.Conv2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6, eps), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)).double()


def batch(t, size=32):
    i = torch.randperm(len(Y), generator=torch.Generator().manual_seed(t))[:size]
    return X[i], Y[i]


def images(t):
    """A batch of noise in colour, (8, 3, 8, 8), and its labels."""
    draw = torch.Generator().manual_seed(t)
    return torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=draw), torch.randint(2, (8,), generator=draw)


def loss_of(model):
    return F.cross_entropy(model(X[:16]), Y[:16])


@cache
def measured(eps):
    """One report for all copies of the network."""
    return report(network(eps), loss_of)


def remove(model, optimizer, **options):
    """The one line."""
    return remove_weight_decay(optimizer, measured(model[1].eps).of(model), **options)


# kind: (class, lr, weight decay, other settings)
KINDS = {"sgd": (torch.optim.SGD, 0.05, 3e-2, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, 0.02, 1.0, {})}


class Script:
    """Somebody's training script; `line` is the one that was added."""

    def __init__(self, line=None, scheduler=None, *, kind="sgd", eps=1e-30, split=False, lr=None, weight_decay=None, **options):
        self.model = network(eps)
        parameters = list(self.model.parameters())
        if split:
            convs = [p for p in parameters if p.ndim == 4]
            parameters = [{"params": convs}, {"params": [p for p in parameters if p.ndim < 4], "weight_decay": 0.0}]
        make, usual_lr, usual_decay, extra = KINDS[kind]
        self.optimizer = make(parameters, copy.deepcopy(usual_lr if lr is None else lr), **(extra | options),
                              weight_decay=usual_decay if weight_decay is None else weight_decay)
        self.scheduler = scheduler and scheduler(self.optimizer)
        self.losses, self.lrs, self.effective_lrs, self.validation = [], [], [], []
        self.handle = line and line(self.model, self.optimizer)

    def train(self, steps=STEPS, each=None, step=lambda script, forward: script.step(forward)):
        """`each(script, t)` is called before step t."""
        for t in range(len(self.losses), len(self.losses) + steps):
            x, y = batch(t)
            if each:
                each(self, t)
            self.lrs.append(float(self.group["lr"]))
            self.effective_lrs.append(effective_lr(self.optimizer))
            loss = step(self, lambda x=x, y=y: F.cross_entropy(self.model(x), y))
            self.losses.append(loss.item())
            if t % 20 == 19:
                self.validation.append(self.evaluate())
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(loss.item())
            elif self.scheduler:
                self.scheduler.step()
        return self

    def step(self, forward):
        self.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        self.optimizer.step()
        return loss

    def evaluate(self):
        """The loss of other images, with BatchNorm's running averages."""
        self.model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(self.model(X[500:600]), Y[500:600]).item()
        self.model.train()
        return loss

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def state(self):
        """All that a step changes, as one list of tensors."""
        weights = list(self.model.parameters())
        kept = [x for p in weights for x in self.optimizer.state.get(p, {}).values() if isinstance(x, torch.Tensor)]
        return [x.detach().clone() for x in [*weights, *kept]]


def trained(kind="sgd", steps=10):
    return Script(remove, kind=kind).train(steps)


def assert_same(script, other, tolerance=1e-10):
    """The same training: equal loss curves, and loss curves of something that is trained at all."""
    gap = np.abs(np.array(script.losses) - other.losses).max()
    assert gap < tolerance
    if getattr(other.handle, "averages", True):  # they are carried along with a report only
        assert np.abs(np.array(script.validation) - other.validation).max(initial=0) < 100 * tolerance
    assert len(set(script.losses)) == len(script.losses)
    return gap


def same_with_the_line(line=remove, tolerance=1e-10, train=None, **options):
    """Train with and without the line; returns both scripts."""
    usual, converted = Script(**options), Script(line, **options)
    for script in usual, converted:
        script.train(**(train or {}))
    assert_same(usual, converted, tolerance)
    return usual, converted


def assert_evaluations_agree(make, batch=None, groups=lambda model: model.parameters(), **options):
    """The losses in evaluation mode after each step, with and without the line; `batch` is that of the report."""
    def train(convert):
        torch.manual_seed(0)
        model, losses = make().double(), []
        optimizer = torch.optim.SGD(groups(model), lr=0.05, weight_decay=0.05)
        x, y = batch or images(0)
        if convert:
            remove_weight_decay(optimizer, report(model, lambda m: F.cross_entropy(m(x), y)), **options)
        for t in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(images(t)[0]), images(t)[1]).backward()
            optimizer.step()
            losses.append(F.cross_entropy(model.eval()(images(-1)[0]), images(-1)[1]).item())
        return losses

    assert train(True) == pytest.approx(train(False), rel=1e-9)


def with_closure(script, forward):
    def closure():
        script.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        return loss

    return script.optimizer.step(closure) if len(script.losses) % 2 else script.optimizer.step(closure=closure)


# ---- schedulers ----


def warmup_cosine(optimizer):
    return lr_scheduler.SequentialLR(optimizer, [lr_scheduler.LinearLR(optimizer, 0.01, total_iters=10),
                                                 lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 10)], [10])


def plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)


def chained(optimizer):
    """Both multiply group["lr"] by a factor, so they see what each other and the last step left there."""
    return lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(optimizer, 0.995),
                                          lr_scheduler.MultiStepLR(optimizer, [30, 45], 0.3)])


def one_cycle(optimizer):
    """Cycles the momentum too."""
    return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)


def with_zeros(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if t < 3 or t % 10 == 0 else 1.0)


def growing(optimizer):
    return lr_scheduler.ExponentialLR(optimizer, 1.01)


both = pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])
kinds = pytest.mark.parametrize("kind", ["sgd", "adamw"])
