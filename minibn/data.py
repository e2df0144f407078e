"""Images and batches: the digits that come with the package, CIFAR-10 from your disk, synthetic ones for tests."""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from minibn import cifar10 as cifar10_files
from minibn.backend import Array, array_namespace, device, move

TRAIN_IMAGES, TEST_IMAGES = 1437, 360  # of the digits


class Split(NamedTuple):
    """Images (N, H, W, C) and integer labels (N,), for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(dtype: str = "float32") -> Split:
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


def cifar10(path: str | Path, dtype: str = "float32", *, checksum: bool = True) -> Split:
    """CIFAR-10 (Krizhevsky, 2009): 60,000 colour photographs of 32 x 32 pixels in 10 classes, from a file on your disk.

    Each channel is brought to mean 0 and standard deviation 1 with numbers taken from the training images. In float32 this
    takes 740 MB.

    Args:
        path: the binary or python archive from https://www.cs.toronto.edu/~kriz/cifar.html, or the folder it unpacks to.
        dtype: of the images.
        checksum: False reads files that are not the original, such as a part of it.

    Returns:
        Split: x_train (50000, 32, 32, 3), y_train (50000,), x_test (10000, 32, 32, 3), y_test (10000,).

    Raises:
        FileNotFoundError: there is no CIFAR-10 at `path`; the message says what to download.
        ValueError: a file is truncated, changed, or not CIFAR-10.
    """
    train, y_train, test, y_test = cifar10_files.read(path, checksum)
    axes = (0, 1, 2)
    mean, std = train.mean(axis=axes, dtype=np.float64), np.maximum(train.std(axis=axes, dtype=np.float32), 1)

    def normalise(images):
        x = images.astype(dtype)
        x -= mean.astype(dtype)
        x /= std.astype(dtype)
        return x

    return Split(normalise(train), y_train, normalise(test), y_test)


def synthetic(count: int, *, size: int = 8, channels: int = 1, num_classes: int = 10, noise: float = 0.5, rng: Generator,
              dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
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


def crop_flip(x: Array, *, rng: Generator, padding: int = 4) -> Array:
    """Each image moved at random by up to `padding` pixels, with zeros at the border, and mirrored with probability 1/2.

    The usual augmentation of CIFAR-10 (He et al., 2016a, section 4.2): a crop of the padded image, left and right exchanged
    half the time. Zero is the mean colour of normalised images.

    Args:
        x: images (N, H, W, C) of any array library.
        rng: numpy.random.Generator.
        padding: at least 0.

    Returns:
        images of the same shape.
    """
    xp = array_namespace(x)
    n, height, width, channels = x.shape
    padded = xp.zeros((n, height + 2 * padding, width + 2 * padding, channels), dtype=x.dtype, device=device(x))
    padded[:, padding : padding + height, padding : padding + width, :] = x
    top, left = rng.integers(2 * padding + 1, size=(2, n))
    columns = np.where(rng.random(n)[:, None] < 0.5, np.arange(width), np.arange(width)[::-1]) + left[:, None]
    rows = np.arange(height) + top[:, None]
    pixels = (np.arange(n)[:, None, None] * padded.shape[1] + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    return xp.reshape(_take(xp.reshape(padded, (-1, channels)), pixels.reshape(-1)), x.shape)


def batches(x: Array, y: Array, batch_size: int, *, rng: Generator, drop_last: bool = True,
            augment: Callable[..., Array] | None = None) -> Iterator[tuple[Array, Array]]:
    """One epoch of `(x, y)` in an order shuffled by `rng`.

    Args:
        x, y: arrays with the same first axis N, of NumPy or another library.
        batch_size: B, from 1 to N.
        rng: numpy.random.Generator; one permutation is drawn from it at the first batch, and
            whatever `augment` draws at each.
        drop_last: leave out the last N mod B examples, so that all batches have one size.
        augment: called as `augment(x, rng=rng)` on the inputs of each batch, such as `crop_flip`.

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
            inputs = _take(x, chosen)
            yield inputs if augment is None else augment(inputs, rng=rng), _take(y, chosen)

    return epoch()


def _take(x, indices):
    return array_namespace(x).take(x, move(indices, x), axis=0)


def check_examples(x: Array, y: Array) -> None:
    """Raise ValueError unless x and y hold the same number, above 0, of examples."""
    if x.shape[0] == 0 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must hold the same number of examples, above 0; got {x.shape[0]} and {y.shape[0]}")
