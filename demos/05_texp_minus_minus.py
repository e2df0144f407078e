"""Figure 4: TEXP-- leaves out the instant drop of the learning rate, and trains worse.

It changes the growth rate alone, which equals a constant lr whose weight decay is divided at each milestone (appendix B). Its
effective lr falls only as fast as the weights grow.
"""

# %%
import lab
import numpy as np

from minibn import experiment

# %%
settings = {"affine": False, "fixed": True, "epochs": lab.size(24, 12), "batch": 32, "width": lab.size(8, 4)}
labels = {"texp": "TEXP", "texp--": "TEXP--"}
runs = {name: [experiment.run(experiment.Experiment(schedule=name, seed=seed, **settings), description=f"{label}, seed {seed}")
               for seed in range(3)] for name, label in labels.items()}

# %%
figure, axes = lab.figure(1, 3, width=12)
per_epoch = experiment.Experiment(**settings).steps_per_epoch
for i, (name, seeds) in enumerate(runs.items()):
    for j, run in enumerate(seeds):
        label, history = labels[name] if j == 0 else None, run.history
        epochs = np.arange(1, settings["epochs"] + 1)
        axes[0].semilogy(history["step"] / per_epoch, history["lr/invariant"], color=f"C{i}", label=label)
        axes[1].semilogy(history["step"] / per_epoch, history["effective_lr/invariant"], color=f"C{i}", label=label)
        axes[2].semilogy(epochs, history["loss"].reshape(-1, per_epoch).mean(axis=1), color=f"C{i}", label=label)
for axis, title in zip(axes, ("learning rate", "effective lr, lr / |w|²", "training loss, mean of the epoch"), strict=True):
    axis.set(xlabel="epoch", title=title)
axes[0].legend()

# %%
def mean(measure):
    """{schedule: mean of a measure over the seeds}."""
    return {name: np.mean([measure(run) for run in seeds]) for name, seeds in runs.items()}


last = mean(lambda run: run.history["effective_lr/invariant"][-1])
loss = mean(lambda run: run.history["loss"][-3 * per_epoch :].mean())
accuracy = mean(lambda run: run.test_accuracy)
lab.claim("without the instant drops the effective lr stays too high at the end, and training is worse",
          f"effective lr at the end {last['texp--'] / last['texp']:.0f} x that of TEXP; training loss of the last three epochs "
          f"{loss['texp--']:.2g} against {loss['texp']:.2g}; test accuracy {accuracy['texp--']:.1%} and {accuracy['texp']:.1%} "
          "(means of 3 seeds)", last["texp--"] > 2 * last["texp"] and loss["texp--"] > loss["texp"])
lab.finish("05_texp_minus_minus", __doc__, figure)
