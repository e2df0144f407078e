"""Normalisation: BatchNorm, LayerNorm, GroupNorm and InstanceNorm on one core.

All four normalise sets of numbers, and differ in what makes up a set. With M numbers in a set,
    μ = Σ x / M        σ² = Σ (x - μ)² / M        x̂ = (x - μ) / √(σ² + ε)        y = γ x̂ + β
    dβ = Σ dy          dγ = Σ dy x̂                dx = (dx̂ - Σ dx̂ / M - x̂ Σ dx̂ x̂ / M) / √(σ² + ε),  dx̂ = γ dy
The sums of dβ and dγ run over all numbers of a channel. Images are reshaped to (B, R, G, S): B
blocks of R rows, G groups of S channels. A set is all rows of one block and all channels of one
group:

    |              | B | R     | G          | S              |
    | BatchNorm    | 1 | N·H·W | C          | 1              |
    | InstanceNorm | N | H·W   | C          | 1              |
    | GroupNorm    | N | H·W   | num_groups | C / num_groups |
    | LayerNorm    | N | H·W   | 1          | C              |
    |  of each position | N·H·W | 1 | 1     | C              |

ε = 0 is legal, and makes a network exactly scale-invariant: y(c x) = y(x) for c > 0. If all numbers
of a set are equal, up to rounding, x̂ and dx are 0. In float32, σ may be about 1e-19 to 1e19.
"""

import math

import numpy as np

from minibn import arguments, kernels
from minibn.backend import Array, array_namespace
from minibn.degree import Degree
from minibn.nn.module import Module, Parameter


