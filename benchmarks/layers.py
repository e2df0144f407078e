"""Each layer's forward and backward pass against PyTorch's, in float32, beside the machine's own peaks.

    python benchmarks/layers.py            about two minutes
    python benchmarks/layers.py --write    and renew the table in benchmarks/README.md

Convolutions and Linear are given in GFLOP/s of their matrix products, to be held against one large
matrix product; the others in GB/s, counting each input and output of a pass once, to be held
against a copy of an array of that size.
"""

import bench
import numpy as np

from minibn import nn

RNG = np.random.default_rng(0)


def conv(inside, outside, kernel=3, stride=1):
    """(minibn's, PyTorch's)."""
    from torch import nn as tnn

    return (nn.Conv2d(inside, outside, kernel, stride, kernel // 2, rng=RNG),
            tnn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False))


def chain(ours, theirs):
    """Two layers as one."""
    from torch import nn as tnn

    return nn.Sequential(*ours), tnn.Sequential(*theirs)


def cases(batch):
    """(name, (minibn's module, PyTorch's), shape of the input)."""
    from torch import nn as tnn

    sizes = [(16, 32), (32, 16), (64, 8)]
    for channels, size in sizes:
        yield f"Conv2d 3 x 3, {channels} channels", conv(channels, channels), (batch, size, size, channels)
    for channels, size in sizes[:2]:
        yield (f"Conv2d 3 x 3, stride 2, {channels} to {2 * channels}", conv(channels, 2 * channels, 3, 2),
               (batch, size, size, channels))
    for channels, size in sizes:
        yield f"Conv2d 1 x 1, {channels} channels", conv(channels, channels, 1), (batch, size, size, channels)
    yield "Conv2d 1 x 1, stride 2, 16 to 32", conv(16, 32, 1, 2), (batch, 32, 32, 16)
    yield "Linear 1024 to 1024", (nn.Linear(1024, 1024, rng=RNG), tnn.Linear(1024, 1024)), (batch, 1024)
    for channels, size in sizes:
        both = chain([nn.BatchNorm(channels), nn.ReLU()], [tnn.BatchNorm2d(channels), tnn.ReLU()])
        yield f"BatchNorm + ReLU, {channels} channels", both, (batch, size, size, channels)
    yield "BatchNorm, 32 channels", (nn.BatchNorm(32), tnn.BatchNorm2d(32)), (batch, 16, 16, 32)
    yield "LayerNorm, 32 channels", (nn.LayerNorm(32), tnn.GroupNorm(1, 32)), (batch, 16, 16, 32)
    yield "GroupNorm 4, 32 channels", (nn.GroupNorm(4, 32), tnn.GroupNorm(4, 32)), (batch, 16, 16, 32)
    yield "InstanceNorm, 32 channels", (nn.InstanceNorm(32), tnn.GroupNorm(32, 32)), (batch, 16, 16, 32)
    yield "ReLU, 16 channels", (nn.ReLU(), tnn.ReLU()), (batch, 32, 32, 16)
    yield "MaxPool2d 2, 32 channels", (nn.MaxPool2d(2), tnn.MaxPool2d(2)), (batch, 16, 16, 32)
    yield "AvgPool2d 2, 32 channels", (nn.AvgPool2d(2), tnn.AvgPool2d(2)), (batch, 16, 16, 32)


def measure(ours, theirs, shape, turns):
    """{direction: {contender: seconds}}, and the size of the output."""
    import torch

    x = RNG.standard_normal(shape).astype("float32")
    y = ours(x)
    dy = RNG.standard_normal(y.shape).astype("float32")
    layouts = {"PyTorch, NCHW": torch.contiguous_format, "PyTorch, channels last": torch.channels_last}
    forward, backward, prepare, graphs = {"minibn": lambda: ours(x)}, {"minibn": lambda: ours.backward(dy)}, {}, {}
    prepare["minibn"] = lambda: ours(x)
    for name, layout in layouts.items():
        tx, tdy = torch.tensor(x), torch.tensor(dy)
        if len(shape) == 4:
            tx, tdy = (t.permute(0, 3, 1, 2).contiguous(memory_format=layout) for t in (tx, tdy))
        tx.requires_grad_()
        inputs = [tx, *theirs.parameters()]
        forward[name] = lambda tx=tx: theirs(tx)
        prepare[name] = lambda name=name, tx=tx: graphs.update({name: theirs(tx)})
        backward[name] = lambda name=name, inputs=inputs, tdy=tdy: torch.autograd.grad(graphs[name], inputs, tdy)
    return {"forward": bench.alternate(forward, turns), "backward": bench.alternate(backward, turns, prepare)}, y.size


def main():
    options = bench.flags(__doc__)
    batch, turns = (4, 1) if options.quick else (128, 15)
    gemm, copy = bench.gemm_peak(size=128 if options.quick else 1536), bench.copy_peak()
    rows = []
    for name, pair, shape in cases(batch):
        seconds, size = measure(*pair, shape, turns)
        for direction, by_name in seconds.items():
            ours = np.median(by_name["minibn"])
            passes = 1 if direction == "forward" else 2
            if isinstance(pair[0], nn.Conv2d | nn.Linear):
                weight = pair[0].weight.data
                speed = 2 * passes * size * weight.size / weight.shape[-1] / ours / 1e9
                of_peak, unit = speed / gemm, "GFLOP/s"
            else:
                numbers = np.prod(shape) + size if direction == "forward" else 2 * np.prod(shape) + size
                speed = 4 * numbers / ours / 1e9
                of_peak, unit = speed / copy, "GB/s"
            rows.append([name if direction == "forward" else "", direction, bench.spread(by_name["minibn"] * 1e3, "{:.2f}"),
                         *(bench.spread(values / by_name["minibn"], "{:.2f}") for other, values in by_name.items()
                           if other != "minibn"), f"{speed:.0f} {unit}", f"{of_peak:.0%}"])
    header = ["layer", "pass", "minibn, ms", "PyTorch, NCHW / minibn", "PyTorch, channels last / minibn", "minibn's speed",
              "of peak"]
    text = [bench.table(header, rows), "",
            f"Batch {batch}. Ratios above 1: minibn is faster. Peaks of all cores: {gemm:.0f} GFLOP/s of a large matrix product "
            f"on each, {copy:.0f} GB/s of a copy within 8 MB."]
    bench.report("layers", "\n".join(text), options)


if __name__ == "__main__":
    main()
