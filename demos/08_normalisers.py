"""All four normalisers: Batch, Layer, Group and Instance normalisation all make the weights scale-invariant.

The theorem asks for scale invariance and for nothing else, so it holds with each of them, here with trained γ and β and a trained
last layer.
"""

# %%
import lab
import numpy as np

from minibn import experiment

# %%
settings = {"model": "vgg", "dtype": "float64", "epochs": lab.size(14, 2), "lr": 0.05}
runs = {}
for norm in ("batch", "layer", "group", "instance"):
    runs[norm] = [experiment.run(experiment.Experiment(norm=norm, convert=convert, **settings),
                                 description=f"{norm}, {'converted' if convert else 'weight decay'}") for convert in (False, True)]

# %%
figure, (left, right) = lab.figure(width=11)
gaps = {}
for i, (norm, (usual, converted)) in enumerate(runs.items()):
    gap = np.abs(usual.history["loss"] - converted.history["loss"])
    gaps[norm] = gap.max()
    epoch = np.arange(len(gap)) / experiment.Experiment(**settings).steps_per_epoch
    left.semilogy(epoch, usual.history["loss"], color=f"C{i}", linewidth=6, alpha=0.25)
    left.semilogy(epoch, converted.history["loss"], color=f"C{i}", linewidth=1, label=norm)
    right.semilogy(epoch, np.maximum.accumulate(np.maximum(gap, 1e-17)), color=f"C{i}", label=norm)
left.set(xlabel="epoch", title="training loss of the batch\n(pale: weight decay; thin: converted)")
right.set(xlabel="epoch", title="largest gap so far between\nthe losses of the two runs")
left.legend()

# %%
lab.claim("the equivalence holds with every normaliser", ", ".join(f"{norm} {gap:.0e}" for norm, gap in gaps.items())
          + f" (largest gap of the losses in {len(gap)} steps)", max(gaps.values()) < 1e-6)
lab.finish("08_normalisers", __doc__, figure)
