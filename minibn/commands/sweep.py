"""`minibn sweep`: many networks."""

from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from minibn import backend, kernels, processes, sweep
from minibn.commands.common import experiment_flags
from minibn.experiment import Experiment
from minibn.flags import NOT_GIVEN, Parser, number, place


def run(output: str, workers: int | None, dask: str | None, retry: bool, quiet: bool, seeds: int,
              milestones: list[float] | None, **axes: Any) -> int:
    """Train every combination of settings and seeds, and record one JSON line per run. A stopped sweep continues where it was."""
    axes = {name: value if isinstance(value, list) else [value] for name, value in axes.items()}
    configurations = sweep.grid(**axes, milestones=[milestones], seed=range(seeds))
    configurations = [asdict(Experiment(**configuration)) for configuration in configurations]  # raises now
    for name in axes["backend"] if dask is None else ():
        backend.library(name)
    try:
        with _executor(workers, dask) as executor:
            records = sweep.run(sweep.train, configurations, output, executor, retry=retry, progress=not quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the runs that ended are in {output}; the same command goes on with the others") from None
    varied = [name for name, values in axes.items() if len(values) > 1]
    print("  ".join([f"{name:>12}" for name in varied] + ["test accuracy (mean of seeds)"]))
    failed = 0
    for i in range(0, len(records), seeds):
        results = [record["result"]["test_accuracy"] for record in records[i : i + seeds] if "result" in record]
        failed += seeds - len(results)
        setting = "  ".join(f"{records[i]['configuration'][name]!s:>12}" for name in varied)
        counted = f"({len(results)} of {seeds} seeds)"
        what = f"{np.mean(results):.2%} {counted}" if results else f"failed {counted}: {records[i]['error']}"
        print(f"{setting}  {what}")
    print(f"{len(records)} runs, {failed} failed: see {output}")
    return 1 if failed else 0


@contextmanager
def _executor(workers, dask):
    if dask is None:
        with processes.pool(workers or kernels.cores()) as executor:
            yield executor
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError("--dask needs dask.distributed: pip install distributed") from error
    with Client(dask) as client, client.get_executor() as executor:
        yield executor


def flags() -> Parser:
    """Its flags."""
    parser = Parser("minibn sweep", run.__doc__, "every setting may be given several values", {"batch_size": "--batch"})
    experiment_flags(parser, several=True, leave_out=["seed"])
    parser.flag("--seeds", "runs of each setting, with seeds 0, 1, and so on", kind=number(int, 1), default=1)
    parser.flag("--output", "JSON Lines file to append to", kind=place("give a file"), default="results/sweep.jsonl")
    parser.flag("--workers", "processes, one for each core if not given", kind=number(int, 1), when={"dask": NOT_GIVEN})
    parser.flag("--dask", "run on the Dask cluster with this scheduler instead", metavar="ADDRESS")
    parser.flag("--retry", "run again what failed before", yes=True)
    parser.flag("--quiet", "no progress bar", yes=True)
    return parser
