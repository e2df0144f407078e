"""Checks of arguments that many functions take."""

import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.random import Generator

from minibn.backend import array_namespace

LARGEST = 2**31 - 1  # pixels along an axis


def number(name: str, value: Any) -> float:
    """`value` as a Python float: numbers of Python and NumPy and 0-d arrays will do.

    Infinity if it is beyond the largest float. Which numbers are in range is for the caller to say.

    Raises:
        TypeError: it is no number: a string, True or False, None, a list.
    """
    dtype = getattr(value, "dtype", None)
    is_number = hasattr(value, "__float__") and not isinstance(value, bool) and not getattr(value, "ndim", 0)
    if is_number and getattr(dtype, "kind", "f") in "iuf" and "bool" not in str(dtype):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    raise _other_kind(name, value, "a number")


def iterable(name: str, value: Any, of: str) -> Iterable[Any]:
    """`value`, if it is an iterable of something; a string or a dict is not what is meant.

    Raises:
        TypeError: it is something else. `of` says what is needed.
    """
    if not _is_iterable(value):
        raise _other_kind(name, value, of)
    return value


def of_kind(name: str, value: Any, kind: type, of: str) -> None:
    """Raise TypeError unless `value` is a `kind`. `of` says what is needed."""
    if not isinstance(value, kind):
        raise _other_kind(name, value, of)


def _other_kind(name, value, of):
    return TypeError(f"{name} must be {of}, got {short(value)} of type {type(value).__name__}")


def for_each_step(name: str, value: Any, checked: Callable[[Any], float]) -> Iterator[float]:
    """A number for each step, from one number or an iterable of them. `checked` makes a float of each, or raises.

    Raises:
        ValueError: at the step for which there is none.
    """
    if not _is_iterable(value):
        return repeat(checked(value))

    def numbers():
        given = 0
        for one in value:
            given += 1
            yield checked(one)
        raise ValueError(f"{name} has {given} numbers, and the schedule has more steps; give a number for each step, or one "
                         "for all")

    return numbers()


def _is_iterable(value):
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) and getattr(value, "ndim", 1) > 0


def whole(name: str, value: Any, low: int) -> int:
    """`value` as an int of at least `low`. NumPy's integers are accepted, True and False are not.

    Raises:
        ValueError: it is below `low`, or not whole.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return number


def sizes(owner: str, low: int = 1, **values: Any) -> tuple[int, ...]:
    """The sizes of a layer as ints of at least `low`, such as `sizes("Linear", in_features=2, out_features=3)`.

    Raises:
        ValueError: one is not, or an array of these sizes fits into no memory.
    """
    found = tuple(whole(f"{owner}: {name}", value, low) for name, value in values.items())
    if math.prod(found) > sys.maxsize // 8:  # bytes of a float64
        given = ", ".join(f"{name}={value}" for name, value in zip(values, found, strict=True))
        raise ValueError(f"{owner}: {given} would need more than any memory; give smaller sizes")
    return found


def pair(name: str, value: Any, low: int) -> tuple[int, int]:
    """`value` for both height and width, or the two numbers in it, as ints of at least `low`.

    Raises:
        ValueError: it is something else.
    """
    values = tuple(value) if _is_iterable(value) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be a whole number, or two, (height, width); got {short(value)}")
    height, width = (whole(name, one, low) for one in values)
    if max(height, width) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, for no image is as large; got {short(value)}")
    return height, width


def dtype(value: Any) -> str:
    """Raise ValueError unless `value` is the name of a dtype that layers have."""
    if str(value) not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {value!r}')
    return str(value)


def of_norm(owner: str, num_features: Any, eps: Any, affine: Any, dtype_: Any) -> tuple[int, float]:
    """(num_features, eps) of a normalisation, in Python's numbers: a NumPy number brings its own precision.

    Raises:
        TypeError: eps is no number.
        ValueError: an argument is out of range, or none that a normalisation takes.
    """
    eps = number(f"{owner}: eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"{owner}: eps must be a finite number of at least 0, got {eps}")
    yes_or_no(affine=affine)
    dtype(dtype_)
    return sizes(owner, num_features=num_features)[0], eps


def array(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is an array whose numbers are what they seem.

    That is no list or DataFrame, no numpy.matrix, and no masked array, whose mask the arithmetic
    would drop.
    """
    if type(value) is np.ndarray:
        return
    if isinstance(value, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix, whose rows are not arrays; give np.asarray({name})")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, and its mask would be lost; give {name}.filled(value), or leave the masked "
                        "examples out")
    try:
        array_namespace(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an array of NumPy, CuPy or PyTorch, got {type(value).__module__}."
                        f"{type(value).__qualname__}; give np.asarray({name})") from error


def same_library(owner: str, what: str, library: str, other: str, value: Any) -> None:
    """Raise TypeError unless the array `value`, called `other`, is of `library`, a `library_of`, which is that of `what`."""
    if (found := library_of(value)) != library:
        raise TypeError(f"{owner}: the library of its {what} is {library}, that of {other} is {found}; move one of them, with "
                        f"model.to({found!r}) or minibn.backend.move")


def library_of(value: Any) -> str:
    """The name of an array's library, such as "numpy"."""
    return array_namespace(value).__name__.rsplit(".", 1)[-1]


def real_array(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is an `array` of floating-point numbers or integers."""
    array(name, value)
    if not array_namespace(value).isdtype(value.dtype, ("real floating", "integral")):
        raise TypeError(f"{name} must hold real numbers, got an array of {str(value.dtype).rsplit('.', 1)[-1]}")


def frame(value: Any, kind: Any) -> Any:
    """`value`, a change of variables of the class `kind`, a NamedTuple, in Python's numbers.

    Raises:
        TypeError: it is something else.
        ValueError: a number of steps is not one, a factor (1 by default) is not above 0, or another
            number is not finite.
    """
    of_kind("frame", value, kind, f"a {kind.__name__}, such as {kind.__name__}()")

    def checked(field, item, default):
        if isinstance(default, int):
            return whole(f"frame: {field}", item, 0)
        found = number(f"frame: {field}", item)
        if not (0 if default else -math.inf) < found < math.inf:
            raise ValueError(f"frame: {field} must be a finite number{' above 0' if default else ''}, got {item}")
        return found

    return kind(*map(checked, kind._fields, value, kind()))


def yes_or_no(**flags: Any) -> None:
    """Raise ValueError unless each of the flags is True or False, since the string "no" would count as True."""
    for name, value in flags.items():
        if isinstance(value, str) or value not in (True, False):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def generator(rng: Any) -> None:
    """Raise TypeError unless `rng` is a numpy.random.Generator."""
    if not isinstance(rng, Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r}")
