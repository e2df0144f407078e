"""Normalisation: BatchNorm, LayerNorm, GroupNorm and InstanceNorm on one core.

All four do the same thing to different sets of numbers. With M numbers in a set,
    μ = Σ x / M        σ² = Σ (x - μ)² / M        x̂ = (x - μ) / √(σ² + ε)        y = γ x̂ + β
    dβ = Σ dy          dγ = Σ dy x̂                dx = (dx̂ - Σ dx̂ / M - x̂ Σ dx̂ x̂ / M) / √(σ² + ε),  dx̂ = γ dy
where the sums of dβ and dγ run over everything that shares a channel. Images are seen as (B, R, C), rows R of channels C
for each of B blocks, and a set is all the rows of one block and one group of neighbouring channels:

    |              | B | R     | channels in a set |
    | BatchNorm    | 1 | N·H·W | 1                 |
    | InstanceNorm | N | H·W   | 1                 |
    | GroupNorm    | N | H·W   | C / num_groups    |
    | LayerNorm    | N | H·W   | C                 |

ε = 0 is legal, and is what makes a network exactly scale-invariant: y(c x) = y(x) for c > 0. A set whose numbers are all
equal, up to rounding that ε does not cover, gives x̂ = 0 and dx = 0. In float32 σ may lie between about 1e-19 and 1e19.

y is computed as `x scale + shift`, with two numbers a channel. Rounding is then relative to |μ| / σ, as in PyTorch: 2e-5 where
that is 100, in float32.
"""

import math

from minibn import backend
from minibn.backend import Array, array_namespace, device, into, map_chunks, sum_rows
from minibn.degree import Degree
from minibn.nn.module import Module, Parameter


