"""Fields of a dataclass that say what they may be: for checks at the start, and as flags on the command line."""

import math
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import Field, field, fields
from typing import Any


def flag(default: Any, text: str, choices: Iterable[str] | None = None, *, kind: type | None = None, low: float | None = None,
         below: float = math.inf, when: Mapping[str, Container] | None = None) -> Any:
    """A field of `Experiment` and, on the command line, a flag.

    Args:
        default: its value if it is not given.
        text: its help.
        choices: the values it may have.
        kind: its type, if that is not the default's.
        low, below: the range of a number.
        when: {other field: values of it with which this one acts}.
    """
    return field(default=default, metadata={"help": text, "choices": choices and tuple(choices), "kind": kind or type(default),
                                            "low": low, "below": below, "when": when or {}})


def checked(f: Field, value: Any) -> Any:
    """The value of a field as its own type; ValueError if it is not one of its choices or out of its range."""
    choices, low, below = f.metadata["choices"], f.metadata["low"], f.metadata["below"]
    if f.name == "milestones":
        if value is not None and not (isinstance(value, list) and all(_is_number(item) for item in value)):
            raise ValueError(f"milestones must be a list of epochs, got {value!r}")
        return value if value is None else tuple(map(float, value))
    kind = f.metadata["kind"]
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{f.name} must be True or False, got {value!r}")
    elif kind in (int, float):
        if value is None and f.default is None:
            return None
        if not _is_number(value) or (kind is int and not isinstance(value, int)) or not low <= _finite(value) < below:
            limits = f"of at least {low}" + ("" if below == math.inf else f" and below {below:g}")
            raise ValueError(f"{f.name} must be a {'whole ' if kind is int else ''}number {limits}, got {value!r}")
        return kind(value)
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"{f.name} must be a string, got {value!r}")
    if choices and value not in choices:
        raise ValueError(f"{f.name} must be one of {list(choices)}, got {value!r}")
    return value


def check_effects(made: Any) -> None:
    """Raise ValueError if a field of a dataclass is not its default, and another one makes it have no effect, as `when` says."""
    for f in fields(made):
        if (value := getattr(made, f.name)) != f.default:
            for other, acts in f.metadata["when"].items():
                if getattr(made, other) not in acts:
                    raise ValueError(f"{f.name}={value!r} has no effect with {other}={getattr(made, other)!r}; it is for "
                                     f"{', '.join(acts)}")


def _finite(value):
    """`value`; infinity if it is beyond the largest float."""
    return value if abs(value) <= sys.float_info.max else math.inf


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
