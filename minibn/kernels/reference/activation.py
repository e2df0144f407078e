"""Activations, in their plainest form; entry by entry, of any shape."""

import math

from minibn.backend import Array, array_namespace, device

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU


def relu(x: Array) -> Array:
    """`y = max(x, 0)`."""
    return array_namespace(x).maximum(x, zero(x))


def relu_backward(dy: Array, y: Array) -> Array:
    """`dx = dy where y > 0, else 0`."""
    return dy * array_namespace(y).astype(y > 0, dy.dtype)


def square(x: Array) -> Array:
    """`y = x²`."""
    return x * x


def square_backward(dy: Array, x: Array) -> Array:
    """`dx = 2 x dy`."""
    return 2 * x * dy


def sigmoid(x: Array) -> Array:
    """`σ(x) = 1 / (1 + exp(-x))`, written so that no exponential overflows."""
    xp = array_namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones_like(e), e) / (1 + e)


def silu(x: Array) -> Array:
    """`y = x σ(x)`."""
    return x * sigmoid(x)


def silu_backward(dy: Array, x: Array) -> Array:
    """`dx = dy σ(x) (1 + x (1 - σ(x)))`."""
    s = sigmoid(x)
    return dy * s * (1 + x * (1 - s))


def swiglu(gate: Array, up: Array) -> Array:
    """`y = silu(gate) up`, of one shape."""
    return silu(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """`dgate = silu'(gate) up dy,  dup = silu(gate) dy`."""
    return silu_backward(dy * up, gate), dy * silu(gate)


def gelu(x: Array) -> Array:
    """`y = x (1 + tanh u) / 2` with `u = √(2/π) (x + 0.044715 x³)`."""
    return x * (1 + array_namespace(x).tanh(SLOPE * (x + CUBIC * x * x * x))) / 2


def gelu_backward(dy: Array, x: Array) -> Array:
    """`dx = dy ((1 + t) + x (1 - t²) √(2/π) (1 + 3 · 0.044715 x²)) / 2` with `t = tanh u`."""
    t = array_namespace(x).tanh(SLOPE * (x + CUBIC * x * x * x))
    return dy * ((1 + t) + x * (1 - t * t) * SLOPE * (1 + 3 * CUBIC * x * x)) / 2


def zero(x: Array) -> Array:
    """The number 0, in the library, dtype and device of x."""
    return array_namespace(x).zeros((), dtype=x.dtype, device=device(x))
