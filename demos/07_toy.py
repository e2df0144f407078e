"""Section 3: weight decay and BatchNorm together need not converge, where each alone does.

A linear classifier, its data from a Gaussian, logistic loss, one fresh example a step. "Converges" needs care: BatchNorm alone
gets ever better at a constant lr. Weight decay alone has a noise floor at a constant lr, but goes on to zero with a decaying
lr or by averaging its weights. Both together stay at a floor, far above what Theorem 3.1 guarantees, and leave it only when lr
times weight decay itself goes to zero.
"""

# %%
import lab
import numpy as np

from minibn import schedules
from minibn.optim import Step
from minibn.paper import section3 as toy

lr, weight_decay, seeds, dim = 0.1, 1e-2, lab.size(100, 20), 20
steps = lab.size(60_000, 10_000)
every = steps // 500


def decaying():
    """lr / (1 + t / 1000), with the same weight decay."""
    return (Step(lr / (1 + t / 1000), weight_decay=weight_decay) for t in range(steps))


# %%
cases = {  # label: (schedule, normalised)
    "BN": (schedules.constant(lr), True),
    "weight decay": (schedules.constant(lr, weight_decay=weight_decay), False),
    "weight decay, lr decays": (decaying(), False),
    "BN and weight decay": (schedules.constant(lr, weight_decay=weight_decay), True),
    "BN and weight decay, lr decays": (decaying(), True),
}
runs = {label: toy.simulate(schedule, steps, normalised=normalised, seeds=seeds, dim=dim, every=every,
                            rng=np.random.default_rng(0)) for label, (schedule, normalised) in cases.items()}

# %% Theorem 3.1 for the run with both: does the error exceed epsilon / pi within the window, from many starts?
epsilon, delta = 0.7 * np.sqrt(lr * weight_decay / 2), 0.1
both = toy.simulate(schedules.constant(lr, weight_decay=weight_decay), 6000, normalised=True, seeds=seeds, dim=dim,
                    rng=np.random.default_rng(1))
exceeded, windows = [], []
for start in range(0, 3000, 250):
    windows.append(toy.window(both.norm[:, start], lr, weight_decay, epsilon, dim=dim, batch=1, delta=delta))
    exceeded += [both.error[i, start : start + int(n) + 1].max() > epsilon / np.pi for i, n in enumerate(windows[-1])]

# %%
figure, (left, right) = lab.figure(width=10, height=5)
for label, run in runs.items():
    left.loglog(run.steps, np.median(run.error, axis=0), label=label)
left.axhline(epsilon / np.pi, color="black", linestyle=":", label="Theorem 3.1: exceeded again and again")
left.set(xlabel="step", ylabel="part misclassified (median)", title=f"Error, {seeds} seeds", ylim=(1e-4, 1.0))
left.legend(fontsize=10, loc="lower left")
for label in ("BN", "BN and weight decay"):
    run = runs[label]
    low, middle, high = np.quantile(180 * run.error, [0.1, 0.5, 0.9], axis=0)
    color = f"C{list(runs).index(label)}"
    right.semilogx(run.steps, middle, color=color, label=label)
    right.fill_between(run.steps, low, high, color=color, alpha=0.25, linewidth=0)
right.set(xlabel="step", ylabel="angle to the best weights [degrees]", title="Median, and 80 % of the seeds", ylim=(0, 45))
right.legend()

# %%
early, late = 500 // every + 5, slice(-100, None)
error = {label: np.median(run.error[:, late]) for label, run in runs.items()}
start = {label: np.median(run.error[:, 2 * early : 3 * early]) for label, run in runs.items()}
averaged = {label: np.median(run.averaged_error[:, -1]) for label, run in runs.items()}
lab.claim("BN alone goes on falling at a constant lr, both together stay at a floor",
          f"median error after {steps:,} steps: BN {error['BN']:.3f}, both {error['BN and weight decay']:.3f}",
          error["BN and weight decay"] > 2 * error["BN"] and error["BN"] < 0.7 * start["BN"])
lab.claim("weight decay alone has a floor at a constant lr, which a decaying lr or averaging removes",
          f"{error['weight decay']:.3f}; with decaying lr {error['weight decay, lr decays']:.4f}, averaged "
          f"{averaged['weight decay']:.4f}",
          max(error["weight decay, lr decays"], averaged["weight decay"]) < 0.5 * error["weight decay"])
lab.claim("both together converge only if lr times weight decay goes to zero",
          f"with decaying lr {error['BN and weight decay, lr decays']:.4f}, at a constant one "
          f"{error['BN and weight decay']:.3f}",
          error["BN and weight decay, lr decays"] < 0.6 * error["BN and weight decay"])
lab.claim(f"Theorem 3.1: from any step, within its window, the error exceeds ε/π = {epsilon / np.pi:.4f} with probability "
          f"{1 - delta:.0%}", f"in {np.mean(exceeded):.1%} of {len(exceeded)} windows of about {np.mean(windows):.0f} steps; the "
          f"floor is {error['BN and weight decay'] / (epsilon / np.pi):.0f} times higher than ε/π",
          np.mean(exceeded) >= 1 - delta)
lab.finish("07_toy", __doc__, figure)
