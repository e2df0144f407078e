"""All four normalisers: Batch, Layer, Group and Instance normalisation all make the weights scale-invariant.

The theorem requires scale invariance and nothing else, so it holds with each of the four. Here γ, β
and the last layer are trained, too. (InstanceNorm over very small images, such as 2 x 2 pixels at
the end of a deep network, magnifies rounding errors.)
"""

# %%
import lab
import numpy as np

from minibn import data, models, schedules
from minibn.experiment import NORMS
from minibn.optim import SGD
from minibn.training import convert, fit

# %%
digits, epochs, batch = data.digits("float64"), lab.size(20, 1), 64
steps = epochs * (len(digits.y_train) // batch)


def train(norm, converted):
    net = models.vgg((8, "M", 16, 16), in_channels=1, norm=NORMS[norm], eps=0.0, rng=np.random.default_rng(0), dtype="float64")
    schedule = schedules.warmup(steps // 10, schedules.cosine(0.05, steps, momentum=0.9, weight_decay=5e-3))
    optimizers = convert(net, schedule).optimizers if converted else {"all": SGD(net.parameters(), schedule)}
    return fit(net, optimizers, digits.x_train, digits.y_train, epochs=epochs, batch_size=batch, rng=np.random.default_rng(1),
               description=f"{norm}, {'converted' if converted else 'weight decay'}")


runs = {norm: (train(norm, False), train(norm, True)) for norm in NORMS}

# %%
figure, (left, right) = lab.figure(width=9.5)
gaps = {}
for i, (norm, (usual, converted)) in enumerate(runs.items()):
    gap = np.abs(usual["loss"] - converted["loss"])
    gaps[norm] = gap.max()
    epoch = np.arange(steps) * epochs / steps
    left.semilogy(epoch, usual["loss"], color=f"C{i}", linewidth=6, alpha=0.25)
    left.semilogy(epoch, converted["loss"], color=f"C{i}", linewidth=1, label=f"{norm.capitalize()}Norm")
    right.semilogy(epoch, np.maximum.accumulate(np.maximum(gap, 1e-17)), color=f"C{i}")
left.set(xlabel="epoch", title="training loss of the batch\n(pale: weight decay; thin: converted)")
right.set(xlabel="epoch", title="largest gap so far between\nthe losses of the two runs")
lab.legend(figure, 4)

# %%
lab.claim("the equivalence holds with every normaliser", ", ".join(f"{norm} {gap:.0e}" for norm, gap in gaps.items())
          + f" (largest gap of the losses in {len(gap)} steps)", max(gaps.values()) < 1e-6)
lab.finish("08_normalisers", __doc__, figure)