class _Normalisation(Module):
    """The core. `blocks_are_images` tells whether statistics are taken for each image or over the whole batch."""

    blocks_are_images = True

    def __init__(self, num_features: int, num_groups: int, eps: float, affine: bool, dtype: str) -> None:
        if num_features < 1 or num_groups < 1 or num_features % num_groups:
            raise ValueError(f"{type(self).__name__}: num_features must be above 0 and divisible by num_groups, "
                             f"got {num_features} and {num_groups}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"{type(self).__name__}: eps must be a number of at least 0, got {eps}")
        self.num_features, self.num_groups, self.eps = num_features, num_groups, eps
        ones = backend.np.ones(num_features, dtype=dtype)
        self.weight = Parameter(ones) if affine else None
        self.bias = Parameter(ones * 0) if affine else None

    def forward(self, x: Array) -> Array:
        """(N, …, C) -> the same shape."""
        like = self.weight.data if self.weight else getattr(self, "running_mean", None)
        self._check_input(x, ("N", *"HWD"[: max(x.ndim - 2, 0)], self.num_features), like)
        mean, var = self._statistics(x)
        inverse = self._inverse_std(mean, var)
        xp = array_namespace(x)
        scale = inverse if self.weight is None else inverse * self.weight.data
        shift = -mean * scale if self.bias is None else self.bias.data - mean * scale
        rows, scale, shift = _widen(x, scale, shift)
        y = xp.empty(rows.shape, dtype=x.dtype, device=device(x))

        def normalise(s):  # y = x scale + shift, two passes over the numbers
            out = y[s, ...]
            into(out, xp.multiply, rows[s, ...], self._of(s, scale))
            out += self._of(s, shift)

        _map(normalise, rows)
        self._keep(x, mean, inverse, self._fixed_statistics())
        return xp.reshape(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """(N, …, C) -> the same shape."""
        x, mean, inverse, fixed = self._take(dy, self._kept and self._kept[0].shape)
        xp = array_namespace(dy)
        rows, wide_mean = _widen(x, mean)
        d = xp.reshape(dy, rows.shape)

        def sums(s):
            product = rows[s, ...] - self._of(s, wide_mean)
            product *= d[s, ...]
            return self._sum(d[s, ...]), self._sum(product)

        sum_dy, sum_dy_x = self._total(_map(sums, rows))
        sum_dy_x = sum_dy_x * inverse  # Σ dy x̂
        gamma = 1.0
        if self.weight is not None:
            gamma = self.weight.data
            self.weight.grad += xp.sum(sum_dy_x, axis=(0, 1))
        if self.bias is not None:
            self.bias.grad += xp.sum(sum_dy, axis=(0, 1))
        scale = inverse * gamma
        if fixed:
            return dy * scale[0, 0, :]
        slope = self._set_mean(sum_dy_x * gamma, x) * inverse**2
        shift = mean * slope - self._set_mean(sum_dy * gamma, x) * inverse
        _, scale, slope, shift = _widen(x, scale, slope, shift)
        dx = xp.empty(rows.shape, dtype=dy.dtype, device=device(dy))

        def differentiate(s):  # dx = dy scale - (x - μ) slope - (Σ dx̂ / M) / √(σ² + ε)
            out = dx[s, ...]
            into(out, xp.multiply, d[s, ...], self._of(s, scale))
            out -= rows[s, ...] * self._of(s, slope)
            out += self._of(s, shift)

        _map(differentiate, rows)
        return xp.reshape(dx, x.shape)

    def degree(self, x: Degree) -> Degree:
        """0, whatever it was; then γ and β. Statistics of single channels take a bias away with the mean."""
        return x.normalised(self, mean=self.num_groups == self.num_features).times(self.weight).plus(self.bias)

    def _statistics(self, x):
        """μ and σ² of each set, repeated for each of its channels: (B, 1, C).

        The corrected two-pass algorithm (Chan, Golub & LeVeque, 1983): a first mean m is accurate enough to subtract; what
        is left of the mean then corrects both, μ = m + Σ (x - m) / M and σ² = Σ (x - m)² / M - (μ - m)².
        """
        if self._set_size(x) < 2:
            raise ValueError(f"{self} would normalise over one number, which is always 0; give it more than "
                             f"{'one row' if x.ndim == 2 else 'one pixel'}, input is {tuple(x.shape)}")
        (rows,) = _widen(x)
        (total,) = self._total(_map(lambda s: [self._sum(rows[s, ...])], rows))
        first = self._set_mean(total, x)
        _, m = _widen(x, first)

        def moments(s):
            centred = rows[s, ...] - self._of(s, m)
            total = self._sum(centred)
            centred *= centred
            return total, self._sum(centred)

        rest, square = (self._set_mean(sums, x) for sums in self._total(_map(moments, rows)))
        xp = array_namespace(x)
        return first + rest, xp.maximum(square - rest**2, xp.zeros_like(square))

    def _inverse_std(self, mean, var):
        """1 / √(σ² + ε), and 0 where that is rounding error, below 4 ulps of μ: the set is constant."""
        xp = array_namespace(var)
        noise = (4 * xp.finfo(var.dtype).eps * mean) ** 2
        constant = var + self.eps <= noise
        return xp.where(constant, xp.zeros_like(var), 1 / xp.sqrt(xp.where(constant, xp.ones_like(var), var + self.eps)))

    def _fixed_statistics(self):
        return False

    def _of(self, s, statistic):
        """The part of a (B, 1, …) array that belongs to the images `s`."""
        return statistic[s, ...] if self.blocks_are_images else statistic

    def _sum(self, rows):
        """Sum over the rows of each block: (n, R, C) -> (n, C), or (1, C) if the whole batch is one block."""
        return sum_rows(rows if self.blocks_are_images else array_namespace(rows).reshape(rows, (1, -1, rows.shape[-1])))

    def _total(self, chunks):
        """Sums (b, kC) of each chunk of images -> sums (B, 1, C), in the order of the chunks."""
        xp = array_namespace(chunks[0][0])
        totals = [xp.concat(parts, axis=0) for parts in zip(*chunks, strict=True)]
        totals = [xp.sum(xp.reshape(t, (t.shape[0], -1, self.num_features)), axis=1, keepdims=True) for t in totals]
        return totals if self.blocks_are_images else [xp.sum(t, axis=0, keepdims=True) for t in totals]

    def _set_mean(self, sums, x):
        """Channel sums (B, 1, C) -> the mean over each set, repeated for each of its channels: (B, 1, C)."""
        xp = array_namespace(sums)
        size = self.num_features // self.num_groups
        sums = xp.reshape(sums, (-1, 1, self.num_groups, size))
        return xp.repeat(xp.sum(sums, axis=-1) / self._set_size(x), size, axis=-1)

    def _set_size(self, x):
        """M: how many numbers are normalised together."""
        return math.prod(x.shape[1:] if self.blocks_are_images else x.shape) // self.num_groups

    def __repr__(self):
        return f"{type(self).__name__}({self.num_features}, eps={self.eps}, affine={self.weight is not None})"


def _widen(x, *statistics):
    """(N, …, C) seen as (N, R/k, kC), and statistics (B, 1, C) repeated k times to match.

    The numbers are the same, but NumPy's inner loop over the last axis is long enough to be fast.
    """
    xp = array_namespace(x)
    rows, channels = math.prod(x.shape[1:-1]), x.shape[-1]
    k = math.gcd(rows, max(1, 512 // channels))
    return [xp.reshape(x, (x.shape[0], rows // k, k * channels))] + [xp.tile(stat, (1, 1, k)) for stat in statistics]


def _map(function, rows):
    return map_chunks(function, rows, math.prod(rows.shape[1:]))


class BatchNorm(_Normalisation):
    """Normalise each channel over the batch and all positions (Ioffe & Szegedy, 2015); over all axes but the last.

    In training mode with the batch's own statistics, which are also averaged into the buffers
        running_mean <- (1 - momentum) running_mean + momentum μ
        running_var  <- (1 - momentum) running_var  + momentum σ² M / (M - 1)
    as PyTorch does; in evaluation mode with those.

    Shapes: x (N, C) or (N, H, W, C); weight γ, bias β, running_mean and running_var (C,).

    Args:
        num_features: C.
        eps: ε, added to the variance; 0 is legal.
        momentum: weight of the newest batch in the running statistics.
        affine: whether to have γ (starts at 1) and β (starts at 0).
        dtype: "float32" or "float64".

    Raises:
        ValueError: a wrong shape, or one number a channel in training mode.
        TypeError: the input's dtype is not the parameters'.
        RuntimeError: backward before forward.
    """

    blocks_are_images = False
    buffers = ("running_mean", "running_var")

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, *,
                 dtype: str = "float32") -> None:
        super().__init__(num_features, num_features, eps, affine, dtype)
        if not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm: momentum must lie between 0 and 1, got {momentum}")
        self.momentum = momentum
        self.running_mean = backend.np.zeros(num_features, dtype=dtype)
        self.running_var = backend.np.ones(num_features, dtype=dtype)

    def _statistics(self, x):
        if not self.training:
            return self.running_mean[None, None, :], self.running_var[None, None, :]
        mean, var = super()._statistics(x)
        m, size = self.momentum, self._set_size(x)
        self.running_mean = (1 - m) * self.running_mean + m * mean[0, 0, :]
        self.running_var = (1 - m) * self.running_var + m * var[0, 0, :] * (size / (size - 1))
        return mean, var

    def _fixed_statistics(self):
        return not self.training


class GroupNorm(_Normalisation):
    """Normalise each group of neighbouring channels of each image (Wu & He, 2018).

    Shapes: x (N, C) or (N, H, W, C); weight γ and bias β (C,).

    Args:
        num_groups: number of groups; must divide C.
        num_features: C.
        eps, affine, dtype, errors: as in `BatchNorm`.
    """

    def __init__(self, num_groups: int, num_features: int, eps: float = 1e-5, affine: bool = True, *,
                 dtype: str = "float32") -> None:
        super().__init__(num_features, num_groups, eps, affine, dtype)


class LayerNorm(_Normalisation):
    """Normalise each image over all positions and channels (Ba, Kiros & Hinton, 2016): over all axes but the first.

    γ and β are one number a channel, shapes and arguments as in `BatchNorm`: `GroupNorm` with one group.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, *, dtype: str = "float32") -> None:
        super().__init__(num_features, 1, eps, affine, dtype)


class InstanceNorm(_Normalisation):
    """Normalise each channel of each image over its positions (Ulyanov et al., 2016).

    Shapes and arguments as in `BatchNorm`: `GroupNorm` with a group for each channel.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True, *, dtype: str = "float32") -> None:
        super().__init__(num_features, num_features, eps, affine, dtype)
