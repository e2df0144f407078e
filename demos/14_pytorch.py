"""PyTorch: one line in a training script takes the weight decay out of a ResNet's convolutions, on one process or under DDP.

The script is `torch_script.py`. It trains a ResNet by SGD with Nesterov momentum or by AdamW, with
warm-up and cosine from torch's own schedulers, clips gradients by their norm, and validates in each
epoch. `report` measures which weights are scale-invariant, and `remove_weight_decay` converts the
optimizer through its hooks. Nothing else in the script changes.
"""

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lab
import numpy as np

lab.need("torch", "PyTorch", "pip install torch")
import torch  # noqa: E402
import torch_script  # noqa: E402

# %%
torch.set_num_threads(1)  # as fast as two, for so small a network
epochs = lab.size(20, 1)
converted, converted_eps = (torch_script.train(True, epochs, eps) for eps in (1e-30, 1e-5))
usual, usual_eps = (torch_script.train(False, epochs, eps, found=run[2])
                    for eps, run in ((1e-30, converted), (1e-5, converted_eps)))
adamw, converted_adamw = (torch_script.train(line, epochs, 1e-30, adamw=True, found=converted[2]) for line in (False, True))

print(converted[2], "\n")  # what may be converted, measured


# %%
def under_ddp(processes=2):
    """The same script in two processes, of which this is rank 0, with half of each batch each; what both have saved."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, torch_script.__file__, f"{folder}/run", str(epochs)]
        others = [subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes)})
                  for rank in range(1, processes)]
        try:
            torch_script.run_rank(f"{folder}/run", 0, processes, epochs)
            for other in others:
                other.wait(timeout=1800)
        finally:
            for other in others:
                other.kill()
        files = sorted(Path(folder).glob("run-*.npz"))
        if len(files) < processes:
            raise SystemExit("a process of DDP failed: see above")
        return [dict(np.load(file)) for file in files]


ranks = under_ddp()

# %% Evaluation, with the running averages from training.
*_, x_test, y_test = torch_script.images()
correct = []
for _, model, _ in (usual, converted):
    model.eval()
    with torch.no_grad():
        correct.append((model(x_test).argmax(1) == y_test).numpy())

# %%
gaps = {"one process": (usual[0]["loss"], converted[0]["loss"]), "two processes, DDP": (ranks[0]["usual"], ranks[0]["converted"]),
        "AdamW": (adamw[0]["loss"], converted_adamw[0]["loss"]), "eps = 1e-5": (usual_eps[0]["loss"], converted_eps[0]["loss"])}
gaps = {name: np.maximum.accumulate(np.maximum(np.abs(a - b), 1e-17)) for name, (a, b) in gaps.items()}
epoch = np.arange(len(usual[0]["loss"])) * epochs / len(usual[0]["loss"])
figure, (left, middle, right) = lab.figure(1, 3, width=11, height=4.6)
left.semilogy(epoch, usual[0]["loss"], label="the script", **lab.WIDE)
left.semilogy(epoch, converted[0]["loss"], linewidth=1.5, label="with the line")
left.set(xlabel="epoch", title="loss of the batch")
for column, text in ("norm", "norm |w|"), ("effective_lr", "effective lr"):
    middle.semilogy(epoch, usual[0][column], color="C0", **lab.WIDE)
    middle.semilogy(epoch, converted[0][column], color="C1", linewidth=1)
    middle.annotate(text, (epochs / 2, converted[0][column][len(epoch) // 2]), (0, 9), textcoords="offset points", ha="center")
middle.set(xlabel="epoch", title="first convolution", ylim=(1e-6, 100))
for i, (name, gap) in enumerate(gaps.items(), 2):
    right.semilogy(epoch, gap, color=f"C{i}", linestyle="--" if name == "AdamW" else "-", label=f"gap: {name}")
right.set(xlabel="epoch", title="largest gap so far between\nthe losses of the two runs")
lab.legend(figure, 3)

# %%
growth = converted[0]["norm"][-1] / usual[0]["norm"][-1]
lab.claim("a PyTorch script with the one line trains the same ResNet without weight decay",
          f"losses of {len(epoch)} steps within {gaps['one process'][-1]:.0e}, first convolution {growth:.2f} x as large; "
          f"test accuracy {correct[0].mean():.1%} and {correct[1].mean():.1%}",
          gaps["one process"][-1] < 1e-8 and np.array_equal(*correct))
validation = np.abs(usual[0]["validation"] - converted[0]["validation"]).max()
lab.claim("validation in each epoch needs nothing more, nor does clipping by norm",
          f"validation losses of {epochs} epochs within {validation:.0e}", validation < 1e-8)
lab.claim("AdamW is converted in the same way", f"losses within {gaps['AdamW'][-1]:.0e}, first convolution "
          f"{converted_adamw[0]['norm'][-1] / adamw[0]['norm'][-1]:.3g} x as large", gaps["AdamW"][-1] < 1e-8)
lab.claim("DDP needs nothing more", f"losses of two gloo processes within {gaps['two processes, DDP'][-1]:.0e}",
          gaps["two processes, DDP"][-1] < 1e-8 and np.array_equal(ranks[0]["weight"], ranks[1]["weight"]))
lab.claim("torch's eps = 1e-5 makes it approximate",
          f"gaps of up to {max(usual_eps[2].gaps):.0e} at the start; losses within {gaps['eps = 1e-5'][-1]:.0e}",
          1e-8 < gaps["eps = 1e-5"][-1] < 1)
lab.finish("14_pytorch", __doc__, figure)
