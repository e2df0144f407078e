"""Arrays, devices and threads: the only file that knows which of them are in use.

Everything else takes its array namespace from its inputs with `array_namespace` and uses names of the
array API standard (https://data-apis.org/array-api), so NumPy, CuPy, PyTorch and array-api-strict arrays run
the same lines. What the standard lacks is here under a name of its own. The oldest version of it that will do is 2023.12,
which brought `maximum`, `repeat` and `tile`.

On a GPU the CPU queues work and goes on; whoever asks for a number waits until everything queued is done. So a step of training
asks for none: losses and norms stay 0-d arrays where they are, until `read` fetches all that are wanted at once.
"""

import ctypes
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_array_api_strict_namespace,
    is_cupy_array,
    is_numpy_array,
    is_torch_array,
    to_device,
)
from threadpoolctl import threadpool_limits

__all__ = ["Array", "BackendError", "LIBRARIES", "Namespace", "array_namespace", "asarray", "convert", "cores", "device",
           "dtype_name", "elementwise", "into", "is_floating", "is_on_host", "library", "map_chunks", "move", "norm", "read",
           "sum_rows", "threads", "to_numpy"]

# An array of NumPy, CuPy, PyTorch or array-api-strict. To a type checker it is Any: the standard has no class for it, the hints
# of these libraries differ, and a protocol of every operator and attribute that is used here would be a file of its own.
Array: TypeAlias = Any
Namespace: TypeAlias = Any  # the module with such a library's functions, as `array_namespace` gives it

LIBRARIES = ("numpy", "cupy", "torch")  # to train with; `library` knows array-api-strict too, to check with


