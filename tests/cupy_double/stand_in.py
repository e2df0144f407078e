"""The modules `cupy`, `cupy.cuda`, `cupy.linalg` and `cupy.fft`, and how they take the place of CuPy's."""

import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

from cupy_double import functions, ufuncs
from cupy_double.array import Device, ndarray

VERSION = "14.2.0"  # of the CuPy that is modelled
DTYPES = ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "complex64",
          "complex128", "intp", "dtype", "integer", "floating", "signedinteger", "unsignedinteger", "number", "inexact",
          "complexfloating", "newaxis", "pi", "e", "inf", "nan", "finfo", "iinfo", "issubdtype", "isdtype", "result_type",
          "can_cast", "promote_types", "broadcast_shapes")
FFT = ("fft", "ifft", "fftn", "ifftn", "rfft", "irfft", "rfftn", "irfftn", "hfft", "ihfft", "fftfreq", "rfftfreq", "fftshift",
       "ifftshift")


def functions_of_cupy():
    """{name: function} of what the stand-in simulates, apart from ufuncs and dtypes."""
    own = {name: value for name, value in vars(functions).items()
           if getattr(value, "__module__", "") == functions.__name__ and not name.startswith("_")}
    return {**own, "where": ufuncs.where, "fuse": ufuncs.fuse}


def _module(name, **contents):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in contents.items():
        setattr(module, key, value)
    return module


def _missing(name):
    """A function that CuPy has and the stand-in has not."""
    def raise_(*_, **__):
        raise NotImplementedError(f"the stand-in for CuPy does not simulate {name}: add it to tests/cupy_double")

    return raise_


def _modules():
    cuda = _module("cupy.cuda", Device=Device, Stream=SimpleNamespace, ExternalStream=SimpleNamespace,
                   runtime=SimpleNamespace(getDeviceCount=lambda: 1, runtimeGetVersion=lambda: 0, driverGetVersion=lambda: 0))
    cuda.device = _module("cupy.cuda.device", Device=Device)
    linalg = _module("cupy.linalg", lstsq=_missing("linalg.lstsq"), __all__=["lstsq"])
    fft = _module("cupy.fft", **{name: _missing(f"fft.{name}") for name in FFT}, __all__=list(FFT))
    here = {**{name: getattr(np, name) for name in DTYPES}, **ufuncs.UFUNCS, **functions_of_cupy()}
    others = {name: _missing(name) for name in dir(np) if callable(getattr(np, name)) and not name.startswith("_")}
    del others["vecdot"]  # CuPy 14 has none
    cupy = _module("cupy", **{**others, **here, "ndarray": ndarray, "cuda": cuda, "linalg": linalg, "fft": fft},
                   __version__=VERSION, __path__=[])
    return {"cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.device": cuda.device, "cupy.linalg": linalg, "cupy.fft": fft}


def _ours(name):
    return name == "cupy" or name.startswith(("cupy.", "array_api_compat.cupy"))


_stand_ins = _modules()  # the wrapping modules of array-api-compat join them at their first import


@contextmanager
def in_place_of_cupy():
    """`import cupy` gives the stand-in inside; afterwards everything is as before."""
    import array_api_compat

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)}
    attribute = vars(array_api_compat).pop("cupy", None)
    sys.modules.update(_stand_ins)
    if "array_api_compat.cupy" in _stand_ins:
        array_api_compat.cupy = _stand_ins["array_api_compat.cupy"]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _ours(name)]:
            _stand_ins[name] = sys.modules.pop(name)
        vars(array_api_compat).pop("cupy", None)
        sys.modules.update(before)
        if attribute is not None:
            array_api_compat.cupy = attribute
