"""Many runs: a grid of configurations on any `concurrent.futures.Executor`, each run recorded exactly once.

Records go to a JSON Lines file, one line per run, flushed to the disk when the run ends. A sweep
that was killed continues where it stopped: configurations that are already in the file are not run
again. Numbers of NumPy, paths and NaN are written as `jsonable` says, and `read` turns NaN back
into a number. Each line has a checksum, so that a digit that has changed is noticed.

Executors that fit:

    ProcessPoolExecutor()                       the cores of this machine (concurrent.futures)
    Client("tcp://…:8786").get_executor()       a Dask cluster (dask.distributed)
    MPIPoolExecutor()                           MPI (mpi4py.futures), started by
                                                mpiexec -n 9 python -m mpi4py.futures …
"""

import copy
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor, as_completed
from pathlib import Path
from typing import Any

from minibn import arguments, experiment, jsonable, sweep_file
from minibn.processes import end_with_parent
from minibn.progress import bar
from minibn.training.interruption import Stopped


def grid(**axes: Iterable) -> list[dict[str, Any]]:
    """All combinations of the values of each name, the last name varying fastest.

    Example:
        >>> grid(lr=[0.1, 0.2], seed=[0])
        [{'lr': 0.1, 'seed': 0}, {'lr': 0.2, 'seed': 0}]

    Raises:
        TypeError: the values of a name are no list.
        ValueError: a name has no values.
    """
    for name, values in axes.items():
        arguments.iterable(f"grid: {name}", values, f"a list of values, such as [{values!r}]")
    lists = {name: list(values) for name, values in axes.items()}
    if empty := [name for name, values in lists.items() if not values]:
        raise ValueError(f"grid: no values for {empty}")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def run(function: Callable[[dict[str, Any]], Any], configurations: Iterable[dict[str, Any]], path: str | Path,
        executor: Executor, *, retry: bool = False, progress: bool = True) -> list[dict[str, Any]]:
    """Call `function(configuration)` for every configuration, and append what it returns to the file at `path`.

    A record is {"configuration": …, "result": …, "seconds": …}, and its line also has a "checksum".
    If a run raises, its record has "error" instead of "result", and the other runs continue. Two
    sweeps must not write one file at the same time.

    If a kill or a power loss has left a last line that is no whole record, the line is moved to the
    file NAME.cut, a warning says so, and its run is done again.

    Args:
        function: takes a dict, a copy of its own, and returns anything JSON can hold. Executors of
            processes need a function that can be imported by name.
        configurations: list of dicts that JSON can hold, such as `grid(…)`. Equal ones are run
            once.
        path: JSON Lines file, made if it is missing. `~` is the home folder.
        executor: `concurrent.futures.Executor`. The caller shuts it down. Its processes end when
            this one does, since each run calls `end_with_parent`.
        retry: whether to run the failed configurations in the file again. The later line counts.
        progress: whether to show a bar, in a terminal or notebook.

    Returns:
        list of the records of `configurations`, in the same order.

    Raises:
        TypeError: a configuration is no dict, or JSON cannot hold it, and the message names the
            key; or another argument is not what it should be.
        ValueError: the file does not hold a sweep, or a line was changed. It is left as it is.
        OSError: it cannot be written, or is a folder, a pipe or a device.
        BrokenExecutor: a worker died, for example from lack of memory. The finished runs are in the
            file.
    """
    path = Path(path).expanduser()
    arguments.yes_or_no(retry=retry, progress=progress)
    configurations = list(arguments.iterable("configurations", configurations, "a list of dicts"))
    wanted: dict[str, Any] = {}
    for i, configuration in enumerate(configurations):
        if not isinstance(configuration, Mapping):
            raise TypeError(f"configuration {i} must be a dict, got {configuration!r} of type {type(configuration).__name__}")
        wanted.setdefault(_key(configuration, f"configuration {i}"), configuration)
    old, rest = sweep_file.read(path) if path.exists() else ([], b"")
    records = {_key(record["configuration"], "a record"): record for record in old}
    todo = {key: c for key, c in wanted.items() if key not in records or (retry and "error" in records[key])}
    if todo and not (callable(function) and hasattr(executor, "submit")):
        raise TypeError("function must be a function of a dict, and executor an executor, such as ProcessPoolExecutor(); got "
                        f"{function!r} and {executor!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with sweep_file.appending(path, rest) as file, bar(len(wanted), len(wanted) - len(todo), path.name, progress) as shown:
        futures = {executor.submit(_outcome, function, configuration): key for key, configuration in todo.items()}
        done = len(wanted) - len(todo)
        try:
            for future in as_completed(futures):
                key = futures[future]
                record = {"configuration": wanted[key], **future.result()}
                file.write(sweep_file.line(record))
                file.flush()
                os.fsync(file.fileno())
                records[key] = jsonable.loads(jsonable.dumps(record))
                done += 1
                shown.set_postfix(failed=sum("error" in records[key] for key in wanted if key in records), refresh=False)
                shown.update()
        except BrokenExecutor as error:
            raise BrokenExecutor(f"a worker of the sweep died ({error}); {done} of {len(wanted)} runs are in {path}. Give it "
                                 "more memory or fewer workers, and start the sweep again: it goes on from there") from error
        finally:
            for future in futures:
                future.cancel()
    return [records[key] for key in wanted]


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records in a sweep's file, oldest first, without their checksums.

    A last line that is no whole record, as a kill leaves, is left out, with a warning.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device.
        ValueError: another line is not a record, or was changed after it was written.
    """
    records, rest = sweep_file.read(Path(path).expanduser())
    if rest:
        warnings.warn(f"the end of {path}, {rest[:40]!r}…, is no whole record and is left out", stacklevel=2)
    return records


def train(configuration: dict[str, Any]) -> dict[str, float]:
    """Train the `Experiment` with these fields, on one thread. `minibn sweep` calls this for each run."""
    done = experiment.run(experiment.Experiment(**configuration), threads=1, progress=False)
    return {"test_accuracy": done.test_accuracy, "train_loss": done.train_loss, "last_loss": float(done.history["loss"][-1])}


def _outcome(function, configuration):
    """What a record says about one run, made where the executor runs it."""
    end_with_parent()
    start = time.perf_counter()
    try:
        outcome = {"result": jsonable.plain(function(copy.deepcopy(configuration)), "the result")}
        jsonable.dumps(outcome)
    except Stopped as stopped:  # no fault of the run's
        raise BrokenExecutor(str(stopped)) from None
    except (Exception, SystemExit) as error:  # any other error belongs to this run alone
        outcome = {"error": f"{type(error).__name__}: {error}"}
    return {**outcome, "seconds": round(time.perf_counter() - start, 3)}


def _key(configuration, name):
    """Equal for equal configurations, whether they come from a caller or from the file."""
    return jsonable.dumps(configuration, name, sort_keys=True)
