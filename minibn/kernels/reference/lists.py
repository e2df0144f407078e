"""What is done to a list of arrays, such as all weights of a network, in its plainest form: array by array."""

from collections.abc import Callable, Sequence

from minibn.backend import Array, array_namespace


def joined(arrays: Sequence[Array]) -> list[Array]:
    """The same numbers in as few arrays as suits the library; here, the list itself."""
    return list(arrays)


def zeros_like(arrays: Sequence[Array]) -> list[Array]:
    """Zeros of the shape, dtype and device of each array."""
    return [array_namespace(x).zeros_like(x) for x in arrays]


def each(function: Callable[..., tuple[Array, ...]], *lists: Sequence[Array]) -> list[list[Array]]:
    """`function` of the first array of every list, of the second, …; the results as lists likewise.

    The function must be elementwise: a number of its results depends on the numbers at that place
    only. Then it makes no difference whether it is given array by array, or many at once as one
    long array.
    """
    found = [function(*arrays) for arrays in zip(*lists, strict=True)]
    return [list(results) for results in zip(*found, strict=True)]
