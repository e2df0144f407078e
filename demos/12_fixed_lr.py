"""Section 4: a scale-invariant loss converges at any fixed learning rate, over thirteen decades of it.

Without weight decay, each gradient step makes the weights longer and so the effective lr smaller,
until it suits the loss. The growth of the weights is bounded. This also bounds the smallest
gradient so far, at every step T and learning rate, by a formula that falls as T^-1/2 (see
minibn/paper/section4.py). In the control, the weights are brought back to length 1 after each step.
Then a learning rate that is too large for the loss stays too large, and the bound is exceeded.
"""

# %%
import lab
import numpy as np

from minibn.paper.section4 import GRADIENT, fixed_rate

# %%
rates, steps, seeds = np.logspace(-6, 7, 14), lab.size(20_000, 3_000), range(lab.size(4, 2))
results = [fixed_rate(rates, steps, rng=np.random.default_rng(seed)) for seed in seeds]
controls = [fixed_rate(rates, steps, grow=False, rng=np.random.default_rng(seed)) for seed in seeds]


def worst(result):
    """The largest ratio of gradient and bound, at any T, for each learning rate."""
    return np.max(result.smallest_gradient / result.bound, axis=1)


# %%
figure, (left, right) = lab.figure(width=11, height=5.4)
for color, i in enumerate((4, 6, 7, 8)):
    left.loglog(results[0].steps, results[0].smallest_gradient[i], color=f"C{color}", label=f"lr {rates[i]:g}")
    left.loglog(results[0].steps, results[0].bound[i], color=f"C{color}", linestyle=":")
left.plot([], [], "k:", label="the bound for each")
left.loglog(controls[0].steps, controls[0].smallest_gradient[7], color="black", linestyle="--",
            label=f"lr {rates[7]:g}, length kept at 1")
left.set(xlabel="step T", title="smallest gradient up to step T\n(on the unit sphere, seed 0)", ylim=(1e-5, 30))
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
for runs, marker, color, label in ((results, "o", "C0", "weights may grow"), (controls, "x", "black", "length kept at 1")):
    ratios = np.array([worst(result) for result in runs])
    labels = [f"{label} ({len(seeds)} seeds)", *[None] * (len(seeds) - 1)]
    right.loglog(rates, ratios.T, marker, color=color, alpha=0.7, label=labels)
right.axhline(1, color="C1", label="the bound")
right.set(xlabel="learning rate", title="gradient / bound\n(the largest of all steps T)")
right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)

# %%
ratio = np.array([worst(result) for result in results])
sharp = results[0].bound[:, -1] < GRADIENT  # at the others the bound says nothing yet: no gradient is larger than that
control = np.array([worst(result) for result in controls]).max(axis=1)
lab.claim("at any fixed learning rate the smallest gradient stays below the bound, at every step",
          f"gradient / bound at most {ratio.max():.2f} for {len(rates)} rates from {rates[0]:g} to {rates[-1]:g}, {len(seeds)} "
          f"seeds and {steps:,} steps (the bound is below every possible gradient for {sharp.sum()} of the rates by then)",
          ratio.max() < 1)
lab.claim("it is the growth of the weights that does it: where their length is kept, the bound is exceeded",
          f"by a factor of {control.min():.1f} to {control.max():.1f}, the largest over the rates, in {len(seeds)} seeds",
          control.min() > 1)
lab.finish("12_fixed_lr", __doc__, figure)
