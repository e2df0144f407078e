"""PyTorch: one line takes the weight decay out of a GPT's training script, with AdamW alone or with Muon and AdamW together.

The script is `gpt_torch_script.py`. It has pre-norm blocks, weights with and without decay, warm-up
and cosine set by hand, clipping by norm, two micro-batches per step, and validation. Embedding,
positions and all matrices that write into the residual stream are scale-invariant together. In the
second run, two optimizers share this set, and the line takes both optimizers in a list.
"""

# %%
import lab
import numpy as np

lab.need("torch", "PyTorch", "pip install torch")
import gpt_torch_script  # noqa: E402
import torch  # noqa: E402

# %% The control has no weight decay, and the same learning rate as before.
torch.set_num_threads(1)  # as fast as two, for so small a network
steps = lab.size(300, 10)
variants = {"the script": {}, "with the line": {"converted": True}, "weight decay left out": {"weight_decay": 0.0}}
names = {"AdamW": False, "Muon and AdamW": True}
runs = {(name, variant): gpt_torch_script.train(steps, muon=muon, **options, **lab.size({}, {"width": 16, "batch": 4}))
        for name, muon in names.items() for variant, options in variants.items()}
print(runs["AdamW", "with the line"][1], "\n")  # what may be converted, measured

# %%
gaps = {}
for (name, variant), (log, _) in runs.items():
    usual, _ = runs[name, "the script"]
    gaps[name, variant] = np.maximum.accumulate(np.maximum(np.abs(log["loss"] - usual["loss"]), 1e-17))
figure, axes = lab.figure(1, 3, width=11.5, height=4.6)
looks = {"the script": lab.WIDE, "with the line": {"linewidth": 1.2},
         "weight decay left out": {"linewidth": 1, "linestyle": "--"}}
colors = {"AdamW": ("C0", "C1", "C2"), "Muon and AdamW": ("C3", "C5", "C4")}
for name in names:
    for (variant, look), color in zip(looks.items(), colors[name], strict=True):
        log, style = runs[name, variant][0], {**look, "color": color, "label": f"{name}: {variant}"}
        if variant != "weight decay left out":
            axes[0].plot(log["loss"], **style)
        axes[1].semilogy(log["norm"], **style)
        if variant != "the script":
            axes[2].semilogy(gaps[name, variant], **style)
titles = ("loss of the batch", "norm of the embedding", "largest gap so far between\nthe loss and the script's")
for axis, title in zip(axes, titles, strict=True):
    axis.set(xlabel="step", title=title)
lab.legend(figure, 3)

# %%
for name in names:
    usual, line, control = (runs[name, variant][0] for variant in variants)
    validation = np.abs(usual["validation"] - line["validation"]).max()
    lab.claim(f"{name}: the script with the one line is the same training",
              f"losses of {steps} steps within {gaps[name, 'with the line'][-1]:.0e}, validation losses within {validation:.0e}, "
              f"embedding {line['norm'][-1] / usual['norm'][-1]:.3g} x as large; with weight decay left out and nothing in its "
              f"place {gaps[name, 'weight decay left out'][-1]:.1g}",
              max(gaps[name, "with the line"][-1], validation) < 1e-8 < gaps[name, "weight decay left out"][-1])
lab.finish("19_pytorch_gpt", __doc__, figure)
