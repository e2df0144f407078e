"""One training step of a PreResNet-32 (batch 128, 32 x 32 x 3, float32): minibn, PyTorch, the bare matrix products, MyGrad.

    python benchmarks/train_step.py            about three minutes
    python benchmarks/train_step.py --write    and renew the table in benchmarks/README.md
"""

import resource
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import nullcontext

import bench
import contenders
import numpy as np

from minibn import kernels, models, nn

MAKERS = {"minibn": contenders.minibn, "PyTorch, NCHW": contenders.pytorch(),
          "PyTorch, channels last": contenders.pytorch(channels_last=True), "MyGrad": contenders.mygrad}


def main():
    options = bench.flags(__doc__, memory=str)
    size = {"depth": 8, "width": 8, "batch": 4} if options.quick else {"depth": 32, "width": 16, "batch": 128}
    if options.memory:
        print(peak_memory(options.memory, size))
        return
    turns = 1 if options.quick else 15
    measured = ["minibn"] if options.quick else MAKERS
    memory = {name: measured_memory(name, options.quick) for name in measured}  # first: a child inherits its parent's peak
    steps = {name: step for name, make in MAKERS.items() if (step := tried(make, size))}
    slow = {name: steps.pop(name) for name in ["MyGrad"] if name in steps}
    net = models.preresnet(size["depth"], width=size["width"], rng=np.random.default_rng(0))
    shapes = contenders.products(net, contenders.images(size["batch"])[0])
    steps["bare matrix products"] = contenders.bare_products(shapes)
    seconds = bench.alternate(steps, turns)
    for name, step in slow.items():  # few turns, with minibn only
        pair = bench.alternate({name: step, "minibn": steps["minibn"]}, 2)
        seconds[name] = pair[name] / pair["minibn"] * np.median(seconds["minibn"])
    double = {"float64": contenders.minibn(**size, dtype="float64"), "float32": steps["minibn"]}
    double = bench.alternate(double, 1 if options.quick else 7)
    with kernels.threads():
        split = by_kind(contenders.minibn(**size, net=net), net, 2 if options.quick else 7)
    ours, rows = seconds["minibn"], []
    for name, values in seconds.items():
        same = len(values) == len(ours)
        ratio = bench.spread(values / ours, "{:.2f}") if same else f"{np.median(values) / np.median(ours):.1f}"
        images = f"{size['batch'] / np.median(values):.0f}"
        rows.append([name, bench.spread(values * 1e3, "{:.0f}"), images, ratio, memory.get(name, "-")])
    work = sum(6 * m * k * n for m, k, n in shapes)
    floor = np.median(seconds["bare matrix products"])
    text = [bench.table(["", "ms per step", "images/s", "time / minibn's", "peak memory, MB (before the first step)"], rows), "",
            f"A PreResNet-{size['depth']} of width {size['width']}, batch {size['batch']}, float32: {work / 1e9:.1f} GFLOP of "
            f"matrix products per step. They alone run at {work / floor / 1e9:.0f} GFLOP/s here, minibn's whole step "
            f"at {work / np.median(ours) / 1e9:.0f}: it takes {bench.spread(ours / seconds['bare matrix products'], '{:.2f}')} "
            "times as long as its products. In float64 it takes "
            f"{bench.spread(double['float64'] / double['float32'], '{:.2f}')} times as long as in float32. "
            "Memory is that of a process that takes three steps and nothing else.", "",
            "Where minibn's step spends its time:", "",
            bench.table(["layers", "forward, ms", "backward, ms", "share"], split)]
    bench.report("train_step", "\n".join(text), options)


def tried(make, size):
    """The step, or None if its library is not installed."""
    try:
        return make(**size)
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def by_kind(step, net, turns):
    """Rows of milliseconds that the layers of each kind take in `step` of `net`."""
    seconds = defaultdict(float)

    def timed(module, direction, kind):
        original = getattr(module, direction)

        def run(array):
            start = time.perf_counter()
            result = original(array)
            seconds[kind, direction] += time.perf_counter() - start
            return result

        setattr(module, direction, run)

    for _, module in net.named_modules():
        if not module.children():
            kind = type(module).__name__
            if isinstance(module, nn.Conv2d):
                kind += f" {module.kernel_size[0]} x {module.kernel_size[1]}" + (", stride 2" if module.stride != (1, 1) else "")
            timed(module, "forward", kind)
            timed(module, "backward", kind)
    step()
    seconds.clear()
    start = time.perf_counter()
    for _ in range(turns):
        step()
    total = time.perf_counter() - start
    rows = [[kind, *(f"{seconds[kind, way] * 1e3 / turns:.0f}" for way in ("forward", "backward")),
             f"{(seconds[kind, 'forward'] + seconds[kind, 'backward']) / total:.0%}"]
            for kind in sorted({kind for kind, _ in seconds}, key=lambda kind: -seconds[kind, "backward"])]
    rest = total - sum(seconds.values())
    return [*rows, ["additions of residuals, loss, SGD", f"{rest * 1e3 / turns:.0f} in all", "", f"{rest / total:.0%}"]]


def peak_memory(name, size):
    """Peak memory of this process in MB after three steps, and before them in brackets."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there
    step, peaks = MAKERS[name](**size), []
    with kernels.threads() if name == "minibn" else nullcontext():
        for steps in (0, 3):
            for _ in range(steps):
                step()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)
    return f"{peaks[1]} ({peaks[0]})"


def measured_memory(name, quick):
    """`peak_memory` of a process of its own; "-" without the library."""
    command = [sys.executable, __file__, "--memory", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        return "-"
    done.check_returncode()
    return done.stdout.strip()


if __name__ == "__main__":
    main()
