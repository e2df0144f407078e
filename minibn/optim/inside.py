"""What a stream of steps reads, however it is wrapped."""

import gc
from collections.abc import Iterator
from types import CellType, FrameType, FunctionType
from typing import Any

HOLDERS = (Iterator, CellType, FrameType, FunctionType, list, tuple)  # what is searched for iterators


def inside(stream: Any) -> Iterator[Any]:
    """The iterator and all that it reads: those that it refers to, as the garbage collector sees it.

    Without what is behind a `tee`, which gives all of it to each of its readers.

    Example:
        >>> numbers = iter([1, 2, 3])
        >>> any(one is numbers for one in inside(2 * number for number in numbers))
        True
    """
    seen: set[int] = set()
    waiting = [stream]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Iterator):
            yield one
        held = [*gc.get_referents(one), *(vars(one).values() if hasattr(one, "__dict__") else ())]
        waiting += [each for each in held if isinstance(each, HOLDERS)]  # the buffer behind a tee is none of them
