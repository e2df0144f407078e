"""Random arguments for every kernel, one case each, and how results of two implementations are compared."""

import numpy as np
from hypothesis import strategies as st

from minibn import backend
from minibn.kernels import reference
from minibn.testing import distinct

seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 4)


def images(draw, rng, least=1):
    """(N, H, W, C), any two numbers far apart."""
    shape = draw(st.integers(1, 9)), draw(st.integers(least, 7)), draw(st.integers(least, 7)), draw(sizes)
    return distinct(rng, shape)


def convolution(draw, rng):
    """dy, x, W, b, stride, padding."""
    kernel, padding, stride = (draw(st.tuples(st.integers(low, 3), st.integers(low, 3))) for low in (1, 0, 1))
    x = images(draw, rng, 3)
    if draw(st.booleans()):  # a kernel wider than the images, or than the padding
        kernel = tuple(size + 2 * around for size, around in zip(x.shape[1:3], padding, strict=True))
    w = rng.standard_normal((*kernel, x.shape[3], draw(sizes)))
    b = rng.standard_normal(w.shape[3]) if draw(st.booleans()) else None
    dy = rng.standard_normal((len(x), *reference.output_size(x, w, stride, padding), w.shape[3]))
    return dy, x, w, b, stride, padding


def sets(draw, rng):
    """dy, x (B, R, G, S) with means far from 0, μ, 1/σ, γ, β. No σ is far below 1: errors grow with 1/σ."""
    shape = draw(st.sampled_from([1, 2, 5])), draw(st.integers(2, 60)), draw(sizes), draw(sizes)
    dy, x = rng.standard_normal((2, *shape))
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) + 3 * rng.standard_normal((1, 1, *shape[2:]))
    mean, var = reference.moments(x)
    affine = rng.standard_normal((2, *shape[2:])) if draw(st.booleans()) else (None, None)
    return dy, x, mean, reference.inverse_std(mean, var, draw(st.sampled_from([0.0, 0.1]))), *affine


def pooling(draw, rng):
    """dy, x, y, k."""
    k = draw(st.integers(1, 3))
    x = images(draw, rng, k)
    y = reference.max_pool(x, k)
    return rng.standard_normal(y.shape), x, y, k


def affine(draw, rng):
    n, inside, outside = draw(st.integers(1, 9)), draw(sizes), draw(sizes)
    return tuple(rng.standard_normal(shape) for shape in ((n, outside), (n, inside), (inside, outside), (outside,)))


def rows(draw, rng):
    """dy, x (N, …, C), g, ε: a row of zeros among them."""
    shape = (draw(st.integers(1, 9)), *draw(st.sampled_from([(), (3,), (2, 3)])), draw(sizes))
    dy, x = rng.standard_normal((2, *shape))
    x[0] *= draw(st.sampled_from([0.0, 1.0]))
    gain = rng.standard_normal(shape[-1]) if draw(st.booleans()) else None
    return dy, x, gain, draw(st.sampled_from([0.0, 0.1]))


def heads(draw, rng):
    """dy, q (N, T, H, D), k, v (N, T, G, D)."""
    groups, shared = draw(sizes), draw(st.integers(1, 3))
    n, length, size = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(sizes)
    dy, q = rng.standard_normal((2, n, length, groups * shared, size))
    return dy, q, *rng.standard_normal((2, n, length, groups, size))


def lookup(draw, rng):
    """dy (…, C), indices (…), W (V, C); some indices below 0 or above V - 1."""
    shape = draw(st.sampled_from([(7,), (4, 3), (2, 3, 2)]))
    vocabulary, size = draw(sizes), draw(sizes)
    indices = rng.integers(0, vocabulary, shape) + draw(st.sampled_from([0, 0, -1, 1]))
    return rng.standard_normal((*shape, size)), indices, rng.standard_normal((vocabulary, size))


def turns(draw, rng):
    return rng.standard_normal((draw(sizes), draw(sizes), draw(sizes), 2 * draw(sizes))), draw(st.sampled_from([10.0, 10000.0]))


def entries(count):
    return lambda draw, rng: tuple(3 * rng.standard_normal((count, 7, 3, 2, 2)))


