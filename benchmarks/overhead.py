"""What is not layers: import, the converter, SGD, what is recorded, the toy problem, the main job.

    python benchmarks/overhead.py            about two minutes
    python benchmarks/overhead.py --write    and renew the table in benchmarks/README.md
"""

import os
import subprocess
import sys
import tempfile
from collections import deque
from itertools import islice, repeat

import bench
import contenders
import numpy as np

from minibn import equivalence, models, nn, schedules
from minibn.optim import SGD, Step
from minibn.paper import section3 as toy
from minibn.training import recorder

USUAL = contenders.USUAL


def main():
    options = bench.flags(__doc__)
    turns = 1 if options.quick else 9
    rows = [*imports(turns), *converters(1000 if options.quick else 300_000, turns), *sgd(turns),
            *records(turns, *((8, 4, 4) if options.quick else (32, 16, 128))),
            *toy_problem(*((2, turns, 20) if options.quick else (1000, turns))), *([] if options.quick else main_job())]
    bench.report("overhead", bench.table(["what", "measured"], rows), options)


def process(*arguments):
    """A function that runs Python with these arguments and waits for it. It may keep its bytecode, as it does by default."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


def imports(turns):
    """`import minibn` over `import numpy`, in fresh processes."""
    seconds = bench.alternate({name: process("-c", f"import {name}") for name in ("numpy", "minibn")}, turns)
    yield ["`import minibn`, seconds more than `import numpy`", bench.spread(seconds["minibn"] - seconds["numpy"], "{:.2f}")]


def converters(count, turns):
    """Steps per second of the conversions, and of making a Step at all."""
    step = Step(0.1, **USUAL)
    streams = {
        "making a `Step`": lambda: (Step(0.1, 0.9, 5e-4) for _ in repeat(None)),
        "`remove_weight_decay`, constant lr": lambda: equivalence.remove_weight_decay(repeat(step)),
        "`remove_weight_decay(cosine)`, the making of the cosine's Steps included":
            lambda: equivalence.remove_weight_decay(schedules.cosine(0.1, count, **USUAL)),
        "`add_weight_decay(exponential)`, likewise":
            lambda: equivalence.add_weight_decay(schedules.exponential(0.1, 1.000001, momentum=0.9), 5e-4),
    }
    drain = {name: lambda make=make: deque(islice(make(), count), maxlen=0) for name, make in streams.items()}
    for name, seconds in bench.alternate(drain, turns).items():
        yield [f"{name}, Steps per second", bench.spread(count / seconds, "{:,.0f}")]


def sgd(turns, tensors=100, size=10_000, steps=20):
    """Steps of SGD on 100 tensors of 10^4 numbers against torch.optim.SGD."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(size).astype("float32") for _ in range(tensors)]
    parameters = [nn.Parameter(array.copy()) for array in arrays]
    for parameter in parameters:
        parameter.grad = parameter.data * 0.01
    ours = SGD(parameters, schedules.constant(0.1, **USUAL))
    contenders = {"minibn": lambda: [ours.step() for _ in range(steps)]}
    try:
        import torch
    except ImportError:
        torch = None
    if torch:
        theirs = [torch.nn.Parameter(torch.tensor(array)) for array in arrays]
        for parameter in theirs:
            parameter.grad = parameter.detach() * 0.01
        optimizer = torch.optim.SGD(theirs, 0.1, **USUAL, foreach=True)
        contenders["PyTorch"] = lambda: [optimizer.step() for _ in range(steps)]
    seconds = bench.alternate(contenders, turns)
    yield ["`SGD`, 10^6 parameters in 100 tensors, steps per second", bench.spread(steps / seconds["minibn"], "{:.0f}")]
    if torch:
        yield ["the same, time of `torch.optim.SGD(foreach=True)` / minibn's",
               bench.spread(seconds["PyTorch"] / seconds["minibn"], "{:.2f}")]


def records(turns, depth, width, batch):
    """What `training.fit` measures in every step (norms, angle, effective lr), against the step itself."""
    net = models.preresnet(depth, width=width, rng=np.random.default_rng(0))
    step = contenders.minibn(batch=batch, net=net)
    optimizer = SGD(net.parameters(), schedules.constant(0.1, **USUAL))
    optimizer.step()
    watched = recorder.watch(net, {"all": optimizer}, {})
    before = recorder.weights(watched)
    seconds = bench.alternate({"step": step, "records": lambda: recorder.measure(watched, before)}, turns)
    yield [f"what `training.fit` records of a step of PreResNet-{depth}, batch {batch}, % of the step's time",
           bench.spread(100 * seconds["records"] / seconds["step"], "{:.1f}")]


def toy_problem(seeds, turns, steps=1000):
    """Section 3 of the paper for many seeds at once."""
    def run(count):
        schedule = schedules.constant(0.1, weight_decay=1e-3)
        return lambda: toy.simulate(schedule, steps, normalised=True, seeds=count, every=steps, rng=np.random.default_rng(0))

    seconds = bench.alternate({"many": run(seeds), "one": run(1)}, min(turns, 5))
    yield [f"toy problem, {steps:,} steps for {seeds:,} seeds, seconds", bench.spread(seconds["many"], "{:.2f}")]
    yield ["the same, seconds for each seed / seconds for one seed alone",
           bench.spread(seconds["many"] / seconds["one"] / seeds, "{:.4f}")]


def main_job():
    """`python -m minibn`, as a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = bench.alternate({"main job": process("-m", "minibn", "--quiet", "--output", folder)}, 2)["main job"]
    yield ["the main job, `python -m minibn`, seconds", bench.spread(seconds, "{:.1f}")]


if __name__ == "__main__":
    main()
