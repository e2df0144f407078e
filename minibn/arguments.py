"""Checks of arguments that many functions take."""

import operator
from typing import Any

from numpy.random import Generator


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
