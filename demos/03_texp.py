"""Figure 2: step decay against its exponential form, TEXP, and TEXP++, which corrects the velocity at each switch.

TEXP is a plain learning-rate schedule: lr grows by a constant factor each step, and at each drop
the factor changes. It misses the momentum's share of weight decay for some steps after the start
and after each switch. TEXP++ is exact (Theorem 2.12).
"""

# %%
import lab
import numpy as np

from minibn import experiment

# %%
settings = {**lab.images, "affine": False, "fixed": True, "dtype": "float64", "width": lab.size(8, 4), "epochs": lab.size(30, 3)}
labels = {"step": "step decay", "texp": "TEXP", "texp++": "TEXP++"}
runs = {name: experiment.run(experiment.Experiment(schedule=name, **settings), description=label)
        for name, label in labels.items()}

# %%
figure, axes = lab.figure(1, 3, width=10)
per_epoch = experiment.Experiment(**settings).steps_per_epoch
for (name, run), style in zip(runs.items(), (lab.WIDE, {}, {"linestyle": "--"}), strict=True):
    history = run.history
    epoch = history["step"] / per_epoch
    ends = np.isfinite(history["test_accuracy"])
    axes[0].semilogy(epoch, history["lr/invariant"], label=labels[name], **style)
    axes[1].semilogy(epoch, history["effective_lr/invariant"], label=labels[name], **style)
    axes[2].plot(epoch[ends] + 1 / per_epoch, 100 * (1 - history["test_accuracy"][ends]), label=labels[name], **style)
for axis, title in zip(axes, ("learning rate", "effective lr, lr / |w|²", "test error [%]"), strict=True):
    axis.set(xlabel="epoch", title=title)
lab.legend(figure, 3)

# %%
gaps = {name: np.abs(run.history["loss"] - runs["step"].history["loss"]).max() for name, run in runs.items()}
accuracy = {name: run.test_accuracy for name, run in runs.items()}
lab.claim("TEXP++ is the same run as step decay", f"losses of {len(history)} steps within {gaps['texp++']:.0e}",
          gaps["texp++"] < 1e-6)
lab.claim("TEXP, without the corrections, ends at the same accuracy",
          f"test accuracy: step decay {accuracy['step']:.1%}, TEXP {accuracy['texp']:.1%}; losses within {gaps['texp']:.1g}",
          abs(accuracy["texp"] - accuracy["step"]) < 0.02)
lab.finish("03_texp", __doc__, figure)
