"""Figure 1: constant learning rate with weight decay is an exponentially growing one without (Theorem 1.1).

As in the paper, only the scale-invariant weights are trained. The exponential schedule has a closed
form, lr α^(-2t-1), where α is the factor by which weight decay shrinks the weights in a step. It
needs one correction of the velocity, at the first step.
"""

# %%
import lab
import numpy as np

from minibn import equivalence, experiment

# %% The same network, the same batches, two schedules.
settings = {**lab.images, "affine": False, "fixed": True, "dtype": "float64", "width": lab.size(8, 4), "epochs": lab.size(30, 3)}
constant = experiment.Experiment(schedule="constant", **settings)
exponential = experiment.Experiment(schedule="exponential", **settings)
alpha, kappa = equivalence.fixed_point(constant.lr, constant.momentum, constant.weight_decay)
with_decay = experiment.run(constant, description="constant lr, weight decay").history
without = experiment.run(exponential, description="growing lr").history

# %%
figure, axes = lab.figure(1, 3, width=10)
epoch = with_decay["step"] / constant.steps_per_epoch
for history, label, style in ((with_decay, "constant lr, weight decay", lab.WIDE),
                              (without, "growing lr, no weight decay", {})):
    axes[0].semilogy(epoch, history["loss"], label=label, **style)
    axes[1].semilogy(epoch, history["lr/invariant"], label=label, **style)
    axes[2].semilogy(epoch, history["norm/invariant"], label=label, **style)
for axis, title in zip(axes, ("training loss of the batch", "learning rate", "norm of the weights |w|"), strict=True):
    axis.set(xlabel="epoch", title=title)
lab.legend(figure)

# %%
gap = np.abs(with_decay["loss"] - without["loss"]).max()
growth = alpha ** (-2 * constant.steps_per_epoch)
lr = without["lr/invariant"]
measured = (lr[-1] / lr[0]) ** (constant.steps_per_epoch / (len(lr) - 1))
lab.claim("constant lr with weight decay and exponentially growing lr without are the same run",
          f"lr grows {measured:.3f} x an epoch, to {lr[-1]:.3g}; losses of {len(lr)} steps within {gap:.0e}",
          gap < 1e-6 and abs(measured / growth - 1) < 1e-9)
lab.finish("02_exponential", __doc__, figure)