class _Normalisation(Module):
    """The core. Statistics are taken over the whole "batch", per "image" or per "position", as `per` says."""

    per = "image"

    def __init__(self, num_groups: int, num_features: int, eps: float = 1e-5, affine: bool = True, *,
                 dtype: str = "float32") -> None:
        name = type(self).__name__
        num_features, eps = arguments.of_norm(name, num_features, eps, affine, dtype)
        num_groups = arguments.whole(f"{name}: num_groups", num_groups, 1)
        if num_features % num_groups:
            raise ValueError(f"{name}: num_groups must divide num_features, got {num_groups} and {num_features}")
        self.num_features, self.num_groups, self.eps = num_features, num_groups, eps
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None

    def forward(self, x: Array) -> Array:
        """(N, …, C) -> the same shape."""
        self._check_input(x, ("N", *"HWD"[: max(x.ndim - 2, 0)], self.num_features), next(self.arrays(), None))
        sets, kernel = self._sets(x), kernels.of(x)
        mean, var = self._statistics(sets)
        inverse = kernel.inverse_std(mean, var, self.eps)
        y = kernel.normalise(sets, mean, inverse, self._grouped(self.weight), self._grouped(self.bias))
        fixed = self.per == "batch" and not self.training  # then μ and σ are constants
        return self.keep(array_namespace(x).reshape(y, x.shape), sets, mean, inverse, fixed)

    def backward(self, dy: Array) -> Array:
        """(N, …, C) -> the same shape."""
        sets, mean, inverse, fixed = self.kept(dy)
        xp = array_namespace(dy)
        dx, dgamma, dbeta = kernels.of(dy).normalise_backward(xp.reshape(dy, sets.shape), sets, mean, inverse,
                                                              self._grouped(self.weight), fixed)
        for parameter, gradient in ((self.weight, dgamma), (self.bias, dbeta)):
            if parameter is not None:
                parameter.grad += xp.reshape(gradient, (-1,))
        return xp.reshape(dx, dy.shape)

    def degree(self, x: Degree) -> Degree:
        """0, whatever it was; then γ and β. Statistics of single channels remove a bias with the mean."""
        return x.normalised(self, mean=self.num_groups == self.num_features).times(self.weight).plus(self.bias)

    def _statistics(self, sets):
        """μ and σ² of each set, (B, 1, G, 1)."""
        if sets.shape[1] * sets.shape[3] < 2:
            raise ValueError(f"{self} would normalise over one number, which is always 0; give it more than one row or "
                             f"pixel per set: its input is seen as {tuple(sets.shape)}, (blocks, rows, groups, channels)")
        return kernels.of(sets).moments(sets)

    def _sets(self, x):
        """x seen as (B, R, G, S)."""
        blocks = {"batch": 1, "image": x.shape[0], "position": math.prod(x.shape[:-1])}[self.per]
        return array_namespace(x).reshape(x, (blocks, -1, self.num_groups, self.num_features // self.num_groups))

    def _grouped(self, parameter):
        """γ or β seen as (G, S); None if there is none."""
        return None if parameter is None else array_namespace(parameter.data).reshape(parameter.data, (self.num_groups, -1))

    def __repr__(self):
        return f"{type(self).__name__}({self.num_features}, eps={self.eps}, affine={self.weight is not None})"


class BatchNorm(_Normalisation):
    """Normalise each channel over the batch and all positions (Ioffe & Szegedy, 2015): over all axes but the last.

    In training mode it uses the batch's own statistics, and averages them into the buffers, as PyTorch does:
        running_mean <- (1 - momentum) running_mean + momentum μ
        running_var  <- (1 - momentum) running_var  + momentum σ² M / (M - 1)
    In evaluation mode it uses the buffers.

    Shapes: x (N, C) or (N, H, W, C); weight γ, bias β, running_mean and running_var (C,).

    Args:
        num_features: C.
        eps: ε, added to the variance; 0 is legal.
        momentum: weight of the newest batch in the running statistics.
        affine: whether to have γ (starts at 1) and β (starts at 0), of `dtype` "float32" or "float64".

    Raises:
        ValueError, TypeError, RuntimeError: as every layer does; also for one number per channel in training mode.
    """

    per = "batch"
    buffers = ("running_mean", "running_var")

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, *,
                 dtype: str = "float32") -> None:
        super().__init__(num_features, num_features, eps, affine, dtype=dtype)
        if momentum is None or not 0 <= arguments.number("BatchNorm: momentum", momentum) <= 1:
            raise ValueError(f"BatchNorm: momentum must lie between 0 and 1, got {momentum}; for plain averages over all "
                             "batches use training.update_bn")
        self.momentum = float(momentum)
        self.running_mean, self.running_var = np.zeros(num_features, dtype), np.ones(num_features, dtype)

    def _statistics(self, sets):
        xp, shape = array_namespace(sets), (1, 1, self.num_features, 1)
        if not self.training:
            return xp.reshape(self.running_mean, shape), xp.reshape(self.running_var, shape)
        mean, var = super()._statistics(sets)
        m, size = self.momentum, sets.shape[1]
        self.running_mean = (1 - m) * self.running_mean + m * xp.reshape(mean, (-1,))
        self.running_var = (1 - m) * self.running_var + m * (size / (size - 1)) * xp.reshape(var, (-1,))
        return mean, var


class GroupNorm(_Normalisation):
    """Normalise each of `num_groups` groups of neighbouring channels of each image (Wu & He, 2018).

    Shapes, the other arguments and errors are those of `BatchNorm`."""


class LayerNorm(_Normalisation):
    """Normalise each image over all positions and channels (Ba, Kiros & Hinton, 2016): over all axes but the first.

    It is `GroupNorm` with one group. γ and β have one number per channel; shapes and arguments as in `BatchNorm`.

    Args:
        each_position: normalise over the last axis alone, as PyTorch's `LayerNorm(num_features)` does.
            None: do not, and refuse sequences (N, T, C), of which it is unclear which is meant.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, *, each_position: bool | None = None,
                 dtype: str = "float32") -> None:
        super().__init__(1, num_features, eps, affine, dtype=dtype)
        if each_position is not None:
            arguments.yes_or_no(each_position=each_position)
        self.each_position = each_position
        self.per = "position" if each_position else "image"

    def _sets(self, x):
        if self.each_position is None and x.ndim == 3:
            raise ValueError(f"{self} was given {tuple(x.shape)}. For sequences (N, T, C), of which each position is normalised "
                             "by itself, say each_position=True; for one-dimensional images, each_position=False")
        return super()._sets(x)


class InstanceNorm(_Normalisation):
    """Normalise each channel of each image over its positions (Ulyanov et al., 2016).

    It is `GroupNorm` with one group per channel. Shapes and arguments as in `BatchNorm`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, *, dtype: str = "float32") -> None:
        super().__init__(num_features, num_features, eps, affine, dtype=dtype)
