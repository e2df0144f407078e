"""Equilibria of six optimisers: one formula for the angle per step and for the norm of the weights. Not in the paper.

In each step, weight decay reduces |w|² by 2δ|w|², and the updates increase it by η²|u|²D, where D
measures how much updates repeat each other. So the weights turn by √(2δ/D) per step, whatever the
optimiser. The demo first takes a walk whose gradients are noise, orthogonal to w and of size 1/|w|,
as the formula assumes. Then it trains a network on digits, with half of the labels drawn at random,
and measures its hidden layers.
"""

# %%
from itertools import repeat

import lab
import numpy as np

from minibn import data, models, monitor, nn
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Step
from minibn.training import train_step


def optimisers(delta):
    """{name: (class, its step object, whose weight decay shrinks the weights by delta per step)}."""
    return {"SGD": (SGD, Step(0.1, 0.9, weight_decay=delta)),  # δ = ηλ / (1 - γ)
            "SGDW": (SGD, Step(0.1, 0.9, shrink=delta)),
            "AdamW": (AdamW, AdamStep(2e-3, 0.9, 0.95, weight_decay=delta / 2e-3)),
            "Lion": (Lion, LionStep(1e-3, 0.95, 0.98, weight_decay=delta / 1e-3)),
            "signSGD": (Lion, LionStep(1e-3, 0.0, weight_decay=delta / 1e-3)),
            "Muon": (Muon, MuonStep(2e-2, 0.95, weight_decay=delta / 2e-2))}


def update_size(step, shape, gradient_square):
    """U = |u| |w|^k of a matrix whose gradients are noise, from the mean of |g|²|w|²."""
    if isinstance(step, Step):
        return np.sqrt(gradient_square / (1 - step.momentum**2))
    if isinstance(step, MuonStep):
        return 0.86 * np.sqrt(min(shape) * max(1, shape[1] / shape[0]))  # its singular values are about 0.86
    return np.sqrt(np.prod(shape) * ((1 - step.beta1) / (1 + step.beta1) if isinstance(step, AdamStep) else 1.0))


