"""Scale invariance: scaling the weights before a normalisation changes nothing but the size of the gradient.

The lemma on which all rests: if L(c w) = L(w) for every c > 0, then the gradient is orthogonal to w, and 1/c times as large
at c w. First measured on a PreResNet, with eps = 0 and the usual 1e-5; then drawn, for a loss of two weights.
"""

# %%
from itertools import islice

import lab
import numpy as np

from minibn import data, invariance, models, schedules
from minibn.equivalence import remove_weight_decay

# %% Scale all convolutions of a PreResNet by c; a perfect answer is a gap of 0 in both.
digits = data.digits("float64")
scales = np.logspace(-6, 6, lab.size(24, 6))  # an even number of them leaves out c = 1


def gaps(eps):
    """For each c: how far logits and c times the gradient are from those at c = 1, relative to their size."""
    net = models.preresnet(8, in_channels=1, width=8, eps=eps, affine=False, rng=np.random.default_rng(0), dtype="float64")
    parameters = {name: p.data for name, p in net.named_parameters()}
    f = invariance.loss_function(net, digits.x_train[:128], digits.y_train[:128])
    convs = invariance.symmetries(net).weights

    def of_convs(p):
        logits, gradients = f(p)
        return logits, {name: gradients[name] for name in convs}

    return [invariance.probe(of_convs, parameters, convs, scales=[c]) for c in scales]


exact, usual = gaps(0.0), gaps(1e-5)

# %% A loss of two weights that depends on their direction only, and three ways down from the same start.
minimum, learning_rate, weight_decay = 0.6, 0.25, 0.2


def loss(w1, w2):
    angle = np.arctan2(w2, w1) - minimum
    return 1 - np.cos(angle) + 0.3 * np.sin(2 * angle) ** 2


def gradient(w):
    angle = np.arctan2(w[1], w[0]) - minimum
    slope = np.sin(angle) + 0.6 * np.sin(4 * angle)
    return slope * np.array([-w[1], w[0]]) / (w @ w)


def descend(schedule, steps):
    path = [np.array([-0.35, 1.1])]
    for step in islice(schedule, steps):
        w = path[-1]
        path.append(w - step.lr * (gradient(w) + step.weight_decay * w))
    return np.array(path)


steps = 22
decay = schedules.constant(learning_rate, weight_decay=weight_decay)
paths = {"gradient descent": descend(schedules.constant(learning_rate), steps),
         "with weight decay": descend(decay, steps),
         "without, growing lr": descend(remove_weight_decay(schedules.constant(learning_rate, weight_decay=weight_decay)), steps)}

# %%
figure, (left, right) = lab.figure(width=9.5, height=5)
for probes, label in ((exact, "eps = 0"), (usual, "eps = 1e-5")):
    left.loglog(scales, [max(p.value_gap, 1e-17) for p in probes], "o-", label=f"logits, {label}")
    left.loglog(scales, [max(p.gradient_gap, 1e-17) for p in probes], "s--", label=f"c · gradient, {label}")
left.set(xlabel="all convolutions times c", ylabel="relative change", ylim=(1e-17, 1e6), title="A PreResNet's weights, scaled")
left.legend(loc="upper right")
grid = np.linspace(-0.9, 2.2, 400), np.linspace(-0.1, 1.9, 340)
right.contourf(*grid, loss(*np.meshgrid(*grid)), levels=30, cmap="YlGnBu", alpha=0.6)
for a, b in zip(paths["with weight decay"], paths["without, growing lr"], strict=True):
    right.plot(*zip((0, 0), max(a, b, key=np.linalg.norm), strict=True), color="black", linewidth=0.4)
for (label, path), marker in zip(paths.items(), "^so", strict=True):
    right.plot(*path.T, marker=marker, markersize=5, label=label)
around = np.array([[r * np.cos(a), r * np.sin(a)] for r in (0.5, 0.9, 1.5) for a in (1.25, 2.0)])
right.quiver(*around.T, *-np.array([gradient(w) for w in around]).T, angles="xy", scale=9, width=0.006, label="-gradient")
right.set(xlim=(-0.9, 2.2), ylim=(-0.1, 1.9), aspect="equal", xlabel="w₁", ylabel="w₂", title="A loss of two weights")
right.grid(visible=False)
right.legend(loc="lower right", fontsize=11, frameon=True)

# %%
worst = max(max(p.value_gap, p.gradient_gap, p.inner_product) for p in exact)
lab.claim("with eps = 0 logits do not change and the gradient shrinks as 1/c, over twelve decades of c",
          f"largest relative change {worst:.0e} (with eps = 1e-5: {max(p.value_gap for p in usual):.1g})", worst < 1e-9)
one, other = paths["with weight decay"], paths["without, growing lr"]
angles = np.arctan2(*one.T) - np.arctan2(*other.T)
lab.claim("weight decay and a growing learning rate turn the two weights by the same angle at every step",
          f"largest difference of the angles {np.abs(angles).max():.0e} rad; |w| ends at {np.linalg.norm(one[-1]):.2f} and "
          f"{np.linalg.norm(other[-1]):.2f}", np.abs(angles).max() < 1e-12)
lab.finish("01_scale_invariance", __doc__, figure)
