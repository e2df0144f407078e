"""Pickles of NumPy arrays and plain containers, read without trust.

A pickle is a program. It may call any function that it can import, and a few changed bytes may ask
for any amount of memory. Here a program is read through before it runs, every function that it may
call is one of ours, and memory stays within a small multiple of the file's size.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

OBJECTS = 16  # NumPy objects (dtypes, arrays) that a pickle may fill; each may copy numbers, a batch of CIFAR-10 has two


def load(content: bytes) -> Any:
    """The object in a pickle that was written by any protocol, with any NumPy; strings of Python 2 come as bytes.

    Raises:
        Exception: of any type; the pickle is damaged, or asks for something else than arrays and
            plain containers.
    """
    _read_through(content)
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _read_through(content):
    """Refuse what is cut short or would take much memory; nothing is run."""
    objects = 0
    # genops raises where an argument is longer than the rest of the file
    for operations, (operation, argument, _) in enumerate(pickletools.genops(content), 1):
        objects += operation.name == "BUILD"
        if "PUT" in operation.name and argument is not None and argument > operations:
            raise pickle.UnpicklingError(f"it stores object number {argument} after {operations} operations")
        if objects > OBJECTS:
            raise pickle.UnpicklingError(f"it has more than {OBJECTS} NumPy objects")


class _Unpickler(pickle.Unpickler):
    """Calls the functions below in the place of NumPy's, which would make arrays of any size, and no others."""

    def find_class(self, module, name):
        function = ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))  # its name since NumPy 2, and before
        if function is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch of images has no use for")
        return function


def _empty_array(_class, shape, _type):
    """An array whose shape and numbers come later, by `__setstate__`, which compares them."""
    if shape != (0,):
        raise pickle.UnpicklingError(f"it makes an array of shape {shape} without numbers")
    return np.ndarray((0,), np.int8)


def _array_of(numbers, dtype, shape, order="C", axes=None):
    """An array on the bytes that were read (protocol 5)."""
    if axes is not None:
        raise pickle.UnpicklingError(f"its axes are in the order {axes}")
    return np.frombuffer(numbers, _numeric(dtype)).reshape(shape, order=order)


def _scalar(dtype, numbers):
    """A single NumPy number, as Python's."""
    return np.frombuffer(numbers, _numeric(dtype), count=1)[0].item()


def _dtype(text, *_flags):
    """A copy, since `__setstate__` changes it."""
    return np.dtype(_numeric(np.dtype(text)), copy=True)


def _numeric(dtype):
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"it has numbers of the type {dtype}")
    return dtype


def _bytes(text, encoding):
    """Bytes, as protocols 0 to 2 of Python 3 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for text in the encoding {encoding}")
    return text.encode("latin1")


ALLOWED = {
    ("numpy", "ndarray"): "ndarray",  # is never called, only named, as the class of an array to make
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _bytes,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_of,
}