# (pool, its size) of the surrounding `threads` block; each thread has its own
_workers: ContextVar[tuple[ThreadPoolExecutor, int] | None] = ContextVar("workers", default=None)


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Run chunked work on `count` Python threads, this one among them, and every BLAS call on one.

    Many small matrix products on one BLAS thread each are faster than one large product on many, and
    give the same bits whatever the number of threads, because a chunk's size never depends on it and partial
    sums are added in the order of the chunks. Outside such a block everything runs in the calling thread,
    which is what one wants in a debugger; BLAS is then left as it is.

    From the first such block on, memory that is freed inside stays with the process until the outermost block ends: otherwise the
    C library (glibc; others are left alone) gives activations back to the system after each step, which clears every page anew
    in the next one, a tenth of its time. Setting one of glibc's own `MALLOC_…` environment variables keeps this off.

    Args:
        count: number of Python threads, at least 1. None: as many as the surrounding block has, or else
            one for each core this process may use.

    Raises:
        ValueError: `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"threads: count must be at least 1, got {count}")
    if count is None and _workers.get() is not None:
        yield
        return
    libc, outermost = _libc(), _workers.get() is None
    count = count or cores()
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        token = _workers.set((pool, count))
        try:
            yield
        finally:
            _workers.reset(token)
            if libc and outermost:
                libc.malloc_trim(0)  # gives all of it back


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _workers.set(None))  # its threads are not in the child


@cache
def _libc():
    """glibc, told to keep freed memory, or None where there is another C library or the user has told it something else."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim") and not any(name.startswith("MALLOC_") for name in os.environ):
            libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that it takes
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            return libc
    return None


def map_chunks(function: Callable[[slice], Any], x: Array, numbers_per_item: int, chunk_bytes: int = 2**20) -> list:
    """`[function(slice) for each chunk]` of the first axis of `x`, in order.

    Args:
        function: called with a slice of the first axis; called from several threads inside `threads`.
        x: the array whose first axis is cut. Only NumPy arrays are: on a GPU one chunk is fastest.
        numbers_per_item: how many numbers of x's dtype one item of the first axis becomes inside `function`.
        chunk_bytes: at most so much memory for one chunk, so that it stays in the cache. Chunks are equal parts, and their
            number never depends on that of the threads.

    Returns:
        list of what `function` returned.
    """
    length = x.shape[0]
    count = math.ceil(length * numbers_per_item * x.itemsize / chunk_bytes) if is_numpy_array(x) else 1
    count = min(length, count if count == 1 else 4 * math.ceil(count / 4))  # equal parts that 2 or 4 threads finish together
    slices = [slice(i * length // count, (i + 1) * length // count) for i in range(count)]
    results: list = [None] * count
    failed: list[int] = []
    tickets = itertools.count()

    def work():
        while (i := next(tickets)) < count and not failed:  # whoever is free takes the next chunk; `next` holds the GIL
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


def into(out: Array, function: Callable[..., Array], *arguments: Array) -> None:
    """`out[...] = function(*arguments)`, without a temporary array where the library can write into `out`."""
    if is_numpy_array(out) or is_cupy_array(out):
        function(*arguments, out=out)
    else:
        out[...] = function(*arguments)


def elementwise(function: Callable[..., None], x: Array, *others: Array) -> Array:
    """A new array like x, its numbers made from those at the same place of x and `others` (all of one shape), in chunks.

    Args:
        function: called as `function(out, *parts)`, writes a chunk of the new array into `out`, with `into` for example.
    """
    xp = array_namespace(x)
    y = xp.empty(x.shape, dtype=x.dtype, device=device(x))
    map_chunks(lambda s: function(y[s, ...], *(array[s, ...] for array in (x, *others))), x, math.prod(x.shape[1:]))
    return y


def sum_rows(x: Array) -> Array:
    """Sum over the last axis but one, `(…, R, C) -> (…, C)`, as the product `ones(R) @ x`.

    Summing a tall array over its rows this way is about ten times faster in NumPy than `sum(axis=0)`.
    """
    xp = array_namespace(x)
    return xp.ones(x.shape[-2], dtype=x.dtype, device=device(x)) @ x


def norm(arrays: Iterable[Array]) -> Array:
    """Euclidean norm of all numbers in a list of arrays: a 0-d float64 array where they are (of NumPy: a float).

    Squares are taken in float64, so float32 weights as large as 1e38 do not overflow.
    """
    squares = []
    for x in arrays:
        xp = array_namespace(x)
        wide = xp.astype(xp.reshape(x, (-1,)), xp.float64)
        squares.append(xp.vecdot(wide, wide))
    return xp.sqrt(sum(squares[1:], start=squares[0])) if squares else 0.0  # of arrays 2^k times as large exactly 2^k times


def is_floating(x: Array) -> bool:
    """Whether the array's numbers are real floating-point ones."""
    return array_namespace(x).isdtype(x.dtype, "real floating")


def dtype_name(x: Array) -> str:
    """Name of an array's dtype in the array API standard, such as "float32"."""
    return str(x.dtype).rsplit(".", 1)[-1]


def to_numpy(x: Array) -> np.ndarray:
    """`x` as a NumPy array in main memory, from any array library."""
    if is_cupy_array(x) or is_torch_array(x):
        x = to_device(x, "cpu")
    elif is_array_api_strict_namespace(strict := array_namespace(x)):
        x = to_device(x, strict.Device("CPU_DEVICE"))
    return np.asarray(x)


def is_on_host(x: Array) -> bool:
    """Whether `x` is in main memory, where looking at a number waits for nothing."""
    return not is_cupy_array(x) and (not is_torch_array(x) or device(x).type == "cpu")


def read(numbers: Sequence) -> list:
    """A list of numbers as Python ints and floats; the 0-d arrays among them come from their device in one transfer."""
    waiting = [n for n in numbers if not isinstance(n, Real)]
    if waiting:
        xp = array_namespace(*waiting)
        arrived = iter(to_numpy(xp.stack([xp.astype(n, xp.float64) for n in waiting])).tolist())
    return [next(arrived) if not isinstance(n, Real) else n if isinstance(n, int) else float(n) for n in numbers]


def move(x: Array, like: Array | None) -> Array:
    """`x` in the library and on the device of the array `like`, its dtype kept; x itself if it is there, or `like` is None."""
    if like is None or (array_namespace(x) is array_namespace(like) and device(x) == device(like)):
        return x
    xp, where = array_namespace(like), device(like)
    if is_torch_array(like) and where.type == "cuda" and is_on_host(x):
        # a copy from ordinary memory would wait for the GPU, one from pinned memory is queued
        return convert(x, xp, device="cpu").pin_memory().to(where, non_blocking=True)
    return convert(x, xp, device=where)


def asarray(x: Array, like: Array) -> Array:
    """A copy of `x` (from any array library) in the namespace, dtype and device of the array `like`."""
    return convert(x, array_namespace(like), dtype_name(like), device(like))


def convert(x: Array, xp: Namespace | None = None, dtype: str | None = None, device: Any = None) -> Array:
    """A copy of array `x` in namespace `xp`, with dtype named `dtype`, on `device`; None leaves each as it is."""
    own = array_namespace(x)
    xp = own if xp is None else array_namespace(xp.empty(0))
    dtype = getattr(xp, dtype or dtype_name(x))
    if xp is not own:
        return xp.asarray(to_numpy(x), dtype=dtype, device=device, copy=True)
    return xp.astype(x if device is None else to_device(x, device), dtype, copy=True)


class BackendError(RuntimeError):
    """The array library asked for is not installed, or has no device here to run on."""


def library(name: str) -> tuple[Namespace, Any]:
    """(namespace, device) of an array library by name.

    Args:
        name: "numpy"; "cupy"; "torch", on its GPU if it has one; or, for checks, "array_api_strict", on the second of its
            devices, where it is an error to mix in an array of the first.

    Raises:
        ValueError: another name.
        BackendError: the library is not installed, or CuPy has no GPU that works; the message is one sentence.
    """
    packages = {"cupy": "cupy-cuda12x or cupy-cuda13x", "torch": "torch", "array_api_strict": "array-api-strict"}
    if name not in ("numpy", *packages):
        raise ValueError(f"backend must be one of {['numpy', *packages]}, got {name!r}")
    if find_spec(name) is None:
        raise BackendError(f"backend {name!r} was asked for but is not installed: pip install {packages[name]}")
    found, where = import_module(name if name == "array_api_strict" else f"array_api_compat.{name}"), None
    if name == "torch":
        where = "cuda" if found.cuda.is_available() else "cpu"
    elif name == "array_api_strict":
        where = found.Device("device1")
    elif name == "cupy":
        try:
            found.zeros(1) + 1  # allocates and computes
        except Exception as error:  # without a driver, a GPU or the CUDA compiler they are of many types
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BackendError(f"backend 'cupy' was asked for but finds no GPU it can use here ({why}): run it where there is an "
                               "NVIDIA GPU with a driver for this CuPy, or choose 'numpy' or 'torch'") from error
    return found, where
