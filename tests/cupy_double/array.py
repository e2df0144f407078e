"""The array class: NumPy's numbers, which can only be reached through what CuPy's arrays have."""

import numpy as np

from cupy_double.meter import METER, Memory

SCALARS = (int, float, complex, bool, np.generic)


class Device:
    """The one GPU."""

    def __init__(self, device=None):
        self.id = 0 if device is None else getattr(device, "id", device)

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self):
        return hash(self.id)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def synchronize(self):
        METER.wait("Device.synchronize")


class ndarray:  # noqa: N801, CuPy's name
    """`numbers` is NumPy's array, for this package only; `memory` is shared between views."""

    __hash__ = None
    __slots__ = ("memory", "numbers")

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if not (memptr is strides is None and order == "C"):
            raise NotImplementedError("the stand-in makes arrays of their own memory, in C order")
        self.numbers = np.empty(shape, dtype)
        self.memory = Memory(self.numbers.nbytes)

    # ---- what it is ----

    shape = property(lambda self: _known(self).shape)
    size = property(lambda self: _known(self).size)
    strides = property(lambda self: _known(self).strides)
    flags = property(lambda self: _known(self).flags)
    dtype = property(lambda self: self.numbers.dtype)
    ndim = property(lambda self: self.numbers.ndim)
    itemsize = property(lambda self: self.numbers.itemsize)
    nbytes = property(lambda self: _known(self).nbytes)
    device = property(lambda self: Device(0))
    T = property(lambda self: view(self, self.numbers.T))
    mT = property(lambda self: view(self, self.numbers.swapaxes(-1, -2)))  # noqa: N815

    def __len__(self):
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # ---- to the host: each of these waits ----

    def get(self, stream=None, order="C", out=None, blocking=True):
        METER.wait("get")
        return np.array(self.numbers, order=order)

    def item(self):
        METER.wait("item")
        return self.numbers.item()

    def tolist(self):
        METER.wait("tolist")
        return self.numbers.tolist()

    def __float__(self):
        METER.wait("float")
        return float(self.numbers)

    def __int__(self):
        METER.wait("int")
        return int(self.numbers)

    def __index__(self):
        METER.wait("index")
        return self.numbers.__index__()

    def __bool__(self):
        METER.wait("bool")
        return bool(self.numbers)

    def __repr__(self):
        METER.wait("repr")
        return repr(self.numbers)

    def __format__(self, spec):
        METER.wait("format")
        return format(self.numbers, spec)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
                        "explicitly.")

    # ---- parts ----

    def __getitem__(self, key):
        index, fancy = _index(key)
        if not fancy:
            return view(self, self.numbers[(*index, ...)] if Ellipsis not in index else self.numbers[index])
        found = wrap(self.numbers[index])
        METER.launch("take", [found.numbers], [found.numbers])
        return found

    def __setitem__(self, key, value):
        read = [x.numbers for x in (key, value) if isinstance(x, ndarray)]
        index, fancy = _index(key, reading=False)
        if fancy:
            self.numbers[index] = raw(value)
            METER.launch("put", [*read, self.numbers], [self.numbers])
        else:
            to = self.numbers[(*index, ...)] if Ellipsis not in index else self.numbers[index]
            to[...] = raw(value)
            METER.launch("copy", read, [to])

    # ---- copies ----

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return launched("astype", self.numbers.astype(dtype, order=order), self)

    def copy(self, order="C"):
        return launched("copy", np.array(self.numbers, order=order), self)

    def __pos__(self):
        return self.copy()


def _known(x):
    """NumPy's array, unless CuPy would not know the shape: it traces a fused function without."""
    if METER.fusing:
        raise NotImplementedError("`shape` is not supported in a fused function")
    return x.numbers


def wrap(numbers, memory=None):
    """An array of these numbers, in memory of its own if none is given."""
    x = object.__new__(ndarray)
    x.numbers = np.asarray(numbers)
    x.memory = Memory(x.numbers.nbytes) if memory is None else memory
    return x


def view(x, numbers):
    """Another array of the same memory."""
    return wrap(numbers, x.memory)


def launched(name, numbers, *reads):
    """A new array of these numbers, written by one kernel that read the arrays among `reads`."""
    found = wrap(numbers)
    METER.launch(name, [x.numbers for x in reads if isinstance(x, ndarray)], [found.numbers])
    return found


def raw(x):
    """NumPy's array or the scalar behind an argument."""
    if isinstance(x, ndarray):
        return x.numbers
    if isinstance(x, SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _index(key, reading=True):
    """(an index for NumPy, whether it picks by arrays). To read by a boolean array, CuPy must know how many are true."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if isinstance(part, ndarray) and part.dtype == bool and reading:
            METER.wait("boolean index")
        if not (part is None or part is Ellipsis or isinstance(part, int | np.integer | slice | ndarray)):
            raise IndexError(f"the stand-in takes no index of type {type(part).__name__}")
    fancy = any(isinstance(part, ndarray) for part in parts)
    return tuple(part.numbers if isinstance(part, ndarray) else part for part in parts), fancy
