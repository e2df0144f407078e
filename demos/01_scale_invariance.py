"""Scale invariance: scaling the weights before a normalisation changes nothing but the size of the gradient.

This is the lemma on which everything rests: if L(c w) = L(w) for every c > 0, then the gradient is
orthogonal to w, and at c w it is 1/c times as large. The demo first measures this on a PreResNet,
with eps = 0 and with the usual eps = 1e-5. Then it draws two runs on a loss of two weights.
"""

# %%
from itertools import islice

import lab
import matplotlib.pyplot as plt
import numpy as np

from minibn import data, invariance, models, schedules
from minibn.equivalence import remove_weight_decay
from minibn.explore import toys

# %% Scale all convolutions of a PreResNet by c. The ideal result is a gap of 0 in logits and gradient.
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


exact, usual_eps = gaps(0.0), gaps(1e-5)

# %% A loss of two weights that depends on their direction only, and two ways down from the same start.
learning_rate, weight_decay, steps = 0.25, 0.2, 20


def descend(schedule):
    path = [toys.START]
    for step in islice(schedule, steps):
        w = path[-1]
        path.append(w - step.lr * (toys.landscape_gradient(w) + step.weight_decay * w))
    return np.array(path)


usual = schedules.constant(learning_rate, weight_decay=weight_decay)
paths = {"with weight decay": descend(usual),
         "without, growing lr": descend(remove_weight_decay(schedules.constant(learning_rate, weight_decay=weight_decay)))}

# %%
figure = plt.figure(figsize=(11, 7))
places = figure.add_gridspec(2, 2, width_ratios=(1.7, 1))
plane, polar = figure.add_subplot(places[:, 0]), figure.add_subplot(places[0, 1], projection="polar")
probed = figure.add_subplot(places[1, 1])
x, y = np.meshgrid(np.linspace(-0.6, 1.5, 500), np.linspace(-0.1, 1.5, 400))
plane.imshow(toys.landscape(np.arctan2(y, x)), extent=(-0.6, 1.5, -0.1, 1.5), origin="lower", cmap="Greys_r", alpha=0.4)
for both in zip(*paths.values(), strict=True):
    plane.plot(*zip((0, 0), max(both, key=np.linalg.norm), strict=True), color="black", linewidth=0.6, alpha=0.4)
styles = [{"linewidth": 7, "alpha": 0.55, "marker": "o", "markersize": 10},
          {"linewidth": 2, "linestyle": "--", "marker": "o", "markersize": 5}]
for path, style in zip(paths.values(), styles, strict=True):
    plane.plot(*path.T, **style)
    polar.plot(np.arctan2(path[:, 1], path[:, 0]), range(steps + 1), **style)
bold = {"textcoords": "offset points", "weight": "bold"}
plane.annotate("start", toys.START, (-16, -24), **bold)
plane.annotate("with weight decay", paths["with weight decay"][-1], (24, -18), color="#004c7a", **bold)
plane.annotate("without, growing lr", paths["without, growing lr"][5], (0, 12), color="#8a3c00", **bold)
plane.set(xlabel="w₁", ylabel="w₂", title="Two weights: at each step both runs lie on one ray\n(the darker, the lower the loss)")
plane.grid(visible=False)
polar.set(thetamin=0, thetamax=120, rmax=steps + 1, rticks=[0, 10, 20],
          title="Directions; outwards, steps:\nboth runs spiral alike")
for probes, label, marker in ((exact, "eps = 0", "o-"), (usual_eps, "eps = 1e-5", "s--")):
    probed.loglog(scales, [max(p.value_gap, p.gradient_gap, 1e-17) for p in probes], marker, markersize=5, label=label)
probed.set(xlabel="all convolutions times c", ylabel="relative change", ylim=(1e-17, 1e6),
           title="A PreResNet's logits and\nc · gradient, weights scaled by c")
probed.legend(loc="upper right")

# %%
worst = max(max(p.value_gap, p.gradient_gap, p.inner_product) for p in exact)
lab.claim("with eps = 0 logits do not change and the gradient shrinks as 1/c, over twelve decades of c",
          f"largest relative change {worst:.0e} (with eps = 1e-5: {max(p.value_gap for p in usual_eps):.1g})", worst < 1e-9)
one, other = paths["with weight decay"], paths["without, growing lr"]
angles = np.arctan2(*one.T) - np.arctan2(*other.T)
lab.claim("weight decay and a growing learning rate turn the two weights by the same angle at every step",
          f"largest difference of the angles {np.abs(angles).max():.0e} rad; |w| ends at {np.linalg.norm(one[-1]):.2f} and "
          f"{np.linalg.norm(other[-1]):.2f}", np.abs(angles).max() < 1e-12)
lab.finish("01_scale_invariance", __doc__, figure)