def some_arrays(draw, rng, of=None):
    """A list of arrays of several shapes, 0-d among them; or `of` such lists."""
    shapes = draw(st.lists(st.sampled_from([(), (5,), (2, 3), (1, 4, 2)]), min_size=1, max_size=12))
    lists = [[rng.standard_normal(shape) for shape in shapes] for _ in range(of or 1)]
    return lists if of else lists[0]


CASES = {
    "affine": lambda draw, rng: affine(draw, rng)[1:],
    "affine_backward": lambda draw, rng: affine(draw, rng)[:3],
    "sum_rows": lambda draw, rng: (images(draw, rng),),
    "correlate": lambda draw, rng: convolution(draw, rng)[1:],
    "correlate_backward": lambda draw, rng: (lambda dy, x, w, b, *rest: (dy, x, w, *rest))(*convolution(draw, rng)),
    "moments": lambda draw, rng: sets(draw, rng)[1:2],
    "inverse_std": lambda draw, rng: (rng.standard_normal((2, 1, 3, 1)), rng.choice([0.0, 1e-40, 2.0], (2, 1, 3, 1)),
                                      draw(st.sampled_from([0.0, 1e-5]))),
    "normalise": lambda draw, rng: sets(draw, rng)[1:],
    "normalise_backward": lambda draw, rng: (*sets(draw, rng)[:5], draw(st.booleans())),
    "relu": lambda draw, rng: (images(draw, rng),),
    "relu_backward": lambda draw, rng: tuple(rng.standard_normal((2, 7, 3, 2, 2))),
    "add": lambda draw, rng: tuple(rng.standard_normal((2, 7, 3, 2, 2))),
    "global_average_pool": lambda draw, rng: (images(draw, rng),),
    "global_average_pool_backward": lambda draw, rng: (rng.standard_normal((5, 3)), (5, draw(sizes), draw(sizes), 3)),
    "average_pool": lambda draw, rng: pooling(draw, rng)[1::2],
    "average_pool_backward": lambda draw, rng: (lambda dy, x, y, k: (dy, x.shape, k))(*pooling(draw, rng)),
    "max_pool": lambda draw, rng: pooling(draw, rng)[1::2],
    "max_pool_backward": pooling,
    "cross_entropy": lambda draw, rng: (3 * rng.standard_normal((9, 4)), rng.integers(4, size=9)),
    "logistic": lambda draw, rng: (3 * rng.standard_normal(9), rng.choice([-1.0, 1.0], 9)),
    "embed": lambda draw, rng: lookup(draw, rng)[1:],
    "embed_backward": lambda draw, rng: (lambda dy, indices, table: (dy, indices, len(table)))(*lookup(draw, rng)),
    "rms_normalise": lambda draw, rng: rows(draw, rng)[1:],
    "rms_normalise_backward": lambda draw, rng: (lambda dy, x, g, eps: (dy, x, reference.rms_normalise(x, g, eps)[1], g))(
        *rows(draw, rng)),
    "causal_attention": lambda draw, rng: heads(draw, rng)[1:],
    "causal_attention_backward": lambda draw, rng: (lambda dy, *qkv: (dy, *qkv, reference.causal_attention(*qkv)[1]))(
        *heads(draw, rng)),
    "rotate": turns,
    "rotate_backward": turns,
    "gelu": entries(1),
    "gelu_backward": entries(2),
    "silu": entries(1),
    "silu_backward": entries(2),
    "swiglu": entries(2),
    "swiglu_backward": entries(3),
    "square": entries(1),
    "square_backward": entries(2),
    "norm": lambda draw, rng: (some_arrays(draw, rng),),
    "joined": lambda draw, rng: (some_arrays(draw, rng),),
    "zeros_like": lambda draw, rng: (some_arrays(draw, rng),),
    "each": lambda draw, rng: (lambda w, v, g: (w - 0.1 * (0.9 * v + g), 0.9 * v + g), *some_arrays(draw, rng, of=3)),
}
cases = st.composite(lambda draw, name: CASES[name](draw, np.random.default_rng(draw(seeds))))


def flat(result):
    """The arrays of a result, which may be lists of lists, as NumPy."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in flat(part)]
    return [backend.to_numpy(result)]


def assert_equal(ours, theirs, tolerance=1e-12):
    ours, theirs = flat(ours), flat(theirs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))
