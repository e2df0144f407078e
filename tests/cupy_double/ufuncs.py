"""Elementwise functions: one launch each, or one in all inside `fuse`."""

from functools import update_wrapper

import numpy as np

from cupy_double.array import SCALARS, launched, ndarray, raw
from cupy_double.meter import METER

NAMES = [name for name in dir(np) if isinstance(getattr(np, name), np.ufunc)]
OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
             "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}
COMPARISONS = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}


class Ufunc:
    """NumPy's function of that name, on arrays of the GPU and scalars."""

    def __init__(self, name):
        self.__name__, self._function = name, getattr(np, name)
        self.nin, self.nout = self._function.nin, self._function.nout

    def __call__(self, *args, out=None, dtype=None, casting="same_kind"):
        if len(args) == self.nin + 1 and out is None:
            *args, out = args
        if len(args) != self.nin or self.nout != 1:
            raise TypeError(f"Wrong number of arguments for {self.__name__!r}")
        with np.errstate(all="ignore"):
            result = self._function(*map(raw, args), dtype=dtype)
        if out is None:
            return launched(self.__name__, result, *args)
        if not isinstance(out, ndarray):
            raise TypeError("return arrays must be of ArrayType")
        for x in args:
            if isinstance(x, ndarray) and _overlap(x, out):
                METER.launch("copy", [x.numbers], [x.numbers])
        np.copyto(out.numbers, result, casting=casting)
        METER.launch(self.__name__, [x.numbers for x in args if isinstance(x, ndarray)], [out.numbers])
        return out

    def __repr__(self):
        return f"<ufunc 'cupy_{self.__name__}'>"


UFUNCS = {name: Ufunc(name) for name in NAMES if getattr(np, name).nout == 1 and name not in ("matmul", "vecdot")}


def _overlap(x, out):
    """Whether the two share memory without being the same numbers, so that CuPy copies x first."""
    same = (x.numbers.ctypes.data, x.numbers.shape, x.numbers.strides) == (
        out.numbers.ctypes.data, out.numbers.shape, out.numbers.strides)
    return not same and np.may_share_memory(x.numbers, out.numbers)


def _operator(function, reverse=False, inplace=False):
    def operate(self, other):
        if isinstance(other, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if not isinstance(other, (ndarray, *SCALARS)):
            return NotImplemented
        both = (other, self) if reverse else (self, other)
        return function(*both, out=self) if inplace else function(*both)

    return operate


for _sign, _name in OPERATORS.items():
    setattr(ndarray, f"__{_sign}__", _operator(UFUNCS[_name]))
    setattr(ndarray, f"__r{_sign}__", _operator(UFUNCS[_name], reverse=True))
    setattr(ndarray, f"__i{_sign}__", _operator(UFUNCS[_name], inplace=True))
for _sign, _name in COMPARISONS.items():
    setattr(ndarray, f"__{_sign}__", _operator(UFUNCS[_name]))
for _sign, _name in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
    setattr(ndarray, f"__{_sign}__", lambda self, _function=UFUNCS[_name]: _function(self))


def _from_numpy(self, ufunc, method, *inputs, **options):
    """NumPy's functions and operators that meet an array of the GPU: of scalars they are CuPy's, NumPy arrays are refused."""
    if method != "__call__" or ufunc.__name__ not in UFUNCS:
        return NotImplemented
    return UFUNCS[ufunc.__name__](*inputs, **options)


ndarray.__array_ufunc__ = _from_numpy


def where(condition, x=None, y=None):
    if x is None or y is None:
        raise NotImplementedError("the stand-in has `where` of three arguments")
    return launched("where", np.where(*map(raw, (condition, x, y))), condition, x, y)


def fuse(function):
    """`function`, which may call elementwise functions only, as one launch."""

    def call(*args):
        for x in args:
            if not (x is None or isinstance(x, (ndarray, *SCALARS))):
                raise TypeError(f"Invalid argument type for {function.__name__!r}: {type(x)}")
        METER.fusing = True
        try:
            found = function(*args)
        finally:
            METER.fusing = False
        arrays = [launched_again(x) for x in (found if isinstance(found, tuple) else (found,))]
        METER.launch(f"fused {function.__name__}", [x.numbers for x in args if isinstance(x, ndarray)],
                     [x.numbers for x in arrays])
        return tuple(arrays) if isinstance(found, tuple) else arrays[0]

    return update_wrapper(call, function)


def launched_again(x):
    """A result of a fused function: in memory, no longer in registers, and never an argument itself."""
    found = ndarray(x.numbers.shape, x.numbers.dtype)
    found.numbers[...] = x.numbers
    return found
