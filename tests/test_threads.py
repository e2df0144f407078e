"""Chunks cover everything once; blocks of threads do not disturb each other, BLAS, or a child process."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from minibn import backend, kernels
from minibn.kernels.threads import _quotas, empty, map_chunks, threads

CHUNK = 2**20


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 400), st.integers(1, 3))
def test_map_chunks_covers_everything_once_in_order(length, bytes_per_item, chunk_bytes, count):
    x = np.arange(length * 1.0)
    with threads(count):
        parts = map_chunks(lambda s: x[s], length, bytes_per_item, chunk_bytes)
    np.testing.assert_array_equal(np.concatenate(parts), x)
    assert len(parts) == 1 or (max(map(len, parts)) - 1) * bytes_per_item <= chunk_bytes  # equal parts, rounded up


def test_no_items_are_one_empty_chunk():
    assert map_chunks(lambda s: (s.start, s.stop), 0, 8) == [(0, 0)]


@pytest.mark.parametrize("block", [threads, kernels.threads, backend.threads])
def test_threads_below_one(block):
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"), block(0):
        pass


def test_a_block_of_threads_is_of_its_own_thread():
    """As on a Dask worker with several threads: where one run ends, it does not take the pool of another with it."""
    both = threading.Barrier(2, timeout=60)

    def where(_):
        return threading.get_ident()

    def meet(_):
        both.wait()  # until a second thread is at work too
        return threading.get_ident()

    def one_chunk_each(function):
        return map_chunks(function, 8, CHUNK)

    def a_block_of_its_own():
        with threads(1):
            return one_chunk_each(where)

    with threads(2), ThreadPoolExecutor(1) as other:
        assert len(set(one_chunk_each(meet))) == 2
        own = other.submit(threading.get_ident).result()
        assert set(other.submit(one_chunk_each, where).result()) == {own}
        assert set(other.submit(a_block_of_its_own).result()) == {own}
        assert len(set(one_chunk_each(meet))) == 2
    assert set(one_chunk_each(where)) == {threading.get_ident()}


def test_an_error_in_a_chunk_is_raised_and_stops_the_rest():
    def fail(s):
        done.append(s.start)
        if s.start == 3:
            raise ValueError("chunk 3")

    for count in (1, 2):
        done = []
        with threads(count), pytest.raises(ValueError, match="chunk 3"):
            map_chunks(fail, 64, CHUNK)
        assert len(done) < 64


def blas_threads():
    """{library: its threads} of every BLAS that is loaded; another test may have brought one with it."""
    np.ones((4, 4)) @ np.ones((4, 4))
    return {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


BEFORE = blas_threads()  # when tests are collected: one that leaves BLAS otherwise must not be the measure of the next


@pytest.mark.skipif(kernels.cores() < 2, reason="needs two cores: with one, BLAS has one thread in any case")
@pytest.mark.parametrize("first_to_end", [0, 1])
def test_overlapping_blocks_leave_blas_as_it_was(first_to_end):
    """The limit belongs to the process: the last block to end lifts it, whichever began first."""
    inside = []
    entered = [threading.Event(), threading.Event()]
    leave = [threading.Event(), threading.Event()]

    def block(i):
        with threads(1):
            entered[i].set()
            leave[i].wait(60)

    blocks = [threading.Thread(target=block, args=[i]) for i in range(2)]
    for i, thread in enumerate(blocks):
        thread.start()
        entered[i].wait(60)
    for i in (first_to_end, 1 - first_to_end):
        inside += blas_threads().values()
        leave[i].set()
        blocks[i].join()
    assert set(inside) == {1}
    assert blas_threads().items() >= BEFORE.items()


def test_an_error_inside_a_block_leaves_blas_as_it_was():
    with pytest.raises(ZeroDivisionError), threads(1), threads(2):
        1 / 0  # noqa: B018
    assert blas_threads().items() >= BEFORE.items()


def control_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")).write_text(text)


def test_cores_respect_the_quota_of_a_container(tmp_path):
    """Version 2 has cpu.max in each group around the process, version 1 two files below the controller's name."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/service/run\n")
    control_group(tmp_path / "v2/service", cpu_max="250000 100000\n")
    control_group(tmp_path / "v2/service/run", cpu_max="max 100000\n")
    assert list(_quotas(tmp_path / "v2", membership)) == [3]  # 2.5 cores
    membership.write_text("4:cpu,cpuacct:/run\n3:memory:/run\n")
    control_group(tmp_path / "v1/cpu,cpuacct/run", cpu_cfs_quota_us="400000\n", cpu_cfs_period_us="100000\n")
    control_group(tmp_path / "v1/cpu,cpuacct", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert list(_quotas(tmp_path / "v1", membership)) == [4]
    membership.write_text("0::/a:b\n")
    control_group(tmp_path / "v2/a:b", cpu_max="100000 100000\n")
    assert list(_quotas(tmp_path / "v2", membership)) == [1]
    assert list(_quotas(tmp_path / "nothing", tmp_path / "none")) == []


def test_cores_are_no_more_than_a_quota_and_at_least_one(monkeypatch):
    for quotas in ([1], [64, 1], [0]):
        monkeypatch.setattr(sys.modules["minibn.kernels.threads"], "_quotas", lambda *_, quotas=quotas: quotas)
        assert kernels.cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs os.sched_setaffinity")
def test_cores_respect_the_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import minibn; print(minibn.kernels.cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not():
    code = """
import os, signal, sys, warnings
from minibn.kernels.threads import map_chunks, threads
warnings.simplefilter("ignore")
with threads(2):
    map_chunks(lambda s: None, 8, 2**20)
    sys.modules["minibn.kernels.threads"]._BLAS.lock.acquire()  # as another thread may, just now
    child = os.fork()
    if not child:
        signal.alarm(20)
        map_chunks(lambda s: None, 8, 2**20)
        with threads(2):
            map_chunks(lambda s: None, 8, 2**20)
        os._exit(0)
    sys.modules["minibn.kernels.threads"]._BLAS.lock.release()
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(["float32", "float64"]))
def test_new_arrays_begin_with_a_cache_line(shape, dtype):
    x = empty(shape, np.zeros(1, dtype))
    assert x.shape == tuple(shape)
    assert x.dtype == dtype
    assert x.ctypes.data % 64 == 0
    assert x.flags.c_contiguous
    assert x.flags.writeable
