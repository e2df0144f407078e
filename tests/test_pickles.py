"""Pickles of data sets are read through before they run: none takes much memory or changes NumPy, even if it is damaged."""

import pickle
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn.data import pickles

LARGE = struct.pack("<Q", 2**33)
DTYPE = b"cnumpy\ndtype\n(S'i4'\ntR"
ENCODE = b"c_codecs\nencode\n(X\1\0\0\0aX\3\0\0\0hextR"  # with other codecs it would double the text, again and again


@pytest.mark.parametrize(("program", "message"), [
    pytest.param(b"]r\xff\xff\xff\x7f.", "stores object number 2147483647 after 2 operations", id="memo"),
    pytest.param(b"]p2147483647\n.", "stores object number 2147483647 after 2 operations", id="memo in text"),
    pytest.param(b"\x80\4\x8e" + LARGE + b"abc.", "expected 8589934592 bytes", id="bytes"),
    pytest.param(b"\x80\5\x96" + LARGE + b"abc.", "expected 8589934592 bytes", id="bytearray"),
    pytest.param(b"\x80\4\x95" + LARGE + b"N.", "truncated|exhausted", id="frame"),
    pytest.param(b"cnumpy\nndarray\n(I10000000000\ntR.", "not callable", id="ndarray"),
    pytest.param(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I10000000000\ntS'b'\ntR.",
                 "makes an array of shape .10000000000,. without numbers", id="reconstruct"),
    pytest.param(ENCODE + b".", "asks for text in the encoding hex", id="codecs"),
    pytest.param(DTYPE + b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb" * 17 + b".", "more than 16 NumPy objects", id="objects"),
    pytest.param(DTYPE.replace(b"i4", b"V10000000") + b".", "numbers of the type .V10000000", id="void"),
])
def test_a_small_pickle_cannot_take_much_memory(program, message):
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match=message):
            pickles.load(program)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


WHOLE = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, np.int64(2)], b"filenames": [b"a.png", b"b.png"]}, 2)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4), st.sampled_from([0, -200]))
def test_a_changed_pickle_gives_something_or_an_error_within_little_memory(changes, start):
    content = bytearray(WHOLE)
    for place, value in changes:
        content[(start + place) % len(content)] = value
    tracemalloc.start()
    try:
        with suppress(Exception):
            pickles.load(bytes(content))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_reading_a_pickle_does_not_change_numpy():
    """A dtype is filled after it is made: the copy, not NumPy's own int32, becomes big-endian."""
    assert pickles.load(pickle.dumps(np.arange(3, dtype=">i4"), 2)).tolist() == [0, 1, 2]
    assert np.dtype("int32").isnative
    assert np.frombuffer(b"\1\0\0\0", "<i4")[0] == 1
