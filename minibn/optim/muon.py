"""Muon: momentum whose matrices are made nearly orthogonal (Jordan et al., 2024), in the conventions of `torch.optim.Muon`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, ClassVar

from minibn import backend
from minibn.backend import Array, array_namespace
from minibn.optim.base import FRACTION, NOT_NEGATIVE, Optimizer, StepNumbers

if TYPE_CHECKING:
    from minibn.nn import Parameter

A, B, C = 3.4445, -4.7750, 2.0315  # Newton-Schulz coefficients of Jordan et al.


@dataclass(frozen=True, slots=True)
class MuonStep(StepNumbers):
    """The numbers of one update of a weight matrix W (in, out) with gradient G and velocity V:

        V <- γ V + (1 - γ) G
        U = γ V + (1 - γ) G                                          Nesterov's momentum
        W <- (1 - η λ) W - η √max(1, out/in) orthogonal(U)

    `orthogonal` sets all singular values of U to about 1. A convolution's kernel (kh, kw, in, out)
    is the matrix (kh·kw·in, out), and `in` above is then kh·kw·in.

    Args:
        lr: learning rate η, at least 0.
        momentum: γ, from 0 to below 1.
        weight_decay: λ, at least 0, decoupled.

    Raises:
        ValueError: a number is outside these limits, infinite or NaN.
    """

    lr: float
    momentum: float = 0.95
    weight_decay: float = 0.0

    degree: ClassVar[int] = 0
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "lr": NOT_NEGATIVE, "momentum": FRACTION, "weight_decay": NOT_NEGATIVE}


def orthogonal(u: Array, iterations: int = 5, eps: float = 1e-7) -> Array:
    """Nearly the closest orthogonal matrix to u (rows, columns), by the Newton-Schulz iteration

        X = u / max(|u|, eps);   then, `iterations` times,   X <- a X + (b S + c S²) X,   S = X Xᵀ

    It maps every singular value s to a s + b s³ + c s⁵, five times, which brings it to between
    about 0.7 and 1.2. It is computed in the dtype of u; `torch.optim.Muon` computes it in bfloat16.
    """
    xp = array_namespace(u)
    wide = u.shape[0] <= u.shape[1]
    size = backend.norm([u])
    x = u / xp.astype(xp.maximum(size, xp.full_like(size, eps)), u.dtype)
    x = x if wide else x.T  # S is then the smaller of the two products
    for _ in range(iterations):
        s = x @ x.T
        x = A * x + (B * s + C * (s @ s)) @ x
    return x if wide else x.T


def update(step: MuonStep, w: Array, v: Array, g: Array) -> tuple[Array, Array]:
    """What `MuonStep` says, as code: (weights, velocity, gradient) -> (weights, velocity), of any shape with two or more axes."""
    xp = array_namespace(g)
    v = step.momentum * v + (1 - step.momentum) * g
    u = step.momentum * v + (1 - step.momentum) * g
    rows, columns = prod(w.shape[:-1]), w.shape[-1]
    direction = xp.reshape(orthogonal(xp.reshape(u, (rows, columns))), w.shape)
    return (1 - step.lr * step.weight_decay) * w - step.lr * sqrt(max(1, columns / rows)) * direction, v


class Muon(Optimizer[MuonStep]):
    """Muon for weight matrices and convolution kernels, one `MuonStep` per update.

    Arguments, attributes and errors are those of `Optimizer`; the schedule is an iterable of
    `MuonStep`.

    Attributes:
        velocity: list of arrays, one per parameter.

    Raises:
        ValueError: a parameter has fewer than two axes.

    Example:
        >>> import numpy as np
        >>> from minibn import nn
        >>> w = nn.Parameter(np.zeros((2, 2)))
        >>> muon = Muon([w], [MuonStep(0.1)])
        >>> w.grad = np.array([[0.0, 3.0], [2.0, 0.0]])
        >>> muon.step().lr, np.linalg.svd(w.data, compute_uv=False).round(2)  # 0.1 times about 1
        (0.1, array([0.11, 0.07]))
    """

    step_type = MuonStep
    entries = ("velocity",)
    elementwise = False
    velocity: list[Array]

    def __init__(self, parameters: Iterable["Parameter"], schedule: Iterable[MuonStep]) -> None:
        super().__init__(parameters, schedule)
        for i, parameter in enumerate(self.parameters):
            if len(parameter.data.shape) < 2:
                raise ValueError(f"Muon trains matrices and convolution kernels; parameter {i} is {parameter}. Give biases, "
                                 "gains and other vectors to an AdamW of their own")

    def update(self, step: MuonStep, weight: Array, gradient: Array, *state: Array) -> tuple[Array, Array]:
        """The function `update`, for one parameter."""
        (v,) = state
        return update(step, weight, v, gradient)
