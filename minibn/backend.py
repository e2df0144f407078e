"""Array libraries and devices: what differs between NumPy, CuPy, PyTorch and array-api-strict.

Everything else takes its array namespace from its inputs with `array_namespace` and uses names of
the array API standard (https://data-apis.org/array-api), so that the same lines run on every
library. What the standard lacks is here under a name of its own. minibn needs version 2023.12 of
the standard or a later one.

The CPU queues work for the GPU and goes on. Code that reads a number waits until everything in the
queue is done. So a step of training reads no number: losses and norms stay 0-d arrays on the GPU,
until `read` fetches many of them at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from array_api_compat import (
    device,
    is_array_api_strict_namespace,
    is_cupy_array,
    is_cupy_namespace,
    is_numpy_array,
    is_torch_array,
    is_torch_namespace,
    to_device,
)

__all__ = ["Array", "BackendError", "LIBRARIES", "Namespace", "array_namespace", "asarray", "convert", "detach", "device",
           "dtype_name", "fuse", "is_floating", "is_numpy_array", "is_on_host", "library", "move", "read", "to_numpy"]

# An array of NumPy, CuPy, PyTorch or array-api-strict. To a type checker it is Any: the standard
# has no class for it, the hints of these libraries differ, and a protocol of every operator and
# attribute that is used here would be a file of its own.
Array: TypeAlias = Any
Namespace: TypeAlias = Any  # the module with such a library's functions, as `array_namespace` gives it

LIBRARIES = ("numpy", "cupy", "torch")  # to train with; `library` knows array-api-strict too, to check with


def __getattr__(name):
    """`threads`, `cores` and `norm` live in `minibn.kernels`, and can still be imported from here."""
    if name in ("threads", "cores", "norm"):
        return getattr(import_module("minibn.kernels"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def array_namespace(*arrays: Array) -> Namespace:
    """The functions of the arrays' library, by the names of the array API standard.

    That is `array_api_compat.array_namespace`. It takes longer than the arithmetic of small arrays,
    so NumPy's are found here.

    Raises:
        TypeError: the arrays are of several libraries, or of none that is known.
    """
    if arrays and all(type(x) is np.ndarray for x in arrays):
        return _numpy()
    return array_api_compat.array_namespace(*arrays)


@cache
def _numpy():
    """The namespace of NumPy, which takes longer to import than the rest of minibn, at its first use."""
    return import_module("array_api_compat.numpy")


def is_floating(x: Array) -> bool:
    """Whether the array's numbers are real floating-point ones."""
    return array_namespace(x).isdtype(x.dtype, "real floating")


def dtype_name(x: Array) -> str:
    """Name of an array's dtype in the array API standard, such as "float32"."""
    return str(x.dtype).rsplit(".", 1)[-1]


def detach(x: Array) -> Array:
    """`x` without its history: if PyTorch tracks it for gradients, the same numbers in a tensor that is not tracked.

    minibn computes gradients itself. If PyTorch tracked the numbers, one graph would grow over all
    steps of training.
    """
    return x.detach() if is_torch_array(x) and x.requires_grad else x


def to_numpy(x: Array) -> np.ndarray:
    """`x` as a NumPy array in main memory, from any array library."""
    if is_cupy_array(x) or is_torch_array(x):
        x = to_device(detach(x), "cpu")
    elif is_array_api_strict_namespace(strict := array_namespace(x)):
        x = to_device(x, strict.Device("CPU_DEVICE"))
    return np.asarray(x)


def fuse(xp: Namespace, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of elementwise operations of `xp`, as one launch if the library can do that (CuPy); else unchanged."""
    return import_module("cupy").fuse(function) if is_cupy_namespace(xp) else function


def is_on_host(x: Array) -> bool:
    """Whether `x` is in main memory, where reading a number does not wait for a device."""
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
    x = detach(x)
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
    x = detach(x)
    own = array_namespace(x)
    xp = own if xp is None else array_namespace(xp.empty(0))
    if is_numpy_array(x) and not x.dtype.isnative:  # of another byte order, which no other library has
        x = x.astype(x.dtype.newbyteorder("="))
    name = dtype or dtype_name(x)
    if xp is not own and is_torch_namespace(xp):  # which has next to no functions of these
        if name == "uint64" and (to_numpy(x) > np.iinfo(np.int64).max).any():
            raise ValueError("a uint64 above the largest int64 cannot be moved to PyTorch, which computes with int64")
        name = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(name, name)
    dtype = getattr(xp, name)
    if xp is not own:
        return xp.asarray(to_numpy(x), dtype=dtype, device=device, copy=True)
    return xp.astype(x if device is None else to_device(x, device), dtype, copy=True)


class BackendError(RuntimeError):
    """The array library asked for is not installed, or has no device here to run on."""


def library(name: str) -> tuple[Namespace, Any]:
    """(namespace, device) of an array library by name.

    If there are several GPUs, it is the library's current one, which is usually the first. To
    choose another, set the environment variable `CUDA_VISIBLE_DEVICES=1`, or run everything inside
    `with cupy.cuda.Device(1):` or `with torch.cuda.device(1):`. minibn computes on one GPU.

    CuPy compiles each kernel at its first use. If nothing has been compiled yet, a line on stderr
    says so.

    Args:
        name: "numpy"; "cupy"; "torch", on its GPU if it has one; or, for checks,
            "array_api_strict", on the second of its devices, where it is an error to mix in an
            array of the first.

    Raises:
        ValueError: another name.
        BackendError: the library is not installed, or CuPy has no GPU that works; the message is
            one sentence.
    """
    packages = {"cupy": "'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'", "torch": "torch", "array_api_strict": "array-api-strict"}
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
            float((found.ones((2, 2)) @ found.ones((2, 2)))[0, 0])  # allocates, multiplies, waits
        except Exception as error:  # without a driver, a GPU or the CUDA compiler they are of many types
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BackendError(f"backend 'cupy' was asked for but finds no GPU it can use here ({why}): run it where there is an "
                               "NVIDIA GPU with a driver for this CuPy, or choose 'numpy' or 'torch'") from error
        _announce_compilation()
    return found, where


@cache
def _announce_compilation():
    """Once per process: say that the first steps will be slow, unless CuPy's folder has compiled kernels already."""
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache").expanduser()
    if sum(1 for _ in islice(folder.glob("*.cubin"), 30)) < 30:  # the check above compiles one or two, training some 60
        print(f"minibn: CuPy compiles its kernels at their first use, so the first steps take up to a minute longer; "
              f"later runs find them in {folder}", file=sys.stderr)
