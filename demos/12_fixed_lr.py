"""Section 4: a scale-invariant loss converges at any fixed learning rate, over six decades of it.

Without weight decay each gradient step makes the weights longer, and so the effective lr smaller, until it suits the loss. The
gradient then falls as T^-1/2 or faster.
"""

# %%
import lab
import matplotlib as mpl
import numpy as np

from minibn.paper.section4 import fixed_rate

# %%
rates = np.logspace(-2, 4, 7)
result = fixed_rate(rates, lab.size(100_000, 20_000), rng=np.random.default_rng(0))

# %%
figure, (left, right) = lab.figure(width=9.5, height=4.6)
colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(rates)))
for rate, gradient, norm, color in zip(rates, result.smallest_gradient, result.norm, colors, strict=True):
    left.loglog(result.steps, gradient, color=color, label=f"lr {rate:g}")
    right.loglog(result.steps, rate / norm**2, color=color)
left.loglog(result.steps, result.steps**-0.5, "k:", label="T^(-1/2)")
left.set(xlabel="step T", title="smallest gradient so far, on the unit sphere", ylim=(1e-5, 3))
left.legend(fontsize=10, loc="lower left")
right.set(xlabel="step T", title="effective learning rate lr / |w|²")

# %%
lab.claim("any fixed learning rate converges, at a rate of T^-1/2 or faster",
          f"slopes in the last decade, for lr from {rates[0]:g} to {rates[-1]:g}: {result.slopes.min():.2f} to "
          f"{result.slopes.max():.2f}", result.slopes.max() <= -0.45)
lab.finish("12_fixed_lr", __doc__, figure)
