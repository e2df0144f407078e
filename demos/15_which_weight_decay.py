"""Which parameters should get weight decay? Those of the convolutions: there it keeps the effective learning rate up.

Five choices are compared at the same learning rates: weight decay on all parameters, on all but the
norms' γ and β and the biases, on the convolutions alone, on the last layer alone, and on none. The
convolutions are scale-invariant. There, weight decay only sets the effective lr, and another
learning-rate schedule gives the same training without it. Half of the training labels are random,
so that it matters how closely the network fits them.
"""

# %%
import lab
import numpy as np

from minibn import data, models, schedules
from minibn.equivalence import remove_weight_decay
from minibn.invariance import symmetries
from minibn.optim import SGD
from minibn.training import evaluate, fit, update_bn

# %%
split, rng = data.digits(), np.random.default_rng(3)
count, batch, seeds = lab.size(len(split.y_train), 300), lab.size(32, 20), range(lab.size(3, 1))
images, labels = split.x_train[:count], split.y_train[:count].copy()
wrong = rng.random(count) < 0.5
labels[wrong] = rng.integers(10, size=wrong.sum())
per_epoch = count // batch
epochs = lab.size(8, 7)
steps = epochs * per_epoch
choices = {"all": ("conv", "norm", "head"), "all but γ, β, biases": ("conv", "head"), "convolutions": ("conv",),
           "last layer": ("head",), "none": ()}


def usual(weight_decay):
    return schedules.warmup(steps // 20, schedules.cosine(0.1, steps, momentum=0.9, weight_decay=weight_decay))


def kinds(net):
    """"conv": the scale-invariant weights; "head": the last layer's matrix; "norm": γ, β and the last layer's bias."""
    conv, head = symmetries(net).weights, net["head"].weight
    return {"conv": [p for name, p in net.named_parameters() if name in conv],
            "norm": [p for name, p in net.named_parameters() if name not in conv and p is not head], "head": [head]}


def train(decayed, seed, convert=False, dtype="float32"):
    """(history, test accuracy) of a run with weight decay on the groups `decayed`; `convert`: not on "conv", lr converted."""
    net = models.preresnet(8, in_channels=1, width=lab.size(8, 4), eps=0.0, rng=np.random.default_rng(seed), dtype=dtype)
    optimizers = {}
    for one, parameters in kinds(net).items():
        schedule = usual(lab.size(1e-2, 2e-2) if one in decayed else 0.0)
        optimizers[one] = SGD(parameters, remove_weight_decay(schedule) if convert and one == "conv" else schedule)
    x = images.astype(dtype)
    history = fit(net, optimizers, x, labels, epochs=epochs, batch_size=batch, rng=np.random.default_rng(seed + 100),
                  description=f"{', '.join(decayed) or 'none'}{' converted' if convert else ''}, seed {seed}")
    update_bn(net, x)
    return history, evaluate(net, split.x_test.astype(dtype), split.y_test)[1]


runs = {name: [train(decayed, seed) for seed in seeds] for name, decayed in choices.items()}
exact = [train(("conv",), 0, convert, "float64") for convert in (False, True)]


# %%
def values(name, measure):
    """measure(history, test accuracy) of each seed."""
    return np.array([measure(*run) for run in runs[name]])


def accuracy(_, accuracy):
    return 100 * accuracy


def late_loss(history, _):
    return history["loss"][-2 * per_epoch :].mean()


def middle(history, _):
    return history["effective_lr/conv"][steps // 2]


def end(kind):
    return lambda history, _: history[f"norm/{kind}"][-1]


table = {"test accuracy [%]": accuracy, "training loss": late_loss, "10^4 effective lr": lambda *run: 1e4 * middle(*run),
         "|γ, β, biases|": end("norm"), "|last layer|": end("head")}
print(" " * 22 + "".join(f"{title:>20}" for title in table))
for name in choices:
    columns = [values(name, measure) for measure in table.values()]
    print(f"{name:22}" + "".join(f"{c.mean():>13.2f} ± {c.std(ddof=min(1, len(c) - 1)):.2f}" for c in columns))
print()

# %%
figure, axes = lab.figure(1, 3, width=11, height=4.6, width_ratios=[1.1, 1.3, 1.1])
epoch = np.arange(steps) / per_epoch
for i, name in enumerate(choices):
    y = values(name, accuracy)
    axes[0].plot(y, np.full(len(y), i), "o", color=f"C{i}", alpha=0.6)
    axes[0].plot(y.mean(), i, "|", color=f"C{i}", markersize=26, markeredgewidth=3)
    axes[1].semilogy(epoch, runs[name][0][0]["effective_lr/conv"], color=f"C{i}", label=name, linestyle=["-", "--"][i % 2])
    axes[2].barh([i - 0.2, i + 0.2], [values(name, end(kind)).mean() for kind in ("norm", "head")], 0.36, color=f"C{i}",
                 hatch=["", "///"], edgecolor="white")
axes[1].semilogy(epoch, exact[1][0]["effective_lr/conv"], "k:", label="convolutions, converted")
for axis in (axes[0], axes[2]):
    axis.set_yticks(range(len(choices)), [name.replace("but ", "but\n") for name in choices] if axis is axes[0] else [])
    axis.set_ylim(len(choices) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
axes[0].set(xlabel="test accuracy [%]", title=f"weight decay on …\n({len(seeds)} seeds; bar: mean)")
axes[1].set(xlabel="epoch", ylim=(3e-6, None), title="effective lr of the convolutions\n(seed 0)")
lab.legend(figure, 3)
axes[2].set(xlabel="norm at the end", title="γ, β, biases (plain)\nlast layer (hatched)")

# %%
with_decay, without = list(choices)[:3], list(choices)[3:]


def mean(names, measure):
    return np.mean([values(name, measure) for name in names])


lab.claim("without weight decay on the convolutions their effective lr is lower, and more of the wrong labels are fitted",
          f"effective lr in mid-training {mean(without, middle):.1g} against {mean(with_decay, middle):.1g}; training loss "
          f"{mean(without, late_loss):.2f} against {mean(with_decay, late_loss):.2f}",
          mean(with_decay, middle) > 1.5 * mean(without, middle) and mean(with_decay, late_loss) > mean(without, late_loss))
if not lab.flags.quick:  # one seed could not tell
    lab.claim("and the test accuracy is lower",
              f"{mean(without, accuracy):.1f}% against {mean(with_decay, accuracy):.1f}% (means of "
              f"{len(without) * len(seeds)} and {len(with_decay) * len(seeds)} runs)",
              mean(with_decay, accuracy) > mean(without, accuracy) + 1)
(history, test), (other, other_test) = exact
gap = np.abs(history["loss"] - other["loss"]).max()
lab.claim("this weight decay acts through the effective lr alone: without it, at the converted lr, the run is the same",
          f"losses of {steps} steps within {gap:.0e}; test accuracy {test:.1%} and {other_test:.1%}",
          gap < 1e-6 and test == other_test)
both = ("all", "all but γ, β, biases")
norms, rates, tests = ([values(name, measure).mean() for name in both] for measure in (end("norm"), middle, accuracy))
lab.claim("weight decay on γ, β and biases makes them smaller, and hardly changes the effective lr of the convolutions",
          f"norm {norms[0]:.1f} with, {norms[1]:.1f} without; effective lr {rates[0]:.1e} and {rates[1]:.1e}; test accuracy "
          f"{tests[0]:.1f}% and {tests[1]:.1f}%", norms[0] < 0.7 * norms[1] and 0.5 < rates[1] / rates[0] < 2)
lab.finish("15_which_weight_decay", __doc__, figure)
