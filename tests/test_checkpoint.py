"""Checkpoint files: what was saved comes back, damage is noticed, and nothing that was saved is lost."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Run, assert_same_bits

from minibn.training import checkpoint


def test_a_checkpoint_comes_back(tmp_path):
    arrays, facts = {"a/b.c": np.arange(3.0), "d": np.float32([[1]])}, {"generator": {"state": 2**127}, "list": [1, "two"]}
    checkpoint.save(tmp_path / "c.npz", arrays, facts)
    loaded, same = checkpoint.load(tmp_path / "c.npz")
    assert_same_bits(loaded, arrays)
    assert same == facts
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@settings(max_examples=300)
@given(st.data())
def test_truncated_or_tampered_checkpoints_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("c") / "c.npz"
    values = np.arange(100.0)
    checkpoint.save(path, {"a": values}, {"steps": 1})
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        arrays, facts = checkpoint.load(path)
    except ValueError as error:
        assert "is not a whole minibn checkpoint" in str(error)  # noqa: PT017 - the other way out is fine too
    else:
        assert_same_bits(arrays, {"a": values})  # the flipped bit was a time stamp, or the like
        assert facts == {"steps": 1}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole minibn checkpoint"):
        checkpoint.load(path)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"a": np.ones(3)}, {})
    old = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="checkpoint not written .No space left on device.; what was saved before is untouched"):
        checkpoint.save(path, {"a": np.zeros(3)}, {})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.parametrize("facts", [{"steps": 3}, [], None])
def test_a_checkpoint_that_fit_did_not_write_is_named_as_that(facts, tmp_path):
    checkpoint.save(tmp_path / "c.npz", {"a": np.zeros(1)}, facts)
    with pytest.raises(ValueError, match=r"c.npz is a checkpoint, but not one of this version's training.fit"):
        Run().fit(path=tmp_path / "c.npz")
