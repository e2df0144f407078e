"""What a training step asks of a GPU: launches, traffic, waits and memory, counted on the stand-in for CuPy in tests/cupy_double.

    python benchmarks/launches.py            about half a minute; needs no GPU
    python benchmarks/launches.py --write    and renew the table in benchmarks/README.md
"""

import sys
from pathlib import Path
from typing import NamedTuple

import bench
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from cupy_double import counting, in_place_of_cupy  # noqa: E402

from minibn import backend, models, nn, schedules  # noqa: E402
from minibn.optim import SGD  # noqa: E402
from minibn.training import recorder  # noqa: E402
from minibn.training.evaluation import accuracy  # noqa: E402

MEASURED = "what `fit` records"
FULL = {"depth": 32, "batch": 128}


def main():
    options = bench.flags(__doc__)
    size = {"depth": 8, "batch": 8} if options.quick else FULL
    phases = count(**size)
    rows = [[name, *cells(cost(counts))] for name, counts in phases.items()]
    rows += [[f"**{name}**", *cells(whole)] for name, whole in steps(phases).items()]
    text = [bench.table(["", "launches", "traffic, GB", "waits", "peak memory, MB"], rows), "",
            f"A PreResNet-{size['depth']} of width 16, batch {size['batch']}, 32 x 32 x 3, float32, SGD with momentum and weight "
            "decay. Counted on a model of CuPy 14.2, not on a GPU. Launches do not depend on the batch. Traffic counts every "
            "number that a launch reads or writes once. Memory is what is alive at a time."]
    bench.put("launches", "\n".join(text), options)


class Cost(NamedTuple):
    """What one step, or a part of it, asks of a GPU."""

    launches: int
    bytes: int
    waits: int
    peak: int  # bytes alive at a time


def cost(*counts):
    """`Cost` of several phases together."""
    launches, moved, waits = (sum(sum(getattr(one, kind).values()) for one in counts) for kind in ("launches", "bytes", "waits"))
    return Cost(launches, moved, waits, max(one.peak for one in counts))


def steps(phases):
    """{name of a kind of step: its `Cost`}."""
    return {"a bare step": cost(*(counts for name, counts in phases.items() if name != MEASURED)),
            "a step of `fit`": cost(*phases.values())}


def scaled(depth, batch, small=(4, 8)):
    """`steps` at a large batch, computed from those of two small ones.

    Launches and waits are the same at any batch. Traffic is a constant (weights) plus a part in
    proportion to the batch (activations), so two batches give it exactly. So is the peak of the two
    passes, but for rounding to blocks of 512 bytes; at the large batch it is the peak of the whole
    step.
    """
    found = [count(depth, one) for one in small]
    costs = [steps(phases) for phases in found]
    passes = [max(phases[name].peak for name in ("forward and loss", "backward")) for phases in found]

    def line(values):
        (a, b), (x, y) = small, values
        return x + (y - x) * (batch - a) // (b - a)

    assert [c.launches for c in costs[0].values()] == [c.launches for c in costs[1].values()]
    return {name: Cost(one.launches, line((one.bytes, other.bytes)), one.waits, line(passes))
            for (name, one), other in zip(costs[0].items(), costs[1].values(), strict=True)}


def count(depth, batch):
    """{phase: `Counts`} of the second step: the first makes what is made once."""
    with in_place_of_cupy():
        rng = np.random.default_rng(0)
        net = models.preresnet(depth, rng=rng).to("cupy")
        parts = {"weights": [p for p in net.parameters() if p.data.ndim > 1],
                 "norms": [p for p in net.parameters() if p.data.ndim < 2]}
        usual = {"momentum": 0.9, "weight_decay": 5e-4}
        groups = {name: SGD(parameters, schedules.constant(0.1, **usual)) for name, parameters in parts.items()}
        like, loss, watched = next(net.arrays()), nn.CrossEntropy(), recorder.watch(net, groups, {})
        x = backend.move(rng.standard_normal((batch, 32, 32, 3)).astype("float32"), like)
        y = backend.move(rng.integers(10, size=batch), like)
        for _ in range(2):
            phases, before, found = {}, recorder.weights(watched), {}

            def forward(found=found):
                found["outputs"] = net(x)
                found["loss"] = loss(found["outputs"], y)

            def update():
                for optimizer in groups.values():
                    optimizer.step()

            def zero():
                for optimizer in groups.values():
                    optimizer.zero_grad()

            def measured(found=found, before=before):
                return accuracy(found["outputs"], y), recorder.measure(watched, before)

            for name, phase in {"forward and loss": forward, "gradients set to zero": zero,
                                "backward": lambda: net.backward(loss.backward()), "SGD": update, MEASURED: measured}.items():
                with counting() as phases[name]:
                    phase()
    return phases


def cells(whole):
    """A `Cost` as cells of a table."""
    return [f"{whole.launches:,}", f"{whole.bytes / 1e9:.2f}", whole.waits, f"{whole.peak / 1e6:.0f}"]


if __name__ == "__main__":
    main()
