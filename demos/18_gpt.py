"""A small GPT by hand, backward passes included, trained by AdamW and by Muon, with and without weight decay. Not in the paper.

The network learns the Zen of Python, a text that comes with Python, letter by letter. It has norms
on q and k and at the end of each branch, so each matrix inside its blocks is scale-invariant alone.
`undecayed` removes the weight decay of these matrices; embedding, gains and head stay as they are.
The control has the same growing learning rate, but its gradients are not divided by P.
"""

# %%
import codecs
import contextlib
import io
import textwrap

import lab
import numpy as np

from minibn import invariance, models, nn, schedules
from minibn.equivalence import undecayed
from minibn.equivalence.any_optimizer import reframe
from minibn.optim import AdamStep, AdamW, Muon, MuonStep
from minibn.training import train_step

with contextlib.redirect_stdout(io.StringIO()):  # it prints itself
    import this

# %% The text as numbers, and batches of windows of it. The network predicts each letter from those before it.
text = codecs.decode(this.s, "rot13") + "\n\n"
letters = sorted(set(text))
tokens = np.array([letters.index(letter) for letter in text])
length, batch, steps = lab.size(40, 12), lab.size(16, 4), lab.size(300, 16)


def windows(rng):
    starts = rng.integers(len(tokens), size=(batch, 1))
    window = np.take(tokens, starts + np.arange(length + 1), mode="wrap")
    return window[:, :-1], window[:, 1:]


# %% Which weights: the matrices in the blocks.
def network():
    return models.gpt(len(letters), length=length, width=lab.size(48, 8), depth=2, heads=lab.size(4, 2), qk_norm=True,
                      mlp="relu2", norm_after=True, eps=0.0, rng=np.random.default_rng(0), dtype="float64")


found = invariance.symmetries(network())
chosen = [name for name in found.names if "block" in name and "norm" not in name]
assert all(found.is_scale_invariant([name]) for name in chosen)


# %% AdamW for all weights, or Muon for the matrices and AdamW for the rest. lr times weight decay is at most 0.01 per step.
def rates():
    return (step.lr for step in schedules.warmup(steps // 10, schedules.cosine(1.0, steps)))


def muon_steps():
    return (MuonStep(0.02 * rate, weight_decay=0.5) for rate in rates())


def adam_steps(weight_decay):
    return (AdamStep(0.005 * rate, beta2=0.95, weight_decay=weight_decay) for rate in rates())


def growing_lr_alone(schedule):
    """lr / P' without weight decay, for the control."""
    scale = 1.0
    for step in schedule:
        converted, scale = reframe(step, scale)
        yield converted


def train(kind, schedule, form):
    """(network, loss of each step, norm of the chosen weights at each step)."""
    net, rng, losses, norms = network(), np.random.default_rng(1), [], []
    parameters = dict(net.named_parameters())
    weights = [parameters.pop(name) for name in chosen]
    optimizer = kind(weights, growing_lr_alone(schedule) if form == "control" else schedule)
    optimizer = undecayed(optimizer) if form == "without" else optimizer
    rest = AdamW(parameters.values(), adam_steps(weight_decay=0.0))
    for _ in range(steps):
        x, y = windows(rng)
        losses.append(float(train_step(net, nn.CrossEntropy(), [optimizer, rest], x, y)[1]))
        norms.append(np.sqrt(sum(np.sum(p.data**2) for p in weights)))
    return net, np.array(losses), np.array(norms)


kinds = {"AdamW": (AdamW, lambda: adam_steps(2.0)), "Muon": (Muon, muon_steps)}
forms = ("with", "without", "control")
runs = {(name, form): train(kind, schedule(), form) for name, (kind, schedule) in kinds.items() for form in forms}


# %%
def write(net, start, count):
    """The most probable letter after `start`, and again, `count` times."""
    written = [letters.index(letter) for letter in start]
    for _ in range(count):
        logits = net(np.array([written[-length:]]))
        written.append(int(logits[0, -1].argmax()))
    return "".join(letters[i] for i in written)


written = {form: write(runs["Muon", form][0], "Beautiful", lab.size(400, 30)) for form in forms}
print("written by the network that Muon trained without weight decay:\n" + written["without"], "\n")

# %%
gaps = {key: np.maximum.accumulate(np.maximum(np.abs(run[1] - runs[key[0], "with"][1]), 1e-17)) for key, run in runs.items()}
figure, axes = lab.figure(2, 2, height=8.2, width=11)
looks = {"with": lab.WIDE, "without": {"linewidth": 1.5}, "control": {"linewidth": 1, "linestyle": "--"}}
labels = {"with": "with weight decay", "without": "without weight decay", "control": "growing lr alone (control)"}
colors = {"AdamW": ("C0", "C1", "C2"), "Muon": ("C3", "C5", "C4")}
for name in kinds:
    for form, color in zip(forms, colors[name], strict=True):
        _, losses, norms = runs[name, form]
        look = {**looks[form], "color": color, "label": f"{name}, {labels[form]}"}
        if form != "control":
            axes[0, 0].semilogy(losses, **look)
        axes[0, 1].semilogy(norms, **look)
        if form != "with":
            axes[1, 0].semilogy(gaps[name, form], **look)
axes[0, 0].set(xlabel="step", title="loss of the batch")
axes[0, 1].set(xlabel="step", title="norm of the converted matrices")
axes[1, 0].set(xlabel="step", title="largest gap so far between\nthe loss and that with decay")
axes[1, 1].set_axis_off()
shown = "\n".join(line for part in written["without"].splitlines() for line in textwrap.wrap(part, 42) or [""])
axes[1, 1].text(0, 1, "Written by the network that Muon trained\nwithout weight decay, after “Beautiful”:\n\n" + shown, va="top",
                family="monospace", fontsize=11)
lab.legend(figure, 3)

# %%
for name in kinds:
    growth = runs[name, "without"][2][-1] / runs[name, "with"][2][-1]
    lab.claim(f"{name}: weight decay removed from the matrices of a GPT, the same training",
              f"losses of {steps} steps within {gaps[name, 'without'][-1]:.0e}, matrices {growth:.3g} x as large; the control, "
              f"growing lr alone: {gaps[name, 'control'][-1]:.1g}", gaps[name, "without"][-1] < 1e-8 < gaps[name, "control"][-1])
lab.claim("and the networks write the same", f"{len(written['with'])} letters, beginning “{written['with'][:29]}”",
          written["with"] == written["without"])
lab.finish("18_gpt", __doc__, figure)
