"""The arithmetic of arrays: one function per mathematical operation, in three implementations.

    | reference | the equations, on whole arrays: to read, to step through, and to test the others against |
    | cpu       | the same for NumPy: chunks that stay in the cache, on several threads                   |
    | device    | the same for CuPy, PyTorch and others: whole arrays, few launches                       |

The functions of all three have the same names and signatures. A layer calls `kernels.of(x)`, which
picks the implementation for arrays like x. A layer never cuts arrays into chunks, and a kernel
knows nothing about layers.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from minibn.backend import Array, is_numpy_array
from minibn.kernels import cpu, device, reference
from minibn.kernels.threads import cores, threads

__all__ = ["cores", "cpu", "device", "is_plain", "norm", "of", "plain", "reference", "threads"]

_plain: ContextVar[bool] = ContextVar("plain", default=os.environ.get("MINIBN_PLAIN", "0") not in ("", "0"))


def of(x: Array) -> ModuleType:
    """The implementation for arrays like x: `reference` inside `plain()`, `cpu` for NumPy, `device` for the rest."""
    return reference if _plain.get() else cpu if is_numpy_array(x) else device


def is_plain() -> bool:
    """Whether this thread is inside `plain()`, or the process was started with `MINIBN_PLAIN=1`."""
    return _plain.get()


@contextmanager
def plain() -> Iterator[None]:
    """Compute everything in this thread with `kernels.reference`: each line is an equation.

    For a debugger: a breakpoint in a layer's `backward` is then one call away from the equation of
    its docstring, on whole arrays. Also, `backward` refuses to run if an array that `forward` kept
    was changed in between. Training is about five times slower. The environment variable
    `MINIBN_PLAIN=1` does the same for a whole process.

    Example:
        >>> import numpy as np
        >>> from minibn import nn
        >>> conv = nn.Conv2d(1, 1, 3, rng=np.random.default_rng(0))
        >>> with plain():
        ...     conv(np.ones((1, 3, 3, 1), dtype="float32")).shape
        (1, 1, 1, 1)
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def norm(arrays: Iterable[Array]) -> Array:
    """`√(Σ x²)` over all numbers of a list of arrays, as `reference.norm` says."""
    arrays = list(arrays)
    return of(arrays[0]).norm(arrays) if arrays else 0.0
