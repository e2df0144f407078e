"""Figure 3: in the exponential frame, an instant drop of the learning rate has only a passing effect.

Divide an exponentially growing lr by 10, and the effective lr is divided by 10. But the growth goes
on and brings the effective lr back, and with it the angle by which each step turns the weights. A
lasting change needs another growth rate. TEXP changes the growth rate, too (here TEXP++, which also
corrects the velocity). Then the new equilibrium of the angle is √(1/10) = 0.32 of the old one, and
it takes ten times as many steps to get there. The effective lr also depends on the size of the
gradients, so no number is predicted for it.

Half of the training labels are random here, so the gradient never vanishes and the runs keep an
equilibrium to come back to. With correct labels the network learns the digits by heart, and then
effective lr and angle vary five- to tenfold without end.
"""

# %%
import lab
import numpy as np

from minibn import equivalence, experiment
from minibn.training import fit

# %%
split, rng = experiment.Experiment(**lab.images).split, np.random.default_rng(3)
noisy = np.where(rng.random(len(split.y_train)) < 0.5, rng.integers(10, size=len(split.y_train)), split.y_train)
epochs, seeds, batch = lab.size(36, 6), range(lab.size(4, 1)), 64
lr, momentum, weight_decay = 0.1, 0.9, lab.size(1e-2, 2.5e-2)
per_epoch = len(noisy) // batch
steps = epochs * per_epoch
drop = steps // 3
phases = {"phases": [(drop, lr), (np.inf, lr / 10)], "momentum": momentum, "weight_decay": weight_decay}
schedules = {"growth all along": lambda: equivalence.exponential_equivalent(lr, momentum, weight_decay),
             "lr / 10 once": lambda: equivalence.instant_drops(**phases), "TEXP++": lambda: equivalence.texp_plus_plus(**phases)}


def train(label, seed):
    """The History of one run."""
    one = experiment.Experiment(**lab.images, seed=seed, affine=False, fixed=True, width=lab.size(8, 4))
    net = one.network()
    return fit(net, one.optimizers(net, schedules[label]()), split.x_train, noisy, epochs=epochs, batch_size=batch,
               rng=np.random.default_rng(seed), description=f"{label}, seed {seed}")


histories = {label: [train(label, seed) for seed in seeds] for label in schedules}


# %%
def ratios(column, label, chosen):
    """Mean of `column` over the steps `chosen`, relative to the run without a drop; of each seed."""
    means = {name: np.array([np.mean(history[column][chosen]) for history in histories[name]])
             for name in (label, "growth all along")}
    return means[label] / means["growth all along"]


figure, axes = lab.figure(1, 3, width=11, height=4.6)
columns = {"lr/invariant": "learning rate", "effective_lr/invariant": "effective lr, lr / |w|²",
           "angle/invariant": "angle per step [rad]"}
for axis, (column, title) in zip(axes, columns.items(), strict=True):
    for (label, runs), style in zip(histories.items(), ({"linestyle": "-"}, {"linestyle": "--"}, {"linestyle": ":"}),
                                    strict=True):
        rows = np.array([history[column].reshape(-1, per_epoch).mean(axis=1) for history in runs])
        color = f"C{list(histories).index(label)}"
        axis.semilogy(np.arange(epochs) + 0.5, np.exp(np.log(rows).mean(axis=0)), color=color, label=label, **style)
        axis.fill_between(np.arange(epochs) + 0.5, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.2, linewidth=0)
    axis.set(xlabel="epoch", title=title)
lab.legend(figure, 3, title=f"means per epoch; bands: from the smallest to the largest of {len(seeds)} seeds")

# %%
early, late = slice(drop, drop + 3), slice(-steps // 3, None)  # the last third: many equilibrium times
rate, angle = "effective_lr/invariant", "angle/invariant"
fallen = ratios(rate, "lr / 10 once", early)
back, lasting = ([ratios(column, label, late) for column in (rate, angle)] for label in ("lr / 10 once", "TEXP++"))
band = lab.size((0.85, 1.15), (0.7, 1.3))


def inside(x):
    """Whether all seeds are back to what they are without a drop."""
    return bool(np.all((band[0] < x) & (x < band[1])))


def spread(x):
    return f"{x.min():.2f} to {x.max():.2f}"


lab.claim(f"after an instant drop of lr by 10, effective lr and angle come back to within {band[1] - 1:.0%}",
          f"relative to no drop, {len(seeds)} seeds: effective lr {spread(fallen)} at the drop, in the last third of training "
          f"{spread(back[0])}, angle {spread(back[1])}", fallen.max() < 0.15 and all(map(inside, back)))
lab.claim("with another growth rate, that of TEXP++, neither does",
          f"in the last third of training effective lr {spread(lasting[0])}, angle {spread(lasting[1])}",
          max(x.max() for x in lasting) < 0.5)
lab.finish("04_instant_drop", __doc__, figure)
