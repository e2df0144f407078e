"""`check_libraries`: a layer on every array library that is installed, against the same layer on NumPy."""

import copy
import warnings
from importlib.util import find_spec

import numpy as np
from numpy.random import Generator

from minibn import backend
from minibn.nn import Module


def check_libraries(module: Module, x: np.ndarray, *, rng: Generator, tolerance: float = 1e-10) -> None:
    """Check that forward and backward give the same on array-api-strict and PyTorch as on NumPy.

    A library that is not installed is left out, with a warning. array-api-strict is the strictest:
    it has only what is in the array API standard, and a second device, on which this check runs. An
    array made without `device=device(x)` is on its first device, and using it together with x is an
    error. A layer that passes there runs on a GPU.

    Args:
        module: a module of float64 parameters. It is copied and stays as it is.
        x: float64 input (N, …, C) of NumPy.
        rng: numpy.random.Generator for dy.
        tolerance: of a difference, relative to the largest number of its array.

    Raises:
        AssertionError: output, input gradient, state or a parameter's gradient differs by more than
            `tolerance`, or the library raised an error.
    """
    others = ("array_api_strict", "torch")
    missing = [name for name in others if not find_spec(name)]
    if missing:
        warnings.warn(f"{module} was not checked on {' and '.join(missing)}, which this needs installed; array-api-strict is the "
                      "strictest", stacklevel=2)
    dy = rng.standard_normal(copy.deepcopy(module)(x).shape)
    expected = _results(module, "numpy", x, dy)
    for name in others:
        if name in missing:
            continue
        for key, value in _results(module, name, x, dy).items():
            gap = np.abs(value - expected[key]).max(initial=0.0) / max(np.abs(expected[key]).max(initial=0.0), 1e-300)
            assert gap <= tolerance, f"{module}: {key} on {name} is not that of NumPy; the largest gap is {gap:.1e}"


def _results(module: Module, name: str, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """{what: NumPy array} of all that one forward and one backward pass of a copy compute on library `name`."""
    there, (xp, device) = copy.deepcopy(module).to(name), backend.library(name)
    try:
        y = there(backend.convert(x, xp, device=device))
        dx = there.backward(backend.convert(dy, xp, device=device))
        state = there.state_dict() | {f"{path}.grad": p.grad for path, p in there.named_parameters()}
        results = {"output": y, "input.grad": dx, **state}
        return {key: backend.to_numpy(value) for key, value in results.items() if value is not None}  # integers: no gradient
    except Exception as error:
        raise AssertionError(f"{module} does not run on {name}: {type(error).__name__}: {error}") from error
