"""Two optimisers of one run must not have a parameter in common, nor a stream from which both draw their steps."""

import gc
import itertools
from collections.abc import Iterator, Mapping
from types import CellType, FrameType, FunctionType
from typing import Any

from minibn.optim import Optimizer

HOLDERS = (Iterator, CellType, FrameType, FunctionType, list, tuple)  # what is searched for iterators


def check_apart(optimizers: Mapping[str, Optimizer]) -> None:
    """Raise ValueError if two optimisers would update one parameter, or draw their steps from one stream in turns."""
    parameters: dict[int, str] = {}
    streams: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        for i, parameter in enumerate(optimizer.parameters):
            if (other := parameters.setdefault(id(parameter), name)) != name:
                raise ValueError(f"parameter {i} of the optimiser {name!r} is one of {other!r}, too, and would be updated twice "
                                 "per step; give each parameter to one optimiser")
        for stream in _inside(optimizer.schedule):
            if (other := streams.setdefault(id(stream), name)) != name:
                raise ValueError(f"the optimisers {other!r} and {name!r} have one schedule, of which each would get every second "
                                 "step; make one for each, or give each one of itertools.tee(schedule)")


def _inside(stream: Any) -> Iterator[Any]:
    """The iterator and all that it reads: those that it refers to, as the garbage collector sees it.

    Without `repeat`, which gives every reader the same, and without what is behind a `tee`, which
    gives all of it to each.
    """
    seen: set[int] = set()
    waiting = [stream]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, itertools.repeat):
            continue
        seen.add(id(one))
        if isinstance(one, Iterator):
            yield one
        held = [*gc.get_referents(one), *(vars(one).values() if hasattr(one, "__dict__") else ())]
        waiting += [each for each in held if isinstance(each, HOLDERS)]  # the buffer behind a tee is none of them
