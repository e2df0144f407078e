"""Sweeps: each run is recorded exactly once, whatever happens to the workers."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from minibn import kernels, processes, sweep
from minibn.__main__ import main


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

    with ThreadPoolExecutor(2) as executor, pytest.warns(UserWarning, match="is no whole record"):
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


def takes_apart(configuration):
    return {"score": configuration["lr"] + configuration.pop("seed")}


@pytest.mark.parametrize("make", [ThreadPoolExecutor, lambda n: ProcessPoolExecutor(n, get_context("spawn"))],
                         ids=["threads", "processes"])
def test_records_survive_functions_that_change_their_configuration(tmp_path, make):
    grid = sweep.grid(lr=[0.5], seed=[0, 1])
    for _ in range(2):  # the second start runs nothing
        with make(1) as executor:
            records = sweep.run(takes_apart, grid, tmp_path / "s", executor, progress=False)
        assert [(r["configuration"], r["result"]["score"]) for r in records] == [({"lr": 0.5, "seed": 0}, 0.5),
                                                                                 ({"lr": 0.5, "seed": 1}, 1.5)]
        assert len(sweep.read(tmp_path / "s")) == 2
    assert grid == sweep.grid(lr=[0.5], seed=[0, 1])


@pytest.mark.parametrize("content", [b"my notes, one line without newline", b"{}", b"\x00\x00", b'{"other": 1}\n', b"\xff\xfe"])
def test_a_file_that_is_not_a_sweeps_is_left_as_it_is(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    refusal = "is not (a record|the beginning of a record) of a sweep"
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match=refusal):
        sweep.run(dict, [{"a": 1}], tmp_path / "s", executor, progress=False)
    assert (tmp_path / "s").read_bytes() == content


def test_results_that_are_not_finite_are_valid_json(tmp_path):
    def diverged(configuration):
        return {"loss": np.float32("nan"), "norm": float("inf"), "count": np.int64(3), "path": Path("a/b")}

    with ThreadPoolExecutor(1) as executor:
        (record,) = sweep.run(diverged, [{"lr": -float("inf")}], tmp_path / "s", executor, progress=False)
        assert sweep.run(None, [{"lr": -float("inf")}], tmp_path / "s", executor, progress=False) != []

    def refuse(name):
        raise AssertionError(name)

    written = json.loads((tmp_path / "s").read_text(), parse_constant=refuse)
    assert written["result"] == {"loss": "NaN", "norm": "Infinity", "count": 3, "path": "a/b"}
    assert np.isnan(record["result"]["loss"])
    assert record["configuration"]["lr"] == -np.inf
    assert repr(sweep.read(tmp_path / "s")) == repr([record])


def test_numbers_of_numpy_and_paths_in_configurations(tmp_path):
    grid = sweep.grid(lr=np.logspace(-3, -1, 2), seed=np.arange(2), where=[Path("a")])
    with ThreadPoolExecutor(1) as executor:
        records = sweep.run(lambda c: type(c["seed"]).__name__, grid, tmp_path / "s", executor, progress=False)
        again = sweep.run(None, sweep.grid(lr=[0.001, 0.1], seed=[0, 1], where=["a"]), tmp_path / "s", executor, progress=False)
        assert again == records
        trained = sweep.run(sweep.train, sweep.grid(model=["mlp"], epochs=np.array([1]), eps=np.logspace(-9, -3, 2)),
                            tmp_path / "t", executor, progress=False)
    assert records[0]["configuration"] == {"lr": 0.001, "seed": 0, "where": "a"}
    assert all("result" in record for record in trained)


@pytest.mark.parametrize(("configuration", "message"), [("ab", "configuration 1 must be a dict, got 'ab' of type str"),
                                                        (3, "configuration 1 must be a dict"),
                                                        ({"f": len}, r"configuration 1\['f'\] is .*which JSON cannot hold")])
def test_configurations_that_cannot_be_recorded_are_refused_at_the_call(tmp_path, configuration, message):
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match=message):
        sweep.run(square, [{"x": 1}, configuration], tmp_path / "s", executor, progress=False)
    assert not (tmp_path / "s").exists()


def exits(configuration):
    raise SystemExit(3)


def test_a_run_that_exits_is_a_failed_run(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        (record,) = sweep.run(exits, [{"x": 1}], tmp_path / "s", executor, progress=False)
    assert record["error"] == "SystemExit: 3"


def test_deeply_nested_records_are_a_one_line_error(tmp_path):
    (tmp_path / "s").write_text('{"configuration": ' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 1 of .* is not a record of a sweep .*"):
        sweep.read(tmp_path / "s")


def report_and_wait(configuration):
    Path(configuration["folder"], str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.skipif(os.name != "posix", reason="looks for processes by signal 0")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = ("import sys; from concurrent.futures import ProcessPoolExecutor; from multiprocessing import get_context\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from minibn import sweep; from test_sweep import report_and_wait\n"
            "if __name__ == '__main__':\n"
            "    with ProcessPoolExecutor(2, get_context('spawn')) as executor:\n"
            f"        grid = sweep.grid(folder=[{str(tmp_path)!r}], x=range(4))\n"
            f"        sweep.run(report_and_wait, grid, {str(tmp_path / 's')!r}, executor)\n")
    (tmp_path / "main.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    workers = []
    while len(workers) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < end, "a worker stays"
        time.sleep(0.05)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # an orphan may stay as a zombie where nobody waits for it
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


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
    assert sweep.grid(a=[1, 2], b=("x", "y")) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ValueError, match="no values for"):
        sweep.grid(a=[1], b=[])


@pytest.mark.parametrize(("flags", "workers"), [([], 3), (["--workers", "2"], 2)])
def test_the_command_starts_as_many_workers_as_there_are_cores_to_use_and_they_end_with_it(monkeypatch, tmp_path, flags, workers):
    started = []

    def start(*arguments, **options):
        started.append((arguments[0], options["initializer"]))
        raise OSError("enough")

    monkeypatch.setattr(kernels, "cores", lambda: 3)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", start)
    with pytest.raises(SystemExit):
        main(["sweep", "--model", "mlp", "--epochs", "1", "--quiet", "--output", str(tmp_path / "s"), *flags])
    assert started == [(workers, sweep.end_with_parent)]


def test_the_values_of_a_grid_are_lists_and_an_executor_is_one(tmp_path):
    with pytest.raises(TypeError, match=r"grid: lr must be a list of values, such as \[0.1\], got 0.1"):
        sweep.grid(seed=[0], lr=0.1)
    for bad in (0.1, "0.1", None, {"a": 1}):
        with pytest.raises(TypeError, match="configurations must be a list of dicts, got"):
            sweep.run(dict, bad, tmp_path / "s.jsonl", ThreadPoolExecutor(1))
        with pytest.raises(TypeError, match="function must be a function of a dict, and executor an executor, such as Proc"):
            sweep.run(dict, [{}], tmp_path / "s.jsonl", bad)
        with pytest.raises(TypeError, match="function must be a function of a dict"):
            sweep.run(bad, [{}], tmp_path / "s.jsonl", ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match="retry must be True or False, got 'no'"):
        sweep.run(dict, [], tmp_path / "s.jsonl", ThreadPoolExecutor(1), retry="no")
    assert not list(tmp_path.iterdir())