class Measured:
    """Norm and angle at each step of some matrices, and the size U of their updates, for `monitor.predicted_norm_of`."""

    def __init__(self, step, parameters):
        self.step, self.parameters, self.norms, self.angles, self.squares, self.outward = step, parameters, [], [], [], []

    def update(self, optimizers):
        """Take a step, and measure it."""
        before = [p.data for p in self.parameters]
        sizes = [np.linalg.norm(p.grad) * np.linalg.norm(p.data) for p in self.parameters]
        for optimizer in optimizers:
            optimizer.step()
        measures = [monitor.measure(self.step, [old], [p.data]) for old, p in zip(before, self.parameters, strict=True)]
        self.norms.append([float(norm) for norm, _, _ in measures])
        self.angles.append([float(angle) for _, _, angle in measures])
        if isinstance(self.step, Step):  # U² = G / (1 - γ²)
            self.squares.append([size**2 / (1 - self.step.momentum**2) for size in sizes])
        else:
            moves = [p.data - (1 - self.step.shrink) * old for old, p in zip(before, self.parameters, strict=True)]
            self.squares.append([np.sum((move / self.step.lr) ** 2) for move in moves])
            self.outward.append([np.sum(move * old) / (self.step.shrink * np.sum(old**2))
                                 for old, move in zip(before, moves, strict=True)])

    def predicted_norms(self):
        """One per matrix, from the updates of the later half of the steps."""
        sizes = np.sqrt(np.mean(self.squares[len(self.squares) // 2 :], axis=0))
        return np.array([monitor.predicted_norm_of(self.step, size) for size in sizes])

    def outward_part(self):
        """How much of the decay is undone by the part of the updates that goes along w, one per matrix."""
        return np.mean(self.outward[len(self.outward) // 2 :], axis=0)

    def late(self):
        """(angles, norms), one per matrix: means over the later half."""
        return (np.mean(values[len(values) // 2 :], axis=0) for values in (self.angles, self.norms))


# %% The walk. It starts at 1.5 times the norm of equilibrium.
def walk(kind, step, steps, shape=(40, 50)):
    rng, w = np.random.default_rng(0), nn.Parameter(np.ones(shape))
    size = update_size(step, shape, np.prod(shape) - 1)
    w.data *= lab.size(1.5, 1.0) * monitor.predicted_norm_of(step, size) / np.linalg.norm(w.data)
    optimizer, measured = kind([w], repeat(step)), Measured(step, [w])
    for _ in range(steps):
        noise, square = rng.standard_normal(shape), np.sum(w.data**2)
        w.grad = (noise - np.sum(noise * w.data) / square * w.data) / np.sqrt(square)
        measured.update([optimizer])
    return measured


walks = {name: walk(kind, step, lab.size(10_000, 250)) for name, (kind, step) in optimisers(lab.size(4e-4, 8e-3)).items()}


# %% The network. Scaling weights before a normalisation does not change it, so it is started near its equilibrium.
split = data.digits()


def network(kind, step, steps, size=64, batch=32):
    rng = np.random.default_rng(1)
    net = models.mlp((size, size, size), affine=False, eps=0.0, rng=np.random.default_rng(0))
    named = dict(net.named_parameters())
    weights = [named[f"linear{i}.weight"] for i in (1, 2, 3)]
    optimizers, measured = [kind([w], repeat(step)) for w in weights], Measured(step, weights[1:])
    for t in range(steps):
        i = rng.integers(len(split.y_train), size=batch)
        y = np.where(rng.random(batch) < 0.5, rng.integers(10, size=batch), split.y_train[i])
        net.zero_grad()
        train_step(net, nn.CrossEntropy(), [], split.x_train[i], y)
        if t == 0:
            for w in weights:
                size = update_size(step, w.data.shape, np.sum(w.data**2) * np.sum(w.grad**2))
                factor = monitor.predicted_norm_of(step, size) / np.linalg.norm(w.data)
                w.data, w.grad = w.data * np.float32(factor), w.grad / np.float32(factor)
        measured.update(optimizers)
    return measured


networks = {name: network(kind, step, lab.size(2500, 60)) for name, (kind, step) in optimisers(lab.size(1e-3, 4e-3)).items()}

# %%
figure, axes = lab.figure(1, 3, width=11.5, height=4.6)
rows = {}
for i, name in enumerate(walks):
    w, net = walks[name], networks[name]
    predicted = monitor.predicted_angle_of(w.step), monitor.predicted_angle_of(net.step)
    axes[0].plot(np.array(w.norms)[:, 0] / w.predicted_norms(), color=f"C{i}", linewidth=1.5)
    (angle, norm), (angles, norms) = w.late(), net.late()
    rows[name] = np.array([*angle / predicted[0], *norm / w.predicted_norms(),
                           *angles / predicted[1], *norms / net.predicted_norms()])
    for axis, of_walk, of_net in ((axes[1], (predicted[0], angle[0]), (predicted[1], angles)),
                                  (axes[2], (w.predicted_norms()[0], norm[0]), (net.predicted_norms(), norms))):
        axis.loglog(*of_walk, "o", color=f"C{i}", markersize=10, label=name)
        axis.loglog(np.broadcast_to(of_net[0], 2), of_net[1], "s", color=f"C{i}", markersize=9, fillstyle="none")
axes[0].axhline(1, color="k", linestyle=":", linewidth=1)
axes[0].set(xlabel="step", title="the walk: norm by\nits predicted equilibrium")
for axis, title, ticks in ((axes[1], "angle per step [rad]", (0.003, 0.01, 0.03)), (axes[2], "norm |w|", (2, 5, 10, 20, 40))):
    low, high = np.array([axis.get_xlim(), axis.get_ylim()]).T
    ends = [max(low), min(high)]
    axis.plot(ends, ends, "k:", linewidth=1)
    axis.set(xlabel="predicted", ylabel="measured", title=f"{title}\n(squares: a network)")
    for place in (axis.xaxis, axis.yaxis):
        place.set_ticks(ticks := [tick for tick in ticks if max(low) < tick < min(high)], map(str, ticks))
        place.set_minor_formatter("")
lab.legend(figure, 6)

# %%
print(f"{'measured / predicted':22}walk: angle   norm     network: angle        norm")
for name, (a, b, *r) in rows.items():
    print(f"{name:22}{a:11.3f}{b:7.3f}{r[0]:16.3f}{r[1]:7.3f}{r[2]:7.3f}{r[3]:7.3f}")
table = np.array(list(rows.values()))


def furthest(part):
    return f"within {100 * np.abs(part - 1).max():.1f} %"


memory = np.sqrt([monitor.update_correlation(w.step) for w in walks.values()])  # the control: a formula without D
wrong = memory / table[:, 0]
tolerance = lab.size(0.03, 0.2)
lab.claim("where gradients are noise, all six optimisers turn the weights by √(2δ/D) per step, at the predicted norm",
          f"angle {furthest(table[:, 0])}, norm {furthest(table[:, 1])}; without D the angle is off by a factor of up to "
          f"{wrong.max():.1f}", np.abs(table[:, :2] - 1).max() < tolerance < wrong.max() - 1)
part, angles = networks["signSGD"].outward_part(), table[list(rows).index("signSGD"), 2:4]
others = np.delete(table, list(rows).index("signSGD"), axis=0)
lab.claim("on a network that learns, nearly so: its gradients are not noise",
          f"angles in two layers {furthest(others[:, 2:4])} of the prediction for five optimisers; for signSGD {angles[0]:.2f} "
          f"and {angles[1]:.2f} times it, since signs, unlike gradients, are not orthogonal to w: they undo {part[0]:.0%} and "
          f"{part[1]:.0%} of the decay, which would leave {np.sqrt(1 - part[0]):.2f} and {np.sqrt(1 - part[1]):.2f} at rest",
          np.abs(others[:, 2:4] - 1).max() < lab.size(0.2, 0.8)
          and np.abs(np.sqrt(1 - part) - angles).max() < lab.size(0.1, 0.2))
lab.finish("17_equilibria", __doc__, figure)
