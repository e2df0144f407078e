"""Data sets and batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import data


def test_digits():
    split = data.digits("float64")
    assert split.x_train.shape == (1437, 8, 8, 1)
    assert split.x_test.shape == (360, 8, 8, 1)
    assert split.x_train.mean() == pytest.approx(0, abs=1e-12)
    assert split.x_train.std() == pytest.approx(1)
    counts = np.bincount(np.concatenate([split.y_train, split.y_test]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    again = data.digits("float32")
    np.testing.assert_array_equal(again.y_test, split.y_test)
    assert again.x_train.dtype == np.float32


def test_digits_are_those_of_scikit_learn():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    split, bunch = data.digits("float64"), load_digits()
    ours = np.concatenate([split.x_train, split.x_test]).reshape(1797, 64)
    theirs = bunch.data
    scale, shift = np.ptp(theirs) / np.ptp(ours), theirs.min() - ours.min() * np.ptp(theirs) / np.ptp(ours)
    ours = np.rint(ours * scale + shift)
    labelled = np.column_stack([ours, np.concatenate([split.y_train, split.y_test])])
    expected = np.column_stack([theirs, bunch.target])
    np.testing.assert_array_equal(labelled[np.lexsort(labelled.T)], expected[np.lexsort(expected.T)])


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 2**32 - 1))
def test_batches_hold_every_example_once(n, batch_size, drop_last, seed):
    x, y = np.arange(n * 2.0).reshape(n, 2), np.arange(n)
    if batch_size > n:
        with pytest.raises(ValueError, match=f"between 1 and the number of examples, {n}; got {batch_size}"):
            data.batches(x, y, batch_size, rng=np.random.default_rng(seed))
        return
    parts = list(data.batches(x, y, batch_size, rng=np.random.default_rng(seed), drop_last=drop_last))
    seen = np.concatenate([part for _, part in parts])
    assert len(set(seen.tolist())) == len(seen) == (n // batch_size * batch_size if drop_last else n)
    for bx, by in parts:
        np.testing.assert_array_equal(bx, x[by])
        assert len(by) == batch_size or (not drop_last and bx is parts[-1][0])


def test_synthetic_images_can_be_learnt():
    x, y = data.synthetic(200, num_classes=3, rng=np.random.default_rng(0))
    assert x.shape == (200, 8, 8, 1)
    assert x.dtype == np.float32
    centres = np.stack([x[y == k].mean(axis=0) for k in range(3)])
    nearest = ((x[:, None] - centres) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    assert (nearest == y).mean() > 0.95


def test_empty_and_unequal_data():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"x must hold examples along its first axis.*got the shape \(0, 2\)"):
        data.batches(np.empty((0, 2)), np.empty(0), 1, rng=rng)
    with pytest.raises(ValueError, match="same number of examples, got 3 and 2"):
        data.batches(np.ones((3, 2)), np.ones(2), 1, rng=rng)
    with pytest.raises(ValueError, match="count, size, channels and num_classes must be at least 1, got 0, 8, 1, 10"):
        data.synthetic(0, rng=rng)
