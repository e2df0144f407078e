"""Chunks of work, the threads that share them, and the memory that they reuse."""

import ctypes
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from threadpoolctl import threadpool_limits

from minibn import arguments

# (pool, its size) of the surrounding `threads` block; each thread has its own
_workers: ContextVar[tuple[ThreadPoolExecutor, int] | None] = ContextVar("workers", default=None)


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Run NumPy's chunked work on `count` Python threads, this one among them, and every BLAS call on one.

    Use it around a training loop of your own; `training.fit`, `evaluate` and `update_bn` do so by
    themselves. Many small matrix products on one BLAS thread each are faster than one large product
    on many. Results have the same bits for any number of threads: the size of a chunk never depends
    on it, and partial sums are added in the order of the chunks. Outside such a block everything
    runs in the calling thread, and BLAS is left as it is.

    The limit on BLAS's threads belongs to the process. It is set when the first block of any thread
    begins, and lifted when the last one ends.

    Inside a block, freed memory stays with the process. Otherwise the C library gives it back to
    the system after each step, and each page must be cleared again in the next step, which takes a
    tenth of its time. This is done for glibc only. To turn it off, set one of glibc's own
    `MALLOC_…` environment variables.

    Args:
        count: number of Python threads, at least 1. None: as many as the surrounding block has, or
            else `cores()`.

    Raises:
        ValueError: `count` is below 1, or not whole.
    """
    if count is not None:
        count = arguments.whole("threads: count", count, 1)
    if count is None and _workers.get() is not None:
        yield
        return
    count = count or cores()
    with _BLAS, ThreadPoolExecutor(count) as pool:
        token = _workers.set((pool, count))
        try:
            yield
        finally:
            _workers.reset(token)


class _OneThreadPerProduct:
    """BLAS on one thread, and freed memory kept, from the first `with` block of the process to the last."""

    def __init__(self):
        self.lock, self.open = threading.Lock(), 0
        self.limits: threadpool_limits

    def __enter__(self):
        with self.lock:
            self.open += 1
            if self.open == 1:
                _let_this_thread_limit_blas()
                self.limits = threadpool_limits(limits=1, user_api="blas")
                _libc()

    def __exit__(self, *_):
        with self.lock:
            self.open -= 1
            if self.open == 0:
                _let_this_thread_limit_blas()
                self.limits.restore_original_limits()
                if libc := _libc():
                    libc.malloc_trim(0)  # gives all of it back


_BLAS = _OneThreadPerProduct()


def _let_this_thread_limit_blas():
    """Newer versions of threadpoolctl obey the first thread that sets a limit and ignore all others: begin again."""
    controller = getattr(threadpoolctl, "OpenBLASController", None)
    if controller is not None and hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


@cache
def _libc():
    """glibc, told to keep freed memory, or None where there is another C library or the user has set it otherwise."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim") and not any(name.startswith("MALLOC_") for name in os.environ):
            libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that it takes
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            return libc
    return None


def _in_child():
    """After a fork: the pool's threads are not in the child, and a lock may have been held."""
    _workers.set(None)
    _BLAS.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def cores() -> int:
    """How many cores this process may use: its affinity, and the quota of its container (Linux control groups)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_quotas(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))]))


def _quotas(root: Path, membership: Path) -> list[int]:
    """Cores that the control groups around this process allow, of version 2 (cpu.max) and 1 (cpu.cfs_quota_us).

    `membership` has lines "number:controllers:/path/of/group"; version 2 has no controllers, and no
    folder for them.
    """
    folders: set[Path] = set()
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            top = root / controllers
            folders |= {top, *(top / str(place).lstrip("/") for place in (Path(group), *Path(group).parents))}
    return [cores for folder in sorted(folders) if (cores := _quota(folder))]


def _quota(folder: Path) -> int | None:
    """Cores that one control group allows, rounded up; None where it sets no limit."""
    try:
        if (both := folder / "cpu.max").exists():
            limit, period = both.read_text().split()
        else:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.ceil(int(limit) / int(period)) if int(limit) > 0 else None
    except (OSError, ValueError):  # no such files, or the limit is "max"
        return None


def map_chunks(function: Callable[[slice], Any], length: int, bytes_per_item: int, chunk_bytes: int = 2**20) -> list:
    """`[function(slice) for each chunk]` of `length` items, in order.

    Args:
        function: called with a slice of the items; inside `threads`, from several threads.
        length: how many items there are.
        bytes_per_item: how much memory one item needs inside `function`.
        chunk_bytes: how much memory one chunk may need, so that it stays in the cache. Chunks are
            equal parts, and their number never depends on that of the threads.

    Returns:
        list of what `function` returned.
    """
    count = math.ceil(length * bytes_per_item / chunk_bytes)
    if count > 1:
        count = 4 * math.ceil(count / 4)  # so that 2 or 4 threads finish together
    count = max(1, min(length, count))
    slices = [slice(i * length // count, (i + 1) * length // count) for i in range(count)]
    results: list = [None] * count
    failed: list[int] = []
    waiting = deque(range(count))  # a deque is safe between threads, also in a Python without the interpreter's lock

    def work():
        while waiting and not failed:
            try:
                i = waiting.popleft()
            except IndexError:  # another thread took the last chunk
                return
            try:
                results[i] = function(slices[i])
            except BaseException:
                failed.append(i)
                raise

    pool, workers = _workers.get() or (None, 1)
    others = [pool.submit(work) for _ in range(min(workers, count) - 1)] if pool else []
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():
                other.result()
    return results


def empty(shape: Sequence[int], like: np.ndarray) -> np.ndarray:
    """A new array of like's dtype that begins with a cache line, which makes matrix products a tenth faster."""
    size = math.prod(shape) * like.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(like.dtype).reshape(shape)
