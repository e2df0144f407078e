"""Operations on a list of arrays, such as all weights of a network, on a GPU: on one joined array, not one by one."""

import math
from collections.abc import Callable, Sequence

from minibn.backend import Array, array_namespace, device


def zeros_like(arrays: Sequence[Array]) -> list[Array]:
    """`reference.zeros_like`: parts of one array of zeros for each dtype."""
    out: list = [None] * len(arrays)
    for places in _alike(arrays):
        first = arrays[places[0]]
        count = sum(math.prod(arrays[i].shape) for i in places)
        _split(array_namespace(first).zeros(count, dtype=first.dtype, device=device(first)), arrays, places, out)
    return out


def joined(arrays: Sequence[Array]) -> list[Array]:
    """`reference.joined`: one array for each dtype."""
    return [_join(arrays, places) for places in _alike(arrays)]


def each(function: Callable[..., tuple[Array, ...]], *lists: Sequence[Array]) -> list[list[Array]]:
    """`reference.each`: the function is called once for each dtype; the new arrays are parts of what it returns."""
    results: list[list] = []
    for places in _alike(lists[0]):
        found = function(*(_join(arrays, places) for arrays in lists))
        results = results or [[None] * len(lists[0]) for _ in found]
        for whole, out in zip(found, results, strict=True):
            _split(whole, lists[0], places, out)
    return results


def norm(arrays: Sequence[Array]) -> Array:
    """`reference.norm`."""
    squares = []
    for x in joined(arrays):
        wide = array_namespace(x).astype(x, array_namespace(x).float64)
        squares.append(wide @ wide)
    return array_namespace(squares[0]).sqrt(sum(squares[1:], start=squares[0])) if squares else 0.0


def _alike(arrays):
    """Lists of the places of arrays that can be joined: of one library, dtype and device."""
    places: dict = {}
    for i, x in enumerate(arrays):
        places.setdefault((array_namespace(x), str(x.dtype), str(device(x))), []).append(i)
    return list(places.values())


def _join(arrays, places):
    """The arrays at these places as one row of numbers."""
    xp = array_namespace(arrays[places[0]])
    rows = [xp.reshape(arrays[i], (-1,)) for i in places]
    return xp.concat(rows) if len(rows) > 1 else rows[0]


def _split(whole, arrays, places, out):
    """Write the parts of the row `whole`, in the shapes of `arrays`, into the list `out` at these places."""
    xp, start = array_namespace(whole), 0
    for i in places:
        end = start + math.prod(arrays[i].shape)
        out[i] = xp.reshape(whole[start:end], arrays[i].shape)
        start = end
