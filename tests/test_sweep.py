"""Sweeps: each run is recorded exactly once, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from minibn import sweep


def square(configuration):
    """A run: fails at x = 3."""
    if configuration["x"] == 3:
        raise RuntimeError("three")
    return configuration["x"] ** 2


def slow_square(configuration):
    time.sleep(0.05)
    return configuration["x"] ** 2


def die(configuration):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_failed_run_is_recorded_and_the_rest_goes_on(tmp_path):
    path, todo = tmp_path / "new" / "sweep.jsonl", sweep.grid(x=range(5))
    with ThreadPoolExecutor(2) as executor:
        records = sweep.run(square, todo, path, executor, progress=False)
    assert [r.get("result") for r in records] == [0, 1, 4, None, 16]
    assert records[3]["error"] == "RuntimeError: three"
    assert len(sweep.read(path)) == 5
    with ThreadPoolExecutor(1) as executor:
        again = sweep.run(None, todo, path, executor, progress=False)  # nothing is called
        assert again == records
        retried = sweep.run(slow_square, todo, path, executor, retry=True, progress=False)
    assert retried[3]["result"] == 9
    assert len(sweep.read(path)) == 6


def test_a_sweep_killed_half_way_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "sweep.jsonl"
    code = ("import sys; from concurrent.futures import ThreadPoolExecutor; from minibn import sweep;"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_sweep import slow_square;"
            f"sweep.run(slow_square, sweep.grid(x=range(40)), {str(path)!r}, ThreadPoolExecutor(2), progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (path.exists() and path.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    done = len(sweep.read(path))
    assert 5 <= done < 40
    with path.open("ab") as file:
        file.write(b'{"configuration": {"x": 39}, "res')  # a line cut short
    calls = []

    def counted(configuration):
        calls.append(configuration)
        return slow_square(configuration)

    with ThreadPoolExecutor(2) as executor:
        records = sweep.run(counted, sweep.grid(x=range(40)), path, executor, progress=False)
    assert len(calls) == 40 - done
    assert [r["result"] for r in records] == [x**2 for x in range(40)]
    assert sorted(r["configuration"]["x"] for r in sweep.read(path)) == list(range(40))


def test_a_dead_worker_loses_nothing(tmp_path):
    path = tmp_path / "sweep.jsonl"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        sweep.run(square, sweep.grid(x=[1]), path, executor, progress=False)
        with pytest.raises(BrokenExecutor, match="a worker of the sweep died .*1 of 3 runs are in .*sweep.jsonl"):
            sweep.run(die, sweep.grid(x=[1, 2, 4]), path, executor, progress=False)
    assert [r["configuration"]["x"] for r in sweep.read(path)] == [1]


def test_equal_configurations_run_once(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        records = sweep.run(square, [{"x": 1, "y": 2}, {"y": 2, "x": 1}], tmp_path / "s", executor, progress=False)
    assert len(records) == len(sweep.read(tmp_path / "s")) == 1


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"configuration": 3, "result": 1}', '{"configuration": {}}'])
def test_files_that_are_no_sweeps(tmp_path, line):
    (tmp_path / "s").write_text('{"configuration": {"x": 1}, "result": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 of .* is not a record of a sweep"):
        sweep.read(tmp_path / "s")


def test_grid():
    assert sweep.grid(a=[1, 2], b="xy") == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ValueError, match="no values for"):
        sweep.grid(a=[1], b=[])
