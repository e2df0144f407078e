"""Figure 5: a cosine schedule with warm-up, and its counterpart without weight decay.

Here the learning rate changes at every step, so there is no closed form. The converter follows the
schedule step by step. All parameters are trained: the norms' γ and β and the last layer keep the
usual schedule, and the two runs are still the same.
"""

# %%
import lab
import numpy as np

from minibn import experiment

# %%
settings = {**lab.images, "schedule": "cosine", "dtype": "float64", "width": lab.size(8, 4), "epochs": lab.size(30, 3),
            "warmup": lab.size(3, 0.5)}
usual = experiment.Experiment(**settings)
one = experiment.run(usual, description="cosine, weight decay")
other = experiment.run(experiment.Experiment(convert=True, **settings), description="its counterpart")

# %%
figure, axes = lab.figure(1, 3, width=10)
for run, label, style in ((one, "cosine, weight decay", lab.WIDE), (other, "its counterpart, no weight decay", {})):
    epoch = run.history["step"] / usual.steps_per_epoch
    axes[0].semilogy(epoch, run.history["loss"], label=label, **style)
    axes[1].semilogy(epoch[:-1], run.history["lr/invariant"][:-1], label=label, **style)
    axes[2].semilogy(epoch[:-1], run.history["effective_lr/invariant"][:-1], label=label, **style)
for axis, title in zip(axes, ("training loss of the batch", "learning rate", "effective lr, lr / |w|²"), strict=True):
    axis.set(xlabel="epoch", title=title)
lab.legend(figure)

# %%
gap = np.abs(one.history["loss"] - other.history["loss"]).max()
ratio = other.history["lr/invariant"] / one.history["lr/invariant"]
lab.claim("any schedule, here warm-up and cosine, has an equal without weight decay",
          f"its lr is up to {ratio.max():.3g} x the cosine's; losses of {len(epoch)} steps within {gap:.0e}, test accuracy "
          f"{one.test_accuracy:.1%} and {other.test_accuracy:.1%}", gap < 1e-6 and one.test_accuracy == other.test_accuracy)
lab.finish("06_cosine", __doc__, figure)
