"""Tables of rows: Embedding, Unembedding and Positions."""

from typing import Any

from numpy.random import Generator

from minibn import arguments, backend, kernels
from minibn.backend import Array, array_namespace
from minibn.degree import Degree
from minibn.nn.linear import normal
from minibn.nn.module import Module, Parameter


def _table(rng, sizes, dtype):
    """A Parameter of these sizes with numbers from N(0, 1), as PyTorch starts an embedding."""
    return Parameter(normal(rng, sizes, dtype).astype(dtype))


class Embedding(Module):
    """Row `W[i]` of a table for each integer i: `y[…] = W[x[…]]`.

    Backward: row v of dW is the sum of dy over all places where x is v: `dW = onehot(x)ᵀ dy`. The
    sum is taken in a fixed order, so two runs agree to the last bit. Integers have no gradient:
    `backward` returns None.

    Shapes: x (N, …) integers from 0 to V - 1, W (V, C), y (N, …, C).

    Args:
        num_embeddings: V.
        embedding_dim: C.
        rng: numpy.random.Generator for W, whose numbers are from N(0, 1).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is empty, or an integer is out of range. On a GPU, that check would
            have to wait for the device. There, the row of such an integer is NaN.
        TypeError: the input does not hold integers.
        RuntimeError: backward before forward.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, rng: Generator, dtype: str = "float32") -> None:
        sizes = arguments.sizes("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = sizes
        self.weight = _table(rng, sizes, dtype)

    def forward(self, x: Array) -> Array:
        """(N, …) -> (N, …, C)."""
        xp = array_namespace(x)
        if not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"{self} needs integers, got {backend.dtype_name(x)}")
        if x.ndim == 0 or 0 in x.shape:
            raise ValueError(f"{self} needs input of shape (N, …), of which no axis is empty, got {tuple(x.shape)}")
        x = xp.astype(x, xp.int64, copy=False)  # which holds every index, as uint8 does not
        if backend.is_on_host(x):
            low, high = int(xp.min(x)), int(xp.max(x))
            if low < 0 or high >= self.num_embeddings:
                raise ValueError(f"{self} needs integers from 0 to {self.num_embeddings - 1}, got {low} to {high}")
        return self.keep(kernels.of(x).embed(x, self.weight.data), x)

    def backward(self, dy: Array) -> Any:
        """(N, …, C) -> None."""
        (x,) = self.kept(dy)
        self.weight.grad += kernels.of(dy).embed_backward(dy, x, self.num_embeddings)

    def degree(self, x: Degree) -> Degree:
        """The degree of the table."""
        return x.looked_up(self.weight)

    def __repr__(self):
        return f"Embedding({self.num_embeddings}, {self.embedding_dim})"


class Unembedding(Module):
    """Logits from the table of an `Embedding`, shared with it ("tied"): `y = x Wᵀ` (Press & Wolf, 2017).

    Backward: `dx = dy W`, and `dW = Σ dyᵀ x` is added to what the `Embedding` adds.

    A tied table is in no scale-invariant set, since the logits grow with it.
    `invariance.symmetries` finds the symmetries that remain.

    Shapes: x (N, …, C), W (V, C), y (N, …, V).

    Args:
        embedding: the `Embedding`, at another place of the same network. The two share one
            Parameter. So make the `Unembedding` after the network was moved to a device, or move
            both together.

    Raises:
        ValueError: the input is not (N, …, C).
        TypeError: the input's dtype is not the table's, or `embedding` is none.
        RuntimeError: backward before forward.
    """

    def __init__(self, embedding: Embedding) -> None:
        if not isinstance(embedding, Embedding):
            raise TypeError(f"Unembedding: embedding must be the Embedding whose table it shares, got {embedding!r}")
        self.weight = embedding.weight

    def forward(self, x: Array) -> Array:
        """(N, …, C) -> (N, …, V)."""
        w, xp = self.weight.data, array_namespace(x)
        self._check_input(x, ("N", *("…",) * (x.ndim - 2), w.shape[1]), w)
        rows = xp.reshape(x, (-1, w.shape[1]))
        y = kernels.of(x).affine(rows, w.T, None)
        return self.keep(xp.reshape(y, (*x.shape[:-1], w.shape[0])), rows)

    def backward(self, dy: Array) -> Array:
        """(N, …, V) -> (N, …, C)."""
        (rows,) = self.kept(dy)
        w, xp = self.weight.data, array_namespace(dy)
        dx, dw, _ = kernels.of(dy).affine_backward(xp.reshape(dy, (-1, w.shape[0])), rows, w.T)
        self.weight.grad += dw.T
        return xp.reshape(dx, (*dy.shape[:-1], w.shape[1]))

    def degree(self, x: Degree) -> Degree:
        """Degree d -> d + a_W."""
        return x.times(self.weight)


class Positions(Module):
    """A learned row added at each position: `y[n, t] = x[n, t] + W[t]` (Gehring et al., 2017; GPT-2).

    Backward: `dx = dy`, `dW[t] = Σ_n dy[n, t]`, and 0 at positions that x does not reach.

    Shapes: x, y (N, T, C), W (L, C), T at most L.

    Args:
        max_length: L.
        num_features: C.
        rng: numpy.random.Generator for W, whose numbers are from N(0, 1).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, T, C), or longer than L.
        TypeError: the input's dtype is not the table's.
        RuntimeError: backward before forward.
    """

    def __init__(self, max_length: int, num_features: int, *, rng: Generator, dtype: str = "float32") -> None:
        sizes = arguments.sizes("Positions", max_length=max_length, num_features=num_features)
        self.max_length, self.num_features = sizes
        self.weight = _table(rng, sizes, dtype)

    def forward(self, x: Array) -> Array:
        """(N, T, C) -> the same shape."""
        self._check_input(x, ("N", "T", self.num_features), self.weight.data)
        if x.shape[1] > self.max_length:
            raise ValueError(f"{self} has rows for {self.max_length} positions, got sequences of {x.shape[1]}: cut them, or "
                             "give it a larger max_length")
        return self.keep(x + self.weight.data[: x.shape[1], :])

    def backward(self, dy: Array) -> Array:
        """(N, T, C) -> the same shape."""
        self.kept(dy)
        self.weight.grad[: dy.shape[1], :] += array_namespace(dy).sum(dy, axis=0)
        return dy

    def degree(self, x: Degree) -> Degree:
        """The table must scale as x does."""
        return x.joined(x.looked_up(self.weight), self)

    def __repr__(self):
        return f"Positions({self.max_length}, {self.num_features})"
