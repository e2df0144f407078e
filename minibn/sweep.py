"""Many runs: a grid of configurations on any `concurrent.futures.Executor`, each run recorded exactly once.

Records go to a JSON Lines file, one line per run, flushed to the disk when the run ends. A sweep that
was killed continues where it stopped: configurations that are already in the file are not run again.

Executors that fit:

    ProcessPoolExecutor()                       the cores of this machine (concurrent.futures)
    Client("tcp://…:8786").get_executor()       a Dask cluster (dask.distributed)
    MPIPoolExecutor()                           MPI (mpi4py.futures), started by
                                                mpiexec -n 9 python -m mpi4py.futures …
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minibn import experiment


def grid(**axes: Iterable) -> list[dict[str, Any]]:
    """All combinations of the values of each name, the last name varying fastest.

    Example:
        >>> grid(lr=[0.1, 0.2], seed=[0])
        [{'lr': 0.1, 'seed': 0}, {'lr': 0.2, 'seed': 0}]

    Raises:
        ValueError: a name has no values.
    """
    lists = {name: list(values) for name, values in axes.items()}
    if empty := [name for name, values in lists.items() if not values]:
        raise ValueError(f"grid: no values for {empty}")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def run(function: Callable[[dict[str, Any]], Any], configurations: Iterable[dict[str, Any]], path: str | Path,
        executor: Executor, *, retry: bool = False, progress: bool = True) -> list[dict[str, Any]]:
    """Call `function(configuration)` for every configuration, and append what it returns to the file at `path`.

    A line is {"configuration": …, "result": …, "seconds": …}. If a run raises, its line has "error"
    instead of "result", and the other runs continue. Two sweeps must not write one file at the same
    time.

    Args:
        function: takes a dict and returns anything JSON can hold. Executors of processes need a
            function that can be imported by name.
        configurations: list of dicts that JSON can hold, such as `grid(…)`. Equal ones are run once.
        path: JSON Lines file, made if it is missing.
        executor: `concurrent.futures.Executor`. The caller shuts it down.
        retry: whether to run the failed configurations in the file again. The later line counts.
        progress: whether to show a bar.

    Returns:
        list of the records of `configurations`, in the same order.

    Raises:
        ValueError: the file does not hold a sweep.
        BrokenExecutor: a worker died, for example from lack of memory. The finished runs are in the
            file.
    """
    path = Path(path)
    records = {_key(record["configuration"]): record for record in read(path)}
    wanted = {_key(configuration): configuration for configuration in configurations}
    todo = {key: c for key, c in wanted.items() if key not in records or (retry and "error" in records[key])}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file, tqdm(total=len(wanted), initial=len(wanted) - len(todo), desc=path.name,
                                        disable=not progress) as bar:
        file.truncate(len(_whole_lines(path)))
        futures = {executor.submit(_record, function, configuration): key for key, configuration in todo.items()}
        try:
            for future in as_completed(futures):
                record = future.result()
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                records[futures[future]] = record
                bar.set_postfix(failed=sum("error" in records[key] for key in wanted if key in records), refresh=False)
                bar.update()
        except BrokenExecutor as error:
            raise BrokenExecutor(f"a worker of the sweep died ({error}); {bar.n} of {len(wanted)} runs are in {path}. Give it "
                                 "more memory or fewer workers, and start the sweep again: it goes on from there") from error
        finally:
            for future in futures:
                future.cancel()
    return [records[key] for key in wanted]


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records in a sweep's file, oldest first, without a last line that a kill cut short.

    Raises:
        ValueError: another line is not a record.
    """
    path = Path(path)
    records = []
    for number, line in enumerate(_whole_lines(path).splitlines(), 1):
        try:
            record = json.loads(line)
            if not isinstance(record["configuration"], dict) or ("result" in record) == ("error" in record):
                raise ValueError("a record has a configuration, and a result or an error")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"line {number} of {path} is not a record of a sweep ({error}); give another file, or take the line "
                             "out to run it again") from error
        records.append(record)
    return records


def train(configuration: dict[str, Any]) -> dict[str, float]:
    """Train the `Experiment` with these fields, on one thread. `minibn sweep` calls this for each run."""
    done = experiment.run(experiment.Experiment(**configuration), threads=1, progress=False)
    return {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss, "last_loss": float(done.history["loss"][-1])}


def _record(function, configuration):
    """The record of one run, made where the executor runs it."""
    start = time.perf_counter()
    try:
        outcome = {"result": function(configuration)}
        json.dumps(outcome)
    except Exception as error:  # any error belongs to this run alone
        outcome = {"error": f"{type(error).__name__}: {error}"}
    return {"configuration": configuration, **outcome, "seconds": round(time.perf_counter() - start, 3)}


def _key(configuration):
    return json.dumps(configuration, sort_keys=True)


def _whole_lines(path):
    """The bytes of the file up to the end of its last whole line; none if the file is missing."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
