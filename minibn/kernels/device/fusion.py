"""Chains of elementwise operations as one launch, where the library can do that, and arrays that never change."""

from collections.abc import Callable
from functools import cache, lru_cache, wraps
from typing import Any

from minibn.backend import Array, Namespace, array_namespace, device, fuse


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(xp, *arguments)`, called as `function(*arguments)`: one launch on CuPy.

    The function may use operators and `xp`'s elementwise functions only, no shapes, since CuPy
    traces it. Arguments are arrays, which are broadcast, Python floats, and None; results are an
    array or a tuple of arrays.
    """
    @cache
    def compiled(xp):
        return fuse(xp, wraps(function)(lambda *arguments: function(xp, *arguments)))

    @wraps(function)
    def call(*arguments):
        return compiled(array_namespace(*(a for a in arguments if a is not None)))(*arguments)

    return call


def constant(value: float, like: Array) -> Array:
    """A 0-d array of like's dtype and device, made once."""
    return _filled((), value, array_namespace(like), like.dtype, device(like))


def ones(count: int, like: Array) -> Array:
    """A row of ones, (1, count), of like's dtype and device, made once."""
    return _filled((1, count), 1.0, array_namespace(like), like.dtype, device(like))


@lru_cache(maxsize=64)
def _filled(shape: tuple[int, ...], value: float, xp: Namespace, dtype: Any, where: Any) -> Array:
    return xp.full(shape, value, dtype=dtype, device=where)
