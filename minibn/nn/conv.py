"""Conv2d."""

import math
from typing import TypeAlias

from numpy.random import Generator

from minibn import arguments, kernels
from minibn.backend import Array
from minibn.degree import Degree
from minibn.nn.linear import kaiming_normal
from minibn.nn.module import Module, Parameter

Pair: TypeAlias = tuple[int, int]  # of numbers for (height, width)


class Conv2d(Module):
    """Convolution (as everywhere in deep learning: cross-correlation) of channels-last images.

    `y[n, i, j, o] = b[o] + Σ_{u, v, c} x[n, i·s + u - p, j·s + v - p, c] W[u, v, c, o]`, x being 0
    outside.

    Shapes: x (N, H, W, C_in), W (kh, kw, C_in, C_out), b (C_out,), y (N, OH, OW, C_out) with
    `OH = (H + 2p - kh) // s + 1`. PyTorch has x as (N, C, H, W) and W as (C_out, C_in, kh, kw).

    Backward: each pixel of dy goes back to the pixels of x that it was computed from. With x[…]
    those pixels, for one tap (u, v) of the kernel,
        dx[…] += dy @ W[u, v]ᵀ        dW[u, v] = Σ_{n, i, j} x[…]ᵀ dy        db = Σ_{n, i, j} dy
    `kernels.reference` has these lines; `kernels.cpu` computes them as a few large matrix products.

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size, stride, padding: a number, or a pair for (height, width).
        bias: whether to add b, which starts at zero.
        rng: numpy.random.Generator for the weight (`kaiming_normal`).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, H, W, C_in) or smaller than the kernel, or an argument is
            out of range.
        TypeError: the input's dtype is not the weight's, or rng is no generator.
        RuntimeError: backward before forward.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Pair, stride: int | Pair = 1,
                 padding: int | Pair = 0, bias: bool = False, *, rng: Generator, dtype: str = "float32") -> None:
        self.kernel_size = kh, kw = arguments.pair("Conv2d: kernel_size", kernel_size, 1)
        self.stride = arguments.pair("Conv2d: stride", stride, 1)
        self.padding = arguments.pair("Conv2d: padding", padding, 0)
        arguments.yes_or_no(bias=bias)
        sizes = arguments.sizes("Conv2d", kernel_height=kh, kernel_width=kw, in_channels=in_channels,
                                out_channels=out_channels)
        _, _, self.in_channels, self.out_channels = sizes
        self.weight = Parameter(kaiming_normal(rng, sizes, math.prod(sizes[:3]), dtype))
        self.bias = Parameter(self.weight.data[0, 0, 0] * 0) if bias else None

    def forward(self, x: Array) -> Array:
        """(N, H, W, C_in) -> (N, OH, OW, C_out)."""
        self._check_input(x, ("N", "H", "W", self.in_channels), self.weight.data)
        if any(n + 2 * p < k for n, p, k in zip(x.shape[1:3], self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"{self} needs images of at least its kernel's size, padding included; got {tuple(x.shape)}")
        bias = None if self.bias is None else self.bias.data
        y = kernels.of(x).correlate(x, self.weight.data, bias, self.stride, self.padding)
        return self.keep(y, x)

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, C_out) -> (N, H, W, C_in)."""
        (x,) = self.kept(dy)
        dx, dw = kernels.of(dy).correlate_backward(dy, x, self.weight.data, self.stride, self.padding)
        self.weight.grad += dw
        if self.bias is not None:
            self.bias.grad += kernels.of(dy).sum_rows(dy)
        return dx

    def degree(self, x: Degree) -> Degree:
        """Degree d -> d + a_W. With padding, a bias before it is no longer one number per channel: the border differs."""
        return (x.settled(self) if max(self.padding) else x).times(self.weight).plus(self.bias)

    def __repr__(self):
        return (f"Conv2d({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}, padding={self.padding})")
