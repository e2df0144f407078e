"""Data sets, batches, and how their images are augmented."""

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
    with pytest.raises(ValueError, match="synthetic: count must be a whole number of at least 1, got 0"):
        data.synthetic(0, rng=rng)
    with pytest.raises(ValueError, match="synthetic: size must be a whole number of at least 1, got 2.5"):
        data.synthetic(3, size=2.5, rng=rng)


@pytest.mark.parametrize("dtype", ["foo", "int32", bool])
def test_pixels_are_of_a_floating_dtype(dtype):
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got .*: normalised pixels are fractions"):
        data.digits(dtype)


def test_crop_flip_gives_a_crop_of_the_padded_image():
    """Every output is one of the (2p+1)² crops of the padded image, or its mirror image; all are seen."""
    x = np.arange(1.0, 1 + 4 * 5 * 2).reshape(1, 4, 5, 2)
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    crops = [padded[i : i + 4, j : j + 5] for i in range(3) for j in range(3)]
    possible = {c.tobytes() for crop in crops for c in (crop, crop[:, ::-1])}
    out = data.crop_flip(np.repeat(x, 500, axis=0), rng=np.random.default_rng(0), padding=1)
    assert out.shape == (500, 4, 5, 2)
    assert {image.tobytes() for image in out} == possible
    np.testing.assert_array_equal(out, data.crop_flip(np.repeat(x, 500, axis=0), rng=np.random.default_rng(0), padding=1))


def test_batches_are_augmented():
    x, y = np.ones((6, 4, 4, 1)), np.arange(6)
    parts = list(data.batches(x, y, 3, rng=np.random.default_rng(0), augment=data.crop_flip))
    assert all(part.shape == (3, 4, 4, 1) for part, _ in parts)
    assert any((part == 0).any() for part, _ in parts)
    assert x.min() == 1
