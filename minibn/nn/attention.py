"""CausalSelfAttention."""

import math
from collections.abc import Callable

from numpy.random import Generator

from minibn import arguments, kernels
from minibn.backend import Array, array_namespace
from minibn.degree import Degree
from minibn.nn.linear import Linear
from minibn.nn.module import Module


class CausalSelfAttention(Module):
    """Each position gets a mean of the values of itself and those before it (Vaswani et al., 2017):

        q = x W_q     k = x W_k     v = x W_v        each seen as heads of D channels
        A_ij = exp(q_i · k_j / √D) / Σ_{l ≤ i} exp(q_i · k_l / √D) for j ≤ i, else 0        in each head
        y = (A v) W_o

    Backward, in each head, with du = dy W_oᵀ and then through the three products with x:
        dv = Aᵀ du      dA = du vᵀ      dS_ij = A_ij (dA_ij - Σ_l dA_il A_il)      dq = dS k / √D      dk = dSᵀ q / √D

    Options: with fewer heads of keys and values than of queries, neighbouring query heads share one
    (grouped queries, Ainslie et al., 2023). `qk_norm` normalises each head of q and of k (Henry et
    al., 2020), which makes W_q and W_k scale-invariant. `rope` then turns pairs of channels by
    angles that grow with the position (Su et al., 2021; see `kernels.reference.rotate`). The four
    matrices are parameters of their own, without biases, since each has symmetries of its own.

    Shapes: x, y (N, T, C); W_q (C, H D), W_k and W_v (C, G D), W_o (H D, C), with D = C / H.

    Args:
        num_features: C.
        num_heads: H, which must divide C.
        num_kv_heads: G, which must divide H; None: H.
        qk_norm: makes the normalisation of a head, called as `qk_norm(D)` for q and for k, such as
            `nn.RMSNorm`.
        rope: base of the angles, such as 10,000. None: positions are told apart only by the mask.
        rng: numpy.random.Generator for the weights (`kaiming_normal`).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, T, C), or heads do not divide as they must.
        TypeError: the input's dtype is not the weights', or qk_norm makes no modules.
        RuntimeError: backward before forward.
    """

    def __init__(self, num_features: int, num_heads: int, num_kv_heads: int | None = None, *,
                 qk_norm: Callable[[int], Module] | None = None, rope: float | None = None, rng: Generator,
                 dtype: str = "float32") -> None:
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        num_features, num_heads, kv_heads = (
            arguments.whole(f"CausalSelfAttention: {name}", value, 1)
            for name, value in (("num_features", num_features), ("num_heads", num_heads), ("num_kv_heads", kv_heads)))
        if num_features % num_heads or num_heads % kv_heads:
            raise ValueError("CausalSelfAttention: num_heads must divide num_features, and num_kv_heads num_heads; got "
                             f"num_features={num_features}, num_heads={num_heads}, num_kv_heads={num_kv_heads}")
        if isinstance(qk_norm, Module) or not (qk_norm is None or callable(qk_norm)):
            raise TypeError("CausalSelfAttention: qk_norm must make a module, called as qk_norm(D) for q and for k, such as "
                            f"nn.RMSNorm; got {qk_norm!r}")
        size = num_features // num_heads
        rope = None if rope is None else arguments.number("CausalSelfAttention: rope", rope)
        if rope is not None and (size % 2 or not 1 < rope < math.inf):
            raise ValueError("CausalSelfAttention: rope must be above 1 and needs an even number of channels per head, got "
                             f"rope={rope} and {size} channels")
        self.num_features, self.num_heads, self.num_kv_heads, self.rope = num_features, num_heads, kv_heads, rope
        self.q, self.k, self.v = (Linear(num_features, heads * size, bias=False, rng=rng, dtype=dtype)
                                  for heads in (num_heads, kv_heads, kv_heads))
        self.q_norm: Module | None = None if qk_norm is None else qk_norm(size)
        self.k_norm: Module | None = None if qk_norm is None else qk_norm(size)
        self.out = Linear(num_features, num_features, bias=False, rng=rng, dtype=dtype)

    def forward(self, x: Array) -> Array:
        """(N, T, C) -> the same shape."""
        self._check_input(x, ("N", "T", self.num_features), self.q.weight.data)
        q, k = (self._turned(self._normalised(self._heads(linear(x)), norm))
                for linear, norm in ((self.q, self.q_norm), (self.k, self.k_norm)))
        v = self._heads(self.v(x))
        u, a = kernels.of(x).causal_attention(q, k, v)
        return self.keep(self.out(array_namespace(x).reshape(u, x.shape)), q, k, v, a)

    def backward(self, dy: Array) -> Array:
        """(N, T, C) -> the same shape."""
        q, k, v, a = self.kept(dy)
        kernel = kernels.of(dy)
        gradients = list(kernel.causal_attention_backward(self._heads(self.out.backward(dy)), q, k, v, a))
        for i, norm in enumerate((self.q_norm, self.k_norm)):
            if self.rope is not None:
                gradients[i] = kernel.rotate_backward(gradients[i], self.rope)
            if norm is not None:
                gradients[i] = self._by_rows(norm.backward, gradients[i])
        xp = array_namespace(dy)
        dq, dk, dv = (linear.backward(xp.reshape(d, (*dy.shape[:2], -1)))
                      for linear, d in zip((self.q, self.k, self.v), gradients, strict=True))
        return kernel.add(kernel.add(dq, dk), dv)

    def degree(self, x: Degree) -> Degree:
        """The softmax needs q · k of degree 0. Its weighted means do not change the degree of v or of its biases."""
        q, k, v = self.q.degree(x), self.k.degree(x), self.v.degree(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.degree(q), self.k_norm.degree(k)
        q.multiplied(k, self).fixed(self, "softmax")
        return self.out.degree(v)

    def _heads(self, x):
        """(N, T, heads D) -> (N, T, heads, D)."""
        return array_namespace(x).reshape(x, (*x.shape[:2], -1, self.num_features // self.num_heads))

    def _normalised(self, x, norm):
        return x if norm is None else self._by_rows(norm, x)

    def _turned(self, x):
        return x if self.rope is None else kernels.of(x).rotate(x, self.rope)

    def _by_rows(self, function, x):
        """`function` of the rows (D,) of all heads, positions and sequences."""
        xp = array_namespace(x)
        return xp.reshape(function(xp.reshape(x, (-1, x.shape[-1]))), x.shape)

    def __repr__(self):
        return (f"CausalSelfAttention({self.num_features}, {self.num_heads}, {self.num_kv_heads}, qk_norm={self.q_norm}, "
                f"rope={self.rope})")
