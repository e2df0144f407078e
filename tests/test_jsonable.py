"""JSON: NumPy's numbers are numbers, NaN is valid, and what does not fit is named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import jsonable

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda text: text not in jsonable.NOT_FINITE)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


@given(VALUES)
def test_values_come_back_from_text_that_every_reader_accepts(value):
    text = jsonable.dumps(value)
    json.loads(text, parse_constant=refuse)
    assert repr(jsonable.loads(text)) == repr(value)


@pytest.mark.parametrize(("value", "expected"), [
    (np.float32(0.5), 0.5), (np.float64(0.1), 0.1), (np.longdouble(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True),
    (np.str_("a"), "a"), (np.array(2.5), 2.5), (np.arange(3), [0, 1, 2]), (Path("a/b"), "a/b"), ((1, (2,)), [1, [2]]),
    ({np.int64(1): 2, None: 3, 0.5: 4}, {"1": 2, "null": 3, "0.5": 4}), ([np.float32("nan")], [math.nan])])
def test_numbers_of_numpy_are_numbers(value, expected):
    result = jsonable.plain(value)
    assert repr(result) == repr(expected)
    assert repr(jsonable.loads(jsonable.dumps(value))) == repr(expected)


@pytest.mark.parametrize(("value", "message"), [
    ({"a": [1, {2}]}, r"settings\['a'\]\[1\] is \{2\} of type set, which JSON cannot hold"),
    ({"f": len}, r"settings\['f'\] is <built-in function len> of type builtin_function_or_method"),
    ({"z": np.complex64(1j)}, r"settings\['z'\] is .*1j.* of type complex64"),
    ({"t": np.datetime64("2020-01-01")}, r"settings\['t'\] is .* of type datetime64"), ({"b": b"x"}, "of type bytes"),
    ({(1, 2): 3}, r"a key of settings is \(1, 2\) of type tuple"),
    ({"x": "NaN"}, r"settings\['x'\] is the string 'NaN', which stands for"),
    ({1: 0, "1": 1}, "settings has two keys that JSON cannot tell apart, '1'")])
def test_what_json_cannot_hold_is_named(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        jsonable.dumps(value, "settings")


def test_deep_nesting_is_a_one_line_error():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="settings is nested too deeply"):
        jsonable.dumps(deep, "settings")
    with pytest.raises(ValueError, match="nested too deeply"):
        jsonable.loads("[" * 100_000 + "]" * 100_000)
