"""Beyond float range: a million steps of an exponentially growing learning rate, in float32.

The plain schedule would leave the range of float32 within some ten thousand steps. From time to
time the converter multiplies the weights by a power of two (lr by its square, the velocity by its
inverse). This changes no other bit of training, so the schedule can go on without end.
"""

# %%
import math

import lab
import numpy as np
from tqdm import trange

from minibn import nn, schedules
from minibn.equivalence import remove_weight_decay
from minibn.optim import SGD

# %% Noise on a sphere: each gradient is random, orthogonal to w and as large as 1 / |w|, as of a scale-invariant loss.
steps, chunk = lab.size(1_000_000, 30_000), 1000
rng = np.random.default_rng(0)
parameter = nn.Parameter(rng.standard_normal(4).astype("float32"))
sgd = SGD([parameter], remove_weight_decay(schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)))
exponent, log_lr, log_norm, held = 0, [], [], []
for t in trange(steps, desc="steps"):
    if t % chunk == 0:
        noise = rng.standard_normal((chunk, 4)).astype("float32")
    w, xi = parameter.data, noise[t % chunk]
    square = w @ w
    parameter.grad = (xi - (xi @ w / square) * w) / np.sqrt(square)
    step = sgd.step()
    if step.rescale != 1:
        exponent += math.frexp(step.rescale)[1] - 1
    if t % 100 == 0:
        held.append(step.lr)
        log_lr.append(math.log10(step.lr) - 2 * exponent * math.log10(2))
        log_norm.append(math.log10(np.linalg.norm(parameter.data)) - exponent * math.log10(2))

# %%
figure, (left, right) = lab.figure(width=9.5)
at = np.arange(0, steps, 100) / 1000
left.plot(at, log_lr, label="learning rate")
left.plot(at, log_norm, label="|w|")
left.axhline(math.log10(np.finfo("float32").max), color="black", linestyle=":", label="largest float32")
left.set(xlabel="thousand steps", ylabel="log₁₀ of the value", title="The plain schedule:\nlearning rate and |w|")
lab.legend(figure, 3)
right.semilogy(at[:400], held[:400])
right.set(xlabel="thousand steps", ylabel="learning rate", title="What float32 holds\n(the first 40,000 steps)")

# %%
finite = bool(np.isfinite(parameter.data).all()) and parameter.data.dtype == np.float32
lab.claim("exponential schedules can run without end in float32",
          f"{steps:,} steps, the learning rate grown to 10^{log_lr[-1]:,.0f}; held between {min(held):.2g} and {max(held):.2g} "
          f"by powers of two, weights finite: {finite}", finite and log_lr[-1] > 100 and max(held) < 2.0**70)
lab.finish("09_beyond_float", __doc__, figure)
