"""Architectures: which weights may be rescaled without changing the network, found from its layers.

The paper's appendix C asks whether a network's output stays as it is when all its weights are
scaled together. `symmetries` finds every rescaling that does not change the output. A measurement
on the network itself confirms the answer.
"""

# %%
import lab
import numpy as np
from matplotlib.colors import ListedColormap

from minibn import data, invariance, models, nn
from minibn.experiment import MODELS, NORMS

# %%
digits = data.digits("float64")


def plain_shortcut(**options):
    """A PreResNet block that takes its shortcut before the shared norm and ReLU, as some implementations do."""
    norm, rng, dtype = options["norm"], options["rng"], options["dtype"]
    affine = {"affine": options["affine"], "eps": 0.0, "dtype": dtype}

    def conv(inside, outside, size):
        return nn.Conv2d(inside, outside, size, padding=size // 2, rng=rng, dtype=dtype)

    branch = nn.Sequential(norm1=norm(8, **affine), relu=nn.ReLU(), conv1=conv(8, 16, 3), norm2=norm(16, **affine),
                           conv2=conv(16, 16, 3))
    return nn.Sequential(stem=conv(1, 8, 3), block=nn.Residual(branch, conv(8, 16, 1)), norm=norm(16, **affine), relu=nn.ReLU(),
                         pool=nn.GlobalAvgPool(), head=nn.Linear(16, 10, rng=rng, dtype=dtype))


def no_norm_at_the_end(**options):
    """A VGG whose last conv no normalisation follows."""
    net = models.vgg((8, 16), in_channels=1, **options)
    extra = nn.Conv2d(16, 16, 3, padding=1, rng=options["rng"], dtype=options["dtype"])
    return nn.Sequential(body=nn.Sequential(*[module for name, module in net.children() if name not in ("pool", "head")]),
                         extra=extra, pool=nn.GlobalAvgPool(), head=nn.Linear(16, 10, rng=options["rng"], dtype=options["dtype"]))


def build(name, norm, affine):
    options = {"norm": NORMS[norm], "affine": affine, "eps": 0.0, "rng": np.random.default_rng(0), "dtype": "float64"}
    if name in MODELS:
        return MODELS[name](**options, **({"in_features": 64} if name == "mlp" else {"in_channels": 1}))
    return {"early shortcut": plain_shortcut, "conv after the last norm": no_norm_at_the_end}[name](**options)


# %% For each network: are its hidden weights scale-invariant together? By algebra, and measured.
names = [*[name for name in MODELS if name != lab.size("", "resnet")], "early shortcut", "conv after the last norm"]
columns = [(norm, affine) for norm in NORMS if norm != "instance" for affine in (True, False)]
answers, agree, table = np.zeros((len(names), len(columns))), 0, {}
for i, name in enumerate(names):
    for j, (norm, affine) in enumerate(columns):
        net = build(name, norm, affine)
        found = invariance.symmetries(net)
        layers = [n for n, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        weights = [f"{n}.weight" for n in layers[:-1]]  # of all but the last layer
        answers[i, j] = found.is_scale_invariant(weights)
        table[i, j] = f"{len(found.groups)} groups\n{len(found.basis)} symmetries"
        f = invariance.loss_function(net, digits.x_train[:16], digits.y_train[:16])
        measured = invariance.probe(lambda p, f=f: f(p)[0], {n: p.data for n, p in net.named_parameters()}, weights, scales=[3.0])
        agree += bool(answers[i, j]) == measured.is_scale_invariant()

print(invariance.symmetries(build("vgg", "batch", True)), "\n")
early = invariance.symmetries(build("early shortcut", "batch", True))
print(early.explain("stem.weight"), "\n")

# %%
figure, axis = lab.figure(1, 1, width=9.5, height=6.4)
axis.imshow(answers, cmap=ListedColormap(["#f6c9a4", "#b5d8ee"]), vmin=0, vmax=1, aspect="auto")
for (i, j), text in table.items():
    axis.text(j, i, f"{'yes' if answers[i, j] else 'no'}\n{text}", ha="center", va="center", fontsize=11)
axis.set(title="Scale-invariant with all hidden weights together? (blue: yes, orange: no)")
axis.set_xticks(range(len(columns)), [f"{norm}\n{'γ, β' if affine else 'no γ, β'}" for norm, affine in columns])
axis.set_yticks(range(len(names)), [name.replace(" the last", "\nthe last") for name in names])
axis.grid(visible=False)

# %%
usual = answers[: len(names) - 2]
lab.claim("the four models are scale-invariant; a shortcut before the norm, or a conv after the last norm, breaks it",
          f"algebra and measurement agree on {agree} of {answers.size} networks; all {usual.size} usual ones are invariant, the "
          f"{2 * len(columns)} broken ones are not", agree == answers.size and usual.all() and not answers[-2:].any())
lab.finish("11_architectures", __doc__, figure)
