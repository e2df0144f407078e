"""Checks of arguments that many functions take."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from reprlib import repr as short
from typing import Any

from numpy.random import Generator


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
    raise TypeError(f"{name} must be a number, got {short(value)} of type {type(value).__name__}")


def iterable(name: str, value: Any, of: str) -> Iterable[Any]:
    """`value`, if it is an iterable of something; a string or a dict is not what is meant.

    Raises:
        TypeError: it is something else. `of` says what is needed.
    """
    if not _is_iterable(value):
        raise TypeError(f"{name} must be {of}, got {short(value)} of type {type(value).__name__}")
    return value


def for_each_step(value: Any, checked: Callable[[Any], float]) -> Iterator[float]:
    """A number for each step, from one number or an iterable of them. `checked` makes a float of each, or raises."""
    return map(checked, value) if _is_iterable(value) else repeat(checked(value))


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


def yes_or_no(**flags: Any) -> None:
    """Raise ValueError unless each of the flags is True or False, since the string "no" would count as True."""
    for name, value in flags.items():
        if isinstance(value, str) or value not in (True, False):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def generator(rng: Any) -> None:
    """Raise TypeError unless `rng` is a numpy.random.Generator."""
    if not isinstance(rng, Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r}")
