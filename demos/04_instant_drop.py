"""Figure 3: in the exponential frame, an instant drop of the learning rate has only a passing effect.

Dividing an exponentially growing lr by 10 divides the effective lr by 10, but the growth goes on and brings it back, and with
it the angle by which the weights turn each step. A lasting change needs another growth rate: that is what TEXP changes.
"""

# %%
import lab
import numpy as np

from minibn import equivalence, experiment

# %%
epochs = lab.size(48, 26)
settings = experiment.Experiment(**lab.images, affine=False, fixed=True, width=lab.size(16, 4), epochs=epochs,
                                 schedule="exponential")
drop = settings.steps // 3

phases = {"phases": [(drop, settings.lr), (np.inf, settings.lr / 10)], "momentum": settings.momentum,
          "weight_decay": settings.weight_decay}
runs = {"growth all along": settings.invariant(), "lr / 10 once": equivalence.instant_drops(**phases),
        "TEXP": equivalence.texp(**phases)}
histories = {label: experiment.run(settings, schedule, description=label).history for label, schedule in runs.items()}

# %%
figure, axes = lab.figure(1, 3, width=10)
width = settings.steps_per_epoch
columns = {"lr/invariant": "learning rate", "effective_lr/invariant": "effective lr, lr / |w|²",
           "angle/invariant": "angle turned per step [rad]"}
for axis, (column, title) in zip(axes, columns.items(), strict=True):
    for (label, history), style in zip(histories.items(), (lab.WIDE, {}, {"linestyle": "--"}), strict=True):
        y = np.convolve(history[column], np.ones(width) / width, "valid") if column == "angle/invariant" else history[column]
        axis.semilogy(np.arange(len(y)) / width, y, label=label, **style)
    axis.set(xlabel="epoch", title=title)
axes[0].legend(fontsize=11)

# %%
base, once, changed = (h["effective_lr/invariant"] for h in histories.values())
early, late = slice(drop, drop + 3), slice(-2 * width, None)
ratios = [np.mean(once[s]) / np.mean(base[s]) for s in (early, late)]
angles = {label: np.mean(history["angle/invariant"][late]) for label, history in histories.items()}
angle = angles["lr / 10 once"] / angles["growth all along"]
lasting = np.mean(changed[late]) / np.mean(base[late])
lab.claim("after an instant drop of lr by 10 effective lr and angle come back; after a change of the growth rate they do not",
          f"effective lr, relative to no drop: {ratios[0]:.2f} at the drop, {ratios[1]:.2f} at the end (angle: {angle:.2f}); "
          f"with another growth rate {lasting:.2f} at the end", ratios[0] < 0.15 and 0.6 < ratios[1] < 1.6 and lasting < 0.4)
lab.finish("04_instant_drop", __doc__, figure)
