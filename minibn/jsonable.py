"""Values as JSON: the one place where NumPy's numbers become Python's.

JSON has no NaN and no infinity. They are written as the strings "NaN", "Infinity" and "-Infinity",
and `loads` turns these strings into numbers again.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any, name: str = "the value") -> Any:
    """`value` in Python's own types: None, bool, int, float, str, list, and dict with keys of str.

    NumPy's numbers and 0-d arrays of any library become numbers, other arrays and tuples become
    lists, and paths become strings. Keys become strings, as JSON has no others.

    Args:
        value: what to convert.
        name: its name in error messages.

    Raises:
        TypeError: it is, or holds, something else. The message says where.
        ValueError: it is nested too deeply, or two keys become the same string.
    """
    try:
        return _plain(value, name)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for JSON, or holds itself") from None


def dumps(value: Any, name: str = "the value", *, sort_keys: bool = False, indent: int | None = None) -> str:
    """`value` as JSON text that every reader of JSON accepts.

    Raises:
        TypeError, ValueError: as from `plain`; or it holds one of the strings that stand for NaN
            and infinity.

    Example:
        >>> dumps({"lr": np.float32(0.5), "loss": math.nan})
        '{"lr": 0.5, "loss": "NaN"}'
    """
    return json.dumps(_spelled(plain(value, name), name), sort_keys=sort_keys, indent=indent, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """The value that `dumps` wrote.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.

    Example:
        >>> loads('{"loss": "NaN"}')
        {'loss': nan}
    """
    try:
        return _read(json.loads(text))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _plain(value, name):
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            text = _key(key, name)
            if text in result:
                raise ValueError(f"{name} has two keys that JSON cannot tell apart, {text!r}; rename one")
            result[text] = _plain(item, f"{name}[{text!r}]")
        return result
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype") and not isinstance(value, type):  # an array, or a number of NumPy
        listed = value.tolist()
        if isinstance(listed, (bool, int, float, str, list)):
            return _plain(listed, name)
    raise TypeError(f"{name} is {_short(value)} of type {type(value).__name__}, which JSON cannot hold; give numbers, strings, "
                    "lists or dicts")


def _key(key, name):
    """A key of a dict as a string, spelled as `json` does."""
    if isinstance(key, tuple):
        raise TypeError(f"a key of {name} is {_short(key)} of type tuple; JSON has keys of strings and numbers")
    found = _plain(key, f"a key of {name}")
    return found if isinstance(found, str) else json.dumps(found)


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _spelled(value, name):
    """`value` with strings in place of the numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str) and value in NOT_FINITE:
        raise ValueError(f"{name} is the string {value!r}, which stands for a number in these files; give another string, or "
                         f"float({value!r})")
    if isinstance(value, list):
        return [_spelled(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _spelled(item, f"{name}[{key!r}]") for key, item in value.items()}
    return value


def _read(value):
    """`value` with numbers in place of the strings that stand for them."""
    if isinstance(value, str):
        return NOT_FINITE.get(value, value)
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict):
        return {key: _read(item) for key, item in value.items()}
    return value
