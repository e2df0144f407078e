"""Does the cost of a training step grow no faster than its work? Batch, width, depth and threads, minibn and PyTorch.

    python benchmarks/scaling.py            about three minutes
    python benchmarks/scaling.py --write    and renew the table in benchmarks/README.md

A PreResNet on 32 x 32 x 3 images in float32; the work is that of its matrix products.
"""

import bench
import contenders
import numpy as np

from minibn import kernels, models

BASE = {"depth": 8, "width": 16, "batch": 128}
AXES = {"batch": [16, 32, 64, 128, 256, 512], "width": [8, 16, 32, 64], "depth": [8, 20, 32, 56]}


def main():
    options = bench.flags(__doc__)
    turns, axes = (5, AXES) if not options.quick else (1, {"batch": [4, 8], "width": [4, 8], "depth": [8, 14]})
    base = BASE if not options.quick else {"depth": 8, "width": 4, "batch": 4}
    rows = []
    for axis, values in axes.items():
        first = None
        for value in values:
            size = {**base, axis: value}
            seconds = bench.alternate({"minibn": contenders.minibn(**size), "PyTorch, NCHW": contenders.pytorch()(**size)}, turns)
            cost = seconds["minibn"] / work(size)  # seconds a GFLOP
            first = first or np.median(cost)
            rows.append([f"{axis} {value}", f"{work(size):.2f}", bench.spread(seconds["minibn"] * 1e3), bench.spread(1 / cost),
                         f"{np.median(cost) / first:.2f}", bench.spread(seconds["PyTorch, NCHW"] / seconds["minibn"], "{:.2f}")])
    header = ["", "GFLOP", "ms per step", "GFLOP/s", "cost of a GFLOP / first row's", "PyTorch, NCHW / minibn"]
    text = [bench.table(header, rows), "", f"Where not said otherwise: {', '.join(f'{k} {v}' for k, v in base.items())}.", "",
            bench.table(["threads", "ms per step", "times as fast as one"], thread_rows(base, turns))]
    bench.report("scaling", "\n".join(text), options)


def thread_rows(size, turns):
    """The same step on 1 to all cores, in turns."""
    counts = {str(n): n for n in range(1, kernels.cores() + 1)}
    seconds = bench.alternate({name: contenders.minibn(**size) for name in counts}, turns,
                              around={name: lambda n=n: kernels.threads(n) for name, n in counts.items()})
    return [[name, bench.spread(values * 1e3), bench.spread(seconds["1"] / values, "{:.2f}")] for name, values in seconds.items()]


def work(size):
    """GFLOP of a step's matrix products; the first layer's backward pass in its input counted as well."""
    net = models.preresnet(size["depth"], width=size["width"], rng=np.random.default_rng(0))
    shapes = contenders.products(net, contenders.images(2)[0])
    return sum(6 * m * k * n for m, k, n in shapes) / 2 * size["batch"] / 1e9


if __name__ == "__main__":
    main()
