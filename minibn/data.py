"""Images and batches: the digits that come with the package, and synthetic ones for tests."""

from importlib.resources import files
from typing import NamedTuple

import numpy as np

from minibn.backend import array_namespace, device

TRAIN_IMAGES, TEST_IMAGES = 1437, 360  # of the digits


class Split(NamedTuple):
    """Images (N, H, W, C) and integer labels (N,), for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(dtype="float32"):
    """The 1,797 handwritten 8 x 8 digits of the UCI repository (Alpaydin & Kaynak, 1998; CC BY 4.0).

    A fixed random 360 of them are the test set. Pixels are brought to mean 0 and standard deviation 1 with two numbers
    taken from the training images.

    Returns:
        Split: x_train (1437, 8, 8, 1), y_train (1437,), x_test (360, 8, 8, 1), y_test (360,).
    """
    with files("minibn").joinpath("datasets/digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    x = images[..., None].astype(np.float64)
    x = ((x - x[train].mean()) / x[train].std()).astype(dtype)
    return Split(x[train], labels[train], x[test], labels[test])


def synthetic(count, *, size=8, channels=1, num_classes=10, noise=0.5, rng, dtype="float32"):
    """Images that are a random pattern of their class plus Gaussian noise.

    Args:
        count: number of images N, at least 1.
        size, channels: shape of an image: (size, size, channels).
        num_classes: K; labels are drawn uniformly from 0 to K - 1.
        noise: standard deviation of the noise; a pattern's is 1.
        rng: numpy.random.Generator.

    Returns:
        x (N, size, size, channels) of `dtype`, y (N,) int64.
    """
    if min(count, size, channels, num_classes) < 1:
        raise ValueError("synthetic: count, size, channels and num_classes must be at least 1, "
                         f"got {count}, {size}, {channels}, {num_classes}")
    patterns = rng.standard_normal((num_classes, size, size, channels))
    y = rng.integers(num_classes, size=count)
    x = patterns[y] + noise * rng.standard_normal((count, size, size, channels))
    return x.astype(dtype), y


def batches(x, y, batch_size, *, rng, drop_last=True):
    """One epoch of `(x, y)` in an order shuffled by `rng`.

    Args:
        x, y: arrays with the same first axis N, of NumPy or another library.
        batch_size: B, from 1 to N.
        rng: numpy.random.Generator; one permutation is drawn from it at the first batch.
        drop_last: leave out the last N mod B examples, so that all batches have one size.

    Yields:
        x (B, …), y (B,).

    Raises:
        ValueError: no data, x and y of different lengths, or a batch size out of range.
    """
    check_examples(x, y)
    n = x.shape[0]
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie between 1 and the number of examples, {n}; got {batch_size}")

    def epoch():
        order = rng.permutation(n)
        for start in range(0, n - batch_size + 1 if drop_last else n, batch_size):
            chosen = order[start : start + batch_size]
            yield _take(x, chosen), _take(y, chosen)

    return epoch()


def _take(x, indices):
    xp = array_namespace(x)
    return xp.take(x, xp.asarray(indices, device=device(x)), axis=0)


def check_examples(x, y):
    """Raise ValueError unless x and y hold the same number, above 0, of examples."""
    if x.shape[0] == 0 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must hold the same number of examples, above 0; got {x.shape[0]} and {y.shape[0]}")
