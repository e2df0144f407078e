"""What is not elementwise: making, reshaping, joining, summing, multiplying. Signatures are CuPy's."""

import numpy as np

from cupy_double.array import launched, ndarray, raw, view, wrap
from cupy_double.meter import METER
from cupy_double.ufuncs import UFUNCS

# ---- new arrays ----


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype)


def zeros(shape, dtype=float, order="C"):
    return launched("memset", np.zeros(shape, dtype))


def ones(shape, dtype=float, order="C"):
    return launched("fill", np.ones(shape, dtype))


def full(shape, fill_value, dtype=None, order="C"):
    return launched("fill", np.full(shape, raw(fill_value), dtype))


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    return wrap(np.empty_like(prototype.numbers, dtype, shape=shape))


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return launched("memset", np.zeros_like(a.numbers, dtype, shape=shape))


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return launched("fill", np.ones_like(a.numbers, dtype, shape=shape))


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    return launched("fill", np.full_like(a.numbers, raw(fill_value), dtype, shape=shape))


def arange(start, stop=None, step=1, dtype=None):
    return launched("arange", np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy=bool(copy))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        return obj.astype(dtype or obj.dtype, copy=copy)
    if isinstance(obj, list | tuple) and [x for x in obj if isinstance(x, ndarray)]:
        raise NotImplementedError("the stand-in makes no array of a list of arrays")
    return wrap(np.array(obj, dtype))  # a transfer from the host, which CuPy queues


# ---- the same numbers, seen otherwise ----


def reshape(a, newshape, order="C", *, copy=None):
    found = a.numbers.reshape(newshape)
    shared = not found.size or np.may_share_memory(found, a.numbers)
    return view(a, found) if shared else launched("copy", found, a)


def transpose(a, axes=None):
    return view(a, a.numbers.transpose(axes))


def swapaxes(a, axis1, axis2):
    return view(a, a.numbers.swapaxes(axis1, axis2))


def moveaxis(a, source, destination):
    return view(a, np.moveaxis(a.numbers, source, destination))


def flip(a, axis=None):
    return view(a, np.flip(a.numbers, axis))


def expand_dims(a, axis):
    return view(a, np.expand_dims(a.numbers, axis))


def squeeze(a, axis=None):
    return view(a, np.squeeze(a.numbers, axis))


def broadcast_to(array, shape):
    return view(array, np.broadcast_to(array.numbers, shape))


# ---- joined, picked ----


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    arrays = list(tup)
    for x in arrays:
        if not isinstance(x, ndarray):
            raise TypeError("Only cupy arrays can be concatenated")
        if x.ndim == 0:
            raise TypeError("zero-dimensional arrays cannot be concatenated")
    whole = wrap(np.concatenate([x.numbers for x in arrays], axis))
    small = whole.nbytes < 2**21 * len(arrays)
    alike = {x.dtype for x in arrays} == {whole.dtype}
    for _ in range(1 if len(arrays) > 8 and alike and small else len(arrays)):  # else one copy per array
        METER.launch("concatenate")
    METER.counts.bytes["concatenate"] += 2 * whole.nbytes
    return whole


def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    return concatenate([expand_dims(x, axis) for x in tup], axis)


def take(a, indices, axis=None, out=None):
    found = wrap(np.take(a.numbers, indices.numbers, axis))
    source = a if a.nbytes < found.nbytes else found  # what is read again and again is in the GPU's cache
    METER.launch("take", [indices.numbers, source.numbers], [found.numbers])
    return found


def astype(x, dtype, /, *, copy=True):
    return x.astype(dtype, copy=copy)


# ---- reductions: one launch each ----


def _reduce(name, a, axis, keepdims, **options):
    if METER.fusing:
        raise NotImplementedError(f"the stand-in has no {name} in a fused function")
    if not isinstance(a, ndarray):
        raise TypeError(f"cupy.{name} needs a cupy.ndarray, got {type(a)}")
    with np.errstate(all="ignore"):
        return launched(name, getattr(np, name)(a.numbers, axis=axis, keepdims=keepdims, **options), a)


def sum(a, axis=None, dtype=None, out=None, keepdims=False):
    return _reduce("sum", a, axis, keepdims, dtype=dtype)


def mean(a, axis=None, dtype=None, out=None, keepdims=False):
    return _reduce("mean", a, axis, keepdims, dtype=dtype)


def prod(a, axis=None, dtype=None, out=None, keepdims=False):
    return _reduce("prod", a, axis, keepdims, dtype=dtype)


def max(a, axis=None, out=None, keepdims=False):
    return _reduce("max", a, axis, keepdims)


def min(a, axis=None, out=None, keepdims=False):
    return _reduce("min", a, axis, keepdims)


def any(a, axis=None, out=None, keepdims=False):
    return _reduce("any", a, axis, keepdims)


def all(a, axis=None, out=None, keepdims=False):
    return _reduce("all", a, axis, keepdims)


def argmax(a, axis=None, dtype=None, out=None, keepdims=False):
    return _reduce("argmax", a, axis, keepdims)


def argmin(a, axis=None, dtype=None, out=None, keepdims=False):
    return _reduce("argmin", a, axis, keepdims)


# ---- products ----


def matmul(a, b, /, *, out=None):
    """A product of two matrices copies an operand that is contiguous in neither order; a stack of them any that is not."""
    if not (isinstance(a, ndarray) and isinstance(b, ndarray)):
        raise TypeError(f"Unsupported type {type(b) if isinstance(a, ndarray) else type(a)}")
    if not (a.ndim and b.ndim):
        raise ValueError("matmul: Scalar operands are not allowed, use '*' instead")
    with np.errstate(all="ignore"):
        product = np.matmul(a.numbers, b.numbers)
    if a.ndim <= 2 >= b.ndim and product.size == 1:  # CuPy multiplies and sums
        return reshape(sum(reshape(a, (-1,)) * reshape(b, (-1,))), product.shape)
    stacked = a.ndim > 2 or b.ndim > 2
    for x in (a, b):
        if not (x.flags.c_contiguous or (x.flags.f_contiguous and not stacked)):
            METER.launch("copy", [x.numbers], [x.numbers])
    if stacked and a.shape[:-2] != b.shape[:-2]:
        for _ in range(3):
            METER.launch("pointers of matrices")
    return launched("product", product, a, b)


def tensordot(a, b, axes=2):
    """By way of one matrix product, whose operands `reshape` copies where it must."""
    axes = axes if isinstance(axes, tuple) else (tuple(range(a.ndim - axes, a.ndim)), tuple(range(axes)))
    left, right = ([i for i in range(x.ndim) if i not in summed] for x, summed in zip((a, b), axes, strict=True))
    shape = [a.shape[i] for i in left] + [b.shape[i] for i in right]
    size = int(np.prod([a.shape[i] for i in axes[0]]))
    rows = reshape(transpose(a, [*left, *axes[0]]), (-1, size))
    columns = reshape(transpose(b, [*axes[1], *right]), (size, -1))
    return reshape(matmul(rows, columns), shape)


def _matmul(self, other):
    return matmul(self, other)


ndarray.__matmul__ = _matmul
ndarray.__rmatmul__ = lambda self, other: matmul(other, self)
for _name in ("sum", "mean", "max", "min", "any", "all", "reshape"):
    setattr(ndarray, _name, globals()[_name])
abs = UFUNCS["absolute"]


def round(a, decimals=0, out=None):
    raise NotImplementedError("the stand-in has no round")
