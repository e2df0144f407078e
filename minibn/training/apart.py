"""Two optimisers of one run must not have a parameter in common, nor a stream from which both draw their steps."""

import itertools
from collections.abc import Mapping

from minibn.optim import Optimizer
from minibn.optim.inside import inside


def check_apart(optimizers: Mapping[str, Optimizer]) -> None:
    """Raise ValueError if two optimisers would update one parameter, or draw their steps from one stream in turns."""
    parameters: dict[int, str] = {}
    streams: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        for i, parameter in enumerate(optimizer.parameters):
            if (other := parameters.setdefault(id(parameter), name)) != name:
                raise ValueError(f"parameter {i} of the optimiser {name!r} is one of {other!r}, too, and would be updated twice "
                                 "per step; give each parameter to one optimiser")
        for stream in inside(optimizer.schedule):
            endless = isinstance(stream, itertools.repeat)  # it gives every reader the same
            if not endless and (other := streams.setdefault(id(stream), name)) != name:
                raise ValueError(f"the optimisers {other!r} and {name!r} have one schedule, of which each would get every second "
                                 "step; make one for each, or give each one of itertools.tee(schedule)")
