"""Section 3: weight decay and BatchNorm together need not converge, where each alone does.

A linear classifier learns from Gaussian data with the logistic loss, one fresh example per step.
"Converges" can mean several things, so the demo shows five statements, each with the runs that it
is compared to:

- BatchNorm alone gets ever better at a constant lr. Both together stay at a floor.
- Weight decay alone also has a floor at a constant lr, because of the noise of single examples. The
  floor disappears with a decaying lr.
- Both together get better only as lr times weight decay goes to zero, and more slowly.
- All of this holds for the weights themselves. Their average over all steps is near the best
  weights in every case.
- Theorem 3.1: with both, a run leaves even the best weights within a window of steps. BatchNorm
  alone, the control, never does. (Weight decay alone also leaves them at a constant lr, because of
  the noise. So this test distinguishes BatchNorm with weight decay from BatchNorm without, and
  nothing else.)
"""

# %%
import lab
import numpy as np

from minibn import schedules
from minibn.optim import Step
from minibn.paper import section3 as toy

lr, weight_decay, seeds, dim = 0.1, 1e-2, lab.size(100, 10), 20
steps = lab.size(60_000, 6_000)
every = steps // 500


def decaying():
    """lr / (1 + t / 1000), with the same weight decay."""
    return (Step(lr / (1 + t / 1000), weight_decay=weight_decay) for t in range(steps))


# %% From random weights.
cases = {  # label: (schedule, normalised)
    "BN": (schedules.constant(lr), True),
    "weight decay": (schedules.constant(lr, weight_decay=weight_decay), False),
    "weight decay, lr decays": (decaying(), False),
    "both": (schedules.constant(lr, weight_decay=weight_decay), True),
    "both, lr decays": (decaying(), True),
}
runs = {label: toy.simulate(schedule, steps, normalised=normalised, seeds=seeds, dim=dim, every=every,
                            rng=np.random.default_rng(0)) for label, (schedule, normalised) in cases.items()}

# %% Theorem 3.1: from the best weights, long ones. After how many steps does the error first exceed epsilon / pi?
epsilon, delta, lengths, walks = 0.7 * np.sqrt(lr * weight_decay / 2), 0.1, lab.size((100, 1000), (100,)), lab.size(50, 10)
windows = {R: int(np.ceil(toy.window(R, lr, weight_decay, epsilon, dim=dim, batch=1, delta=delta))) for R in lengths}
first = {}  # {(label, R): first passage of each seed}
for label in ("BN", "weight decay", "both"):
    decay = 0.0 if label == "BN" else weight_decay
    for R, window in windows.items():
        run = toy.simulate(schedules.constant(lr, weight_decay=decay), window, normalised=label != "weight decay", seeds=walks,
                           dim=dim, start=R * np.eye(dim)[0], rng=np.random.default_rng(1))
        first[label, R] = toy.first_passage(run, epsilon / np.pi)
crossed = {key: np.mean(steps_taken <= windows[key[1]]) for key, steps_taken in first.items()}

# %%
figure, (left, right) = lab.figure(width=11, height=5.6)
styles = {"BN": ("C0", "-"), "weight decay": ("C1", "-"), "weight decay, lr decays": ("C1", "--"), "both": ("C2", "-"),
          "both, lr decays": ("C2", "--")}
for label, run in runs.items():
    color, style = styles[label]
    left.loglog(run.steps, np.median(run.error, axis=0), color=color, linestyle=style, label=label)
left.axhline(epsilon / np.pi, color="black", linestyle=":", label="ε/π of Theorem 3.1")
left.set(xlabel="step", ylabel="part misclassified (median)", title=f"From random weights ({seeds} seeds)", ylim=(1e-3, 1))
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
for label in ("BN", "weight decay", "both"):
    for R, style in zip(lengths, ("-", "--"), strict=False):
        passed = np.sort(first[label, R])
        x = np.append(passed[np.isfinite(passed)], windows[R])
        y = np.append(np.arange(1, len(x)) / walks, crossed[label, R])
        right.step(np.insert(x, 0, 0), np.insert(y, 0, 0), where="post", color=styles[label][0], linestyle=style,
                   label=f"{label}, R = {R}")
        if label == "BN":
            right.axvline(windows[R], color="black", linestyle=style, linewidth=1, alpha=0.6)
right.set(xlabel="step (vertical lines: the theorem's windows)", ylabel="part of the seeds", ylim=(-0.03, 1.03), xlim=(0, None),
          title=f"Error exceeded ε/π, from w = R e₁ ({walks} seeds)")
right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)

# %%
early, late = 500 // every + 5, slice(-100, None)
error = {label: np.median(run.error[:, late]) for label, run in runs.items()}
start = {label: np.median(run.error[:, 2 * early : 3 * early]) for label, run in runs.items()}
averaged = {label: np.median(run.averaged_error[:, -1]) for label, run in runs.items()}
lab.claim("BN alone goes on falling at a constant lr, both together stay at a floor",
          f"median error after {steps:,} steps: BN {error['BN']:.3f}, both {error['both']:.3f}",
          error["both"] > 2 * error["BN"] and error["BN"] < 0.7 * start["BN"] and error["both"] > 0.9 * start["both"])
lab.claim("weight decay alone has a floor at a constant lr, which a decaying lr removes",
          f"{error['weight decay']:.3f}; with decaying lr {error['weight decay, lr decays']:.4f}",
          error["weight decay, lr decays"] < 0.5 * error["weight decay"])
lab.claim("both together get better only as lr times weight decay goes to zero, and more slowly",
          f"with decaying lr {error['both, lr decays']:.4f}, at a constant one {error['both']:.3f}",
          error["weight decay, lr decays"] < error["both, lr decays"] < 0.6 * error["both"])
lab.claim("the floors are those of the weights: their average over all steps is near the best ones in either case",
          f"error of the average: weight decay {averaged['weight decay']:.4f}, both {averaged['both']:.4f}",
          all(averaged[label] < 0.5 * error[label] for label in ("weight decay", "both")))


def listed(label):
    return " and ".join(f"{crossed[label, R]:.0%}" for R in lengths)


medians = " and ".join(f"{np.median(first['both', R]):,.0f}" for R in lengths)
lab.claim(f"Theorem 3.1: with both, the error leaves the best weights, w = R e₁: within its window it exceeds ε/π = "
          f"{epsilon / np.pi:.4f} with probability of at least {1 - delta:.0%}; with BN alone it does not",
          f"R = {' and '.join(map(str, lengths))}: in {listed('both')} of {walks} seeds within "
          f"{' and '.join(f'{n:,}' for n in windows.values())} steps (median {medians}); BN alone {listed('BN')}. (Weight decay "
          f"alone {listed('weight decay')}: the noise of a constant lr is enough for that)",
          all(crossed["both", R] >= 1 - delta and crossed["BN", R] == 0 for R in lengths))
lab.finish("07_toy", __doc__, figure)
