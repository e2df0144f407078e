"""AdamW is Adam with a growing learning rate: figure 1 for the optimiser that most networks are trained with. Not in the paper.

AdamW at a constant learning rate equals stock Adam without weight decay whose lr grows by the
factor 1 / (1 - lr · wd) per step and whose betas are a little smaller. This is exact for
scale-invariant weights, bias corrections and eps included. If only lr grows and the betas stay,
steps are too short by a constant factor. An eps that is not scaled with the gradients makes the
runs differ, too.
"""

# %%
from dataclasses import replace
from itertools import islice

import lab
import numpy as np

from minibn import data, equivalence, experiment
from minibn.optim import AdamStep, AdamW
from minibn.optim.adamw import update
from minibn.training import fit

# %% As in figure 1, only the scale-invariant weights are trained. The same network and batches, four times.
one = experiment.Experiment(affine=False, fixed=True, dtype="float64", width=lab.size(8, 4), epochs=lab.size(30, 1))
split = data.digits("float64")
steps = one.epochs * one.steps_per_epoch
usual = AdamStep(1e-2, weight_decay=lab.size(0.5, 4.0))  # betas 0.9 and 0.999, eps 1e-8
a = 1 - usual.lr * usual.weight_decay
exact = list(islice(equivalence.adam_exponential(usual.lr, usual.weight_decay, usual.beta1, usual.beta2, usual.eps), steps))
schedules = {
    "AdamW, constant lr": [usual] * steps,
    "Adam, growing lr": exact,
    "betas unchanged": [replace(usual, lr=usual.lr / a**q, eps=usual.eps * a ** (q - 1), weight_decay=0.0)
                        for q in range(1, steps + 1)],
    "eps unchanged": [replace(step, eps=usual.eps) for step in exact]}
runs = {}
for name, schedule in schedules.items():
    net = one.network()
    weights = one.optimizers(net)["invariant"].parameters
    runs[name] = fit(net, {"invariant": AdamW(weights, schedule)}, split.x_train, split.y_train, epochs=one.epochs,
                     batch_size=one.batch, rng=np.random.default_rng(1), description=name)

# %% How much growing lr alone is off, at settings in use: AdamW, and Adam with unchanged betas, are given the same noise.
# Adam's averages are of gradients P g, and P was larger in the past. So for AdamW's gradients β1
# acts as β1 / a, β2 as β2 / a².
settings = {"lr 3e-4, β2 0.95": AdamStep(3e-4, beta2=0.95, weight_decay=0.1),
            "lr 1e-3, β2 0.95": AdamStep(1e-3, beta2=0.95, weight_decay=0.1),
            "lr 1e-3, β2 0.999": AdamStep(1e-3, beta2=0.999, weight_decay=0.1)}
if lab.flags.quick:
    del settings["lr 1e-3, β2 0.999"]  # whose averages are long


def measured_factor(step, count, size=200):
    """Length of Adam's update at lr / P' by that of AdamW's, if betas stay: root mean squares over the later half."""
    rng, a, zeros, squares = np.random.default_rng(0), 1 - step.lr * step.weight_decay, np.zeros(size), np.zeros(2)
    bare, state, state_adam = replace(step, weight_decay=0.0), (zeros, zeros), (zeros, zeros)
    for q in range(1, count + 1):
        g, scale = rng.standard_normal(size), a ** (q - 1)
        u, *state = update(bare, q, zeros, *state, g)
        grown = replace(bare, lr=step.lr / a / scale, eps=step.eps * scale)
        u_adam, *state_adam = update(grown, q, zeros, *state_adam, scale * g)
        squares += (2 * q > count) * np.array([(a * scale * u_adam) @ (a * scale * u_adam), u @ u])
    return np.sqrt(squares[0] / squares[1])


def predicted_factor(step):
    a, b1, b2 = 1 - step.lr * step.weight_decay, step.beta1, step.beta2
    return np.sqrt((1 - b1**2) / (1 - (b1 / a) ** 2) * (1 - b2 / a**2) / (1 - b2))


factors = {name: (measured_factor(step, lab.size(16_000, 1000)), predicted_factor(step)) for name, step in settings.items()}

# %%
figure, axes = lab.figure(2, 2, height=7.6, width=11)
epoch = np.arange(steps) / one.steps_per_epoch
for name, history in runs.items():
    style = {"AdamW, constant lr": lab.WIDE, "Adam, growing lr": {}}.get(name, {"linewidth": 1, "linestyle": "--"})
    for axis, column in zip(axes.flat, ("loss", "lr/invariant", "norm/invariant"), strict=False):
        axis.semilogy(epoch, history[column], label=name, **style)
first, *others = runs.values()
gaps = {name: np.maximum.accumulate(np.maximum(np.abs(history["loss"] - first["loss"]), 1e-17)) for name, history in runs.items()}
for i, name in enumerate(list(runs)[1:], 1):
    axes[1, 1].semilogy(epoch, gaps[name], color=f"C{i}", linestyle="-" if i == 1 else "--")
titles = ("training loss of the batch", "learning rate", "norm of the weights |w|",
          "largest gap so far between\nthe loss and AdamW's")
for axis, title in zip(axes.flat, titles, strict=True):
    axis.set(xlabel="epoch", title=title)
axes[0, 0].set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
axes[0, 0].yaxis.set_minor_formatter("")
lab.legend(figure, 4)

# %%
rates, grown = others[0]["lr/invariant"], others[0]["norm/invariant"][-1] / first["norm/invariant"][-1]
lab.claim("AdamW at a constant lr is stock Adam without weight decay at a growing one",
          f"lr grows from {rates[0]:.3g} to {rates[-1]:.3g}, betas {exact[0].beta1:.4f} and {exact[0].beta2:.4f} in place of "
          f"{usual.beta1} and {usual.beta2}; losses of {steps} steps within {gaps['Adam, growing lr'][-1]:.0e}, weights "
          f"{grown:.3g} x as large", gaps["Adam, growing lr"][-1] < 1e-9)
lab.claim("with the betas or eps left as they are it is not",
          f"losses differ by up to {gaps['betas unchanged'][-1]:.1g} and {gaps['eps unchanged'][-1]:.1g}",
          min(gaps["betas unchanged"][-1], gaps["eps unchanged"][-1]) > 1e-9)
missing = [f"{name}: {100 * (1 - a):.2g} % ({100 * (1 - b):.2g} %)" for name, (a, b) in factors.items()]
lab.claim("growing lr alone makes steps shorter by a constant fraction: little with β2 = 0.95, much with 0.999",
          f"with weight decay 0.1, measured (predicted): {'; '.join(missing)}",
          all(abs((1 - a) / (1 - b) - 1) < 0.1 for a, b in factors.values()))
lab.finish("16_adamw", __doc__, figure)
