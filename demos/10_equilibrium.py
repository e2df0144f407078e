"""Equilibrium: weight decay and gradient steps balance at a predictable norm and angle per step.

If gradients are not correlated from step to step, |w|⁴ tends to ηG / (2λ(1-γ)), where G is the mean
square of the gradient at |w| = 1. The weights turn by sqrt(2ηλ / (1+γ)) per step, whatever the
network and the data. Here the network learns random labels, so that its gradients stay noisy.
"""

# %%
import lab
import numpy as np

from minibn import backend, data, experiment, monitor, nn
from minibn.training import fit

# %%
split = data.digits()
labels = np.random.default_rng(7).integers(10, size=len(split.y_train))
results = []
settings = [(lr, decay) for lr in lab.size((0.05, 0.2), (0.2,)) for decay in lab.size((1e-3, 2e-3, 5e-3), (1e-2,))]
for lr, decay in settings:
    one = experiment.Experiment(model="vgg", affine=False, fixed=True, schedule="constant", lr=lr, weight_decay=decay, batch=32,
                                epochs=lab.size(60, 5))
    net = one.network()
    optimizers = one.optimizers(net)
    history = fit(net, optimizers, split.x_train, labels, epochs=one.epochs, batch_size=one.batch, rng=np.random.default_rng(1),
                  description=f"lr {lr}, weight decay {decay}")
    squares = []  # of the gradient on the unit sphere
    for x, y in data.batches(split.x_train, labels, one.batch, rng=np.random.default_rng(2)):
        loss = nn.CrossEntropy()
        net.zero_grad()
        loss(net(x), y)
        net.backward(loss.backward())
        weights = optimizers["invariant"].parameters
        squares.append(backend.norm([p.grad for p in weights]) ** 2 * backend.norm([p.data for p in weights]) ** 2)
    late = slice(-len(history) // 4, None)
    results.append({"angle": history["angle/invariant"][late].mean(), "norm": history["norm/invariant"][late].mean(),
                    "predicted angle": monitor.predicted_angular_update(lr, 0.9, decay),
                    "predicted norm": monitor.predicted_norm(lr, 0.9, decay, np.mean(squares)), "history": history})

# %%
figure, axes = lab.figure(1, 3, width=10)
for i, ((lr, decay), r) in enumerate(zip(settings, results, strict=True)):
    label, history = f"lr {lr:g}, weight decay {decay:g}", r["history"]
    axes[0].semilogy(np.convolve(history["angle/invariant"], np.ones(44) / 44, "valid"), color=f"C{i}", linewidth=1)
    axes[0].axhline(r["predicted angle"], color=f"C{i}", linestyle=":")
    axes[1].loglog(r["predicted angle"], r["angle"], "o", markersize=10, color=f"C{i}", label=label)
    axes[2].loglog(r["predicted norm"], r["norm"], "o", markersize=10, color=f"C{i}")
for axis, title in ((axes[1], "angle per step [rad]"), (axes[2], "norm |w|")):
    ends = np.array(axis.get_xlim())
    axis.plot(ends, ends, "k:", linewidth=1)
    axis.xaxis.set_minor_formatter("")
    axis.yaxis.set_minor_formatter("")
    axis.set_xticks(ticks := [r for r in (0.01, 0.02, 0.03, 5, 10, 20, 30) if ends[0] < r < ends[1]], map(str, ticks))
    axis.set_yticks(ticks, map(str, ticks))
    axis.set(xlabel="predicted", ylabel="measured", title=title)
axes[0].set(xlabel="step", title="angle per step [rad]\n(dotted: prediction)")
lab.legend(figure, 3)

# %%
angles = np.array([r["angle"] / r["predicted angle"] for r in results])
norms = np.array([r["norm"] / r["predicted norm"] for r in results])
lab.claim("angle per step and norm in equilibrium are as predicted, without a free parameter",
          f"measured / predicted: angle {angles.min():.2f} to {angles.max():.2f}, norm {norms.min():.2f} to {norms.max():.2f} "
          f"({len(results)} settings)", np.all(np.abs(angles - 1) < 0.25) and np.all(np.abs(norms - 1) < 0.25))
lab.finish("10_equilibrium", __doc__, figure)
