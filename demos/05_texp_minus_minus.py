"""Figure 4: TEXP-- leaves out the instant drop of the learning rate, and its training loss stays higher.

TEXP-- changes only the growth rate at each milestone. This equals training at a constant lr with a
weight decay that is divided at each milestone (appendix B). Its effective lr falls only as fast as
the weights grow. Half of the training labels are random here: with correct labels, digits are too
easy to show a difference.
"""

# %%
import lab
import numpy as np

from minibn import data, experiment
from minibn.training import evaluate, fit, update_bn

# %%
split, rng = data.digits(), np.random.default_rng(3)
noisy = np.where(rng.random(len(split.y_train)) < 0.5, rng.integers(10, size=len(split.y_train)), split.y_train)
labels, seeds = {"texp": "TEXP", "texp--": "TEXP--"}, range(lab.size(3, 1))
epochs, batch = lab.size(16, 5), lab.size(16, 32)


def train(name, seed):
    """(history, test accuracy) of one run."""
    one = experiment.Experiment(schedule=name, seed=seed, affine=False, fixed=True, epochs=epochs, batch=batch, lr=0.2,
                                weight_decay=1e-2, width=lab.size(8, 4))
    net = one.network()
    history = fit(net, one.optimizers(net), split.x_train, noisy, epochs=epochs, batch_size=batch,
                  rng=np.random.default_rng(seed), description=f"{labels[name]}, seed {seed}")
    update_bn(net, split.x_train)
    return history, evaluate(net, split.x_test, split.y_test)[1]


runs = {name: [train(name, seed) for seed in seeds] for name in labels}

# %%
figure, axes = lab.figure(1, 3, width=10, height=4.5)
per_epoch = len(noisy) // batch
for i, (name, results) in enumerate(runs.items()):
    for j, (history, _) in enumerate(results):
        style = {"color": f"C{i}", "label": labels[name] if j == 0 else None, "linewidth": 1.5}
        axes[0].semilogy(history["step"] / per_epoch, history["lr/invariant"], **style)
        axes[1].semilogy(history["step"] / per_epoch, history["effective_lr/invariant"], **style)
        axes[2].plot(np.arange(1, epochs + 1), history["loss"].reshape(-1, per_epoch).mean(axis=1), **style)
for axis, title in zip(axes, ("learning rate", "effective lr, lr / |w|²", "training loss per epoch"), strict=True):
    axis.set(xlabel="epoch", title=title)
lab.legend(figure, title=f"one line for each of {len(seeds)} seeds")


# %%
def mean(measure):
    """{schedule: mean over the seeds of measure(history, test accuracy)}."""
    return {name: np.mean([measure(*result) for result in results]) for name, results in runs.items()}


last = mean(lambda history, _: history["effective_lr/invariant"][-1])
loss = mean(lambda history, _: history["loss"][-3 * per_epoch :].mean())
accuracy = mean(lambda _, accuracy: accuracy)
lab.claim("without the instant drops the effective lr stays too high, and the training loss is higher",
          f"effective lr at the end {last['texp--'] / last['texp']:.0f} x that of TEXP; training loss of the last three epochs "
          f"{loss['texp--']:.3f} (TEXP--) against {loss['texp']:.3f} (TEXP), half of the labels being random; test accuracy, "
          f"{accuracy['texp--']:.1%} and {accuracy['texp']:.1%}, does not tell them apart (means of {len(seeds)} seeds)",
          last["texp--"] > 2 * last["texp"] and loss["texp--"] > loss["texp"])
lab.finish("05_texp_minus_minus", __doc__, figure)
