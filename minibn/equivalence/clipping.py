"""Clipping by the norm of all gradients, where some weights are converted and others are not."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import GeneratorType

from minibn import arguments, backend
from minibn.backend import Array, array_namespace
from minibn.optim import Optimizer
from minibn.optim.inside import inside


def clip_global_norm(optimizers: Iterable[Optimizer] | Mapping[str, Optimizer], max_norm: float, *,
                     scales: Sequence[float] | None = None) -> Array:
    """Clip the gradients of all parameters by their common norm, as the run with weight decay does (Pascanu et al., 2013).

    Converted weights w / P have gradients g̃ = P g. With N the norm of all g, over converted and
    other weights together,

        g̃ <- min(1, max_norm / N) g̃        N² = Σ |g̃ / P|²

    Call it between `backward` and `step`. The factor is the same for all weights, so each g̃ stays
    P g.

    Args:
        optimizers: every optimiser of the model, ordinary ones and those of `undecayed` and
            `converted_for`; a list, or a dict such as `Conversion.optimizers`.
        max_norm: above 0; infinity only measures N.
        scales: P of each optimiser. None: its `scale`. An optimiser on a schedule that was
            converted by hand does not know its P. For SGD that is `frame_after(…).scale`.

    Returns:
        N, the norm before clipping: a 0-d array.

    Raises:
        ValueError: max_norm is not above 0; or an optimiser follows a converted schedule, and
            `scales` are not given.
        TypeError: `optimizers` are none.

    Example:
        >>> import numpy as np
        >>> from minibn import nn, optim
        >>> w = nn.Parameter(np.array([1.0]))
        >>> w.grad = np.array([8.0])
        >>> sgd = optim.SGD([w], [optim.Step(0.1)])
        >>> float(clip_global_norm([sgd], 4.0)), float(w.grad[0])
        (8.0, 4.0)
    """
    if not arguments.number("clip_global_norm: max_norm", max_norm) > 0:
        raise ValueError(f"clip_global_norm needs max_norm above 0, got {max_norm}")
    if isinstance(optimizers, Mapping):
        optimizers = optimizers.values()
    optimizers = list(arguments.iterable("clip_global_norm: optimizers", optimizers, "a list or a dict of optimisers"))
    for optimizer in optimizers:
        arguments.of_kind("clip_global_norm: an item of optimizers", optimizer, Optimizer, "an Optimizer")
    scales = [_scale(optimizer) for optimizer in optimizers] if scales is None else scales
    parameters = [parameter for optimizer in optimizers for parameter in optimizer.parameters]
    norm = backend.norm([parameter.grad / scale for optimizer, scale in zip(optimizers, scales, strict=True)
                         for parameter in optimizer.parameters])
    if max_norm == math.inf:
        return norm
    xp = array_namespace(norm)
    limit = xp.full_like(norm, float(max_norm))
    factor = limit / xp.maximum(norm, limit)
    for parameter in parameters:
        parameter.grad = parameter.grad * xp.astype(factor, parameter.grad.dtype)
    return norm


def _scale(optimizer):
    """P of an optimiser, unless it does not know that its schedule is a converted one."""
    if "scale" not in vars(optimizer):
        for stream in inside(optimizer.schedule):
            frame = stream.gi_frame if isinstance(stream, GeneratorType) else None
            if frame is not None and frame.f_globals["__name__"].startswith("minibn.equivalence."):
                raise ValueError(f"clip_global_norm: this {type(optimizer).__name__} follows a converted schedule, and does not "
                                 "know its P. Give scales, with frame_after(schedule, steps).scale for it, or make it with "
                                 "training.convert or equivalence.converted_for")
    return optimizer.scale
