"""Operations on a list of arrays, such as all weights of a network, in their plainest form: array by array."""

from collections.abc import Callable, Sequence

from minibn.backend import Array, array_namespace


def joined(arrays: Sequence[Array]) -> list[Array]:
    """The same numbers in as few arrays as suits the library; here, the list itself."""
    return list(arrays)


def zeros_like(arrays: Sequence[Array]) -> list[Array]:
    """Zeros of the shape, dtype and device of each array."""
    return [array_namespace(x).zeros_like(x) for x in arrays]


def each(function: Callable[..., tuple[Array, ...]], *lists: Sequence[Array]) -> list[list[Array]]:
    """`function` of the first array of every list, then of the second, and so on. The results are lists, too.

    The function must be elementwise: each number of its results depends only on the numbers at the
    same place. Then it makes no difference whether it is called array by array, or once with many
    arrays joined into one.
    """
    found = [function(*arrays) for arrays in zip(*lists, strict=True)]
    return [list(results) for results in zip(*found, strict=True)]
