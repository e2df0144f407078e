"""A sweep: what counts is learning rate times weight decay.

`minibn sweep` trains a network for each pair in a grid of learning rates and weight decays. Each
run is a line of a file, so a sweep that was stopped can go on. In equilibrium the weights turn by
sqrt(2ηλ / (1+γ)) per step. So settings with the same product ηλ, which lie on one diagonal of the
map, train alike.
"""

# %%
import subprocess
import sys

import lab
import numpy as np

from minibn import sweep

# %%
rates, decays = lab.size(([0.025, 0.05, 0.1, 0.2, 0.4, 0.8], [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3]),
                         ([0.05, 0.2, 0.8], [1e-3, 4e-3, 16e-3]))
path = lab.flags.output / f"13_sweep{'-quick' if lab.flags.quick else ''}.jsonl"
command = ["sweep", "--model", "vgg", "--no-affine", "--fixed", "--schedule", "constant", "--batch", "32",
           "--epochs", str(lab.size(12, 2)), "--lr", *map(str, rates), "--weight-decay", *map(str, decays), "--output", str(path)]
command += ["--data", lab.flags.data] + (["--path", lab.images["path"]] if lab.images["path"] else [])
command += ["--no-checksum"] if lab.flags.no_checksum else []
print("minibn", *command, flush=True)
subprocess.run([sys.executable, "-m", "minibn", *command], check=True)
records = sweep.read(path)
accuracy = {(r["configuration"]["lr"], r["configuration"]["weight_decay"]): 100 * r["result"]["test_accuracy"] for r in records}
grid = np.array([[accuracy[lr, decay] for lr in rates] for decay in decays])

# %%
figure, axis = lab.figure(1, 1, width=8.5, height=6.4)
image = axis.imshow(grid, origin="lower", cmap="viridis")
for (i, j), value in np.ndenumerate(grid):
    axis.text(j, i, f"{value:.1f}", ha="center", va="center", color="black" if value > grid.mean() - 1 else "white")
axis.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates])
axis.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
axis.set(xlabel="learning rate", ylabel="weight decay", title="lr x weight decay is the same along each diagonal ╲")
axis.grid(visible=False)
figure.colorbar(image, label="test accuracy [%]")

# %%
diagonals = [np.diagonal(grid[::-1], k - len(rates) + 1) for k in range(2 * len(rates) - 1)]  # lr * weight decay is constant
within = np.sqrt(sum(len(d) * np.var(d) for d in diagonals) / grid.size)
lab.claim("settings with the same lr x weight decay train alike",
          f"standard deviation of the test accuracy: {within:.2f} % along diagonals, {grid.std():.2f} % over the whole map",
          within < 0.6 * grid.std())
lab.finish("13_sweep", __doc__, figure)
