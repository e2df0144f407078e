"""Clipping by the norm of all gradients, where some weights are converted and others are not."""

from collections.abc import Iterable, Sequence

from minibn import arguments, backend
from minibn.backend import Array, array_namespace
from minibn.optim import Optimizer


def clip_global_norm(optimizers: Iterable[Optimizer], max_norm: float, *, scales: Sequence[float] | None = None) -> Array:
    """Clip the gradients of all parameters by their common norm, as the run with weight decay does (Pascanu et al., 2013).

    Converted weights w / P have gradients g̃ = P g. With N the norm of all g, over converted and
    other weights together,

        g̃ <- min(1, max_norm / N) g̃        N² = Σ |g̃ / P|²

    Call it between `backward` and `step`. The factor is the same for all weights, so each g̃ stays
    P g.

    Args:
        optimizers: every optimiser of the model, ordinary ones and those of `undecayed`.
        max_norm: above 0.
        scales: P of each optimiser. None: its `scale`. A converted schedule of SGD needs
            `frame_after(…).scale` here.

    Returns:
        N, the norm before clipping: a 0-d array.

    Raises:
        ValueError: max_norm is not above 0.

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
    optimizers = list(optimizers)
    scales = [optimizer.scale for optimizer in optimizers] if scales is None else scales
    parameters = [parameter for optimizer in optimizers for parameter in optimizer.parameters]
    norm = backend.norm([parameter.grad / scale for optimizer, scale in zip(optimizers, scales, strict=True)
                         for parameter in optimizer.parameters])
    xp = array_namespace(norm)
    limit = xp.full_like(norm, float(max_norm))
    factor = limit / xp.maximum(norm, limit)
    for parameter in parameters:
        parameter.grad = parameter.grad * xp.astype(factor, parameter.grad.dtype)
    return norm
