"""What a training step asks of a GPU: launches, traffic, waits and memory, counted on the stand-in for CuPy in tests/cupy_double.

    python benchmarks/launches.py            about a minute; needs no GPU
    python benchmarks/launches.py --write    and renew the table in benchmarks/README.md
"""

import sys
from pathlib import Path

import bench
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from cupy_double import counting, in_place_of_cupy  # noqa: E402

from minibn import backend, models, nn, schedules  # noqa: E402
from minibn.training import convert, recorder  # noqa: E402
from minibn.training.evaluation import accuracy  # noqa: E402


def main():
    options = bench.flags(__doc__)
    size = {"depth": 8, "batch": 8} if options.quick else {"depth": 32, "batch": 128}
    phases, peak = count(**size)
    rows = [[name, *cells(counts)] for name, counts in phases.items()]
    bare = [counts for name, counts in phases.items() if name != MEASURED]
    rows += [["**a bare step**", *cells(*bare)], ["**a step of `fit`**", *cells(*phases.values())]]
    text = [bench.table(["", "launches", "traffic, GB", "waits"], rows), "",
            f"A PreResNet-{size['depth']} of width 16, batch {size['batch']}, 32 x 32 x 3, float32, SGD with momentum and weight "
            f"decay. At most {peak / 1e6:.0f} MB are alive at a time. Counted on a model of CuPy 14.2, not on a GPU. Launches do "
            "not depend on the batch; traffic counts every number that a launch reads or writes once."]
    bench.put("launches", "\n".join(text), options)


MEASURED = "what `fit` records"


def count(depth, batch):
    """({phase: `Counts`} of the second step, peak bytes)."""
    with in_place_of_cupy():
        rng = np.random.default_rng(0)
        net = models.preresnet(depth, rng=rng).to("cupy")
        groups = convert(net, schedules.constant(0.1, momentum=0.9, weight_decay=5e-4)).optimizers
        like, loss, watched = next(net.arrays()), nn.CrossEntropy(), recorder.watch(net, groups, {})
        x = backend.move(rng.standard_normal((batch, 32, 32, 3)).astype("float32"), like)
        y = backend.move(rng.integers(10, size=batch), like)
        for _ in range(2):  # the first makes what is made once
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
    return phases, max(counts.peak for counts in phases.values())


def cells(*counts):
    """Launches, GB and waits of several phases together."""
    return [f"{sum(sum(one.launches.values()) for one in counts):,}",
            f"{sum(sum(one.bytes.values()) for one in counts) / 1e9:.2f}",
            sum(sum(one.waits.values()) for one in counts)]


if __name__ == "__main__":
    main()
