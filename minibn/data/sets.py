"""Data sets: the digits that come with the package, CIFAR-10 and Fashion-MNIST from your disk, synthetic images for tests."""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from minibn import arguments
from minibn.data import cifar10_files, fashion_mnist_files

TRAIN_IMAGES, TEST_IMAGES = 1437, 360  # of the digits


class Split(NamedTuple):
    """Images (N, H, W, C) and integer labels (N,), for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(dtype: str = "float32") -> Split:
    """The 1,797 handwritten 8 x 8 digits of the UCI repository (Alpaydin & Kaynak, 1998; CC BY 4.0).

    A fixed random 360 of them are the test set. Pixels are brought to mean 0 and standard deviation
    1 with two numbers taken from the training images.

    Args:
        dtype: of the images, float32 or float64.

    Returns:
        Split: x_train (1437, 8, 8, 1), y_train (1437,), x_test (360, 8, 8, 1), y_test (360,).

    Raises:
        ValueError: dtype cannot hold fractions.
    """
    _check_dtype(dtype)
    with files("minibn").joinpath("datasets/digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    x = images[..., None].astype(np.float64)
    x = ((x - x[train].mean()) / x[train].std()).astype(dtype)
    return Split(x[train], labels[train], x[test], labels[test])


def cifar10(path: str | Path, dtype: str = "float32", *, checksum: bool = True) -> Split:
    """CIFAR-10 (Krizhevsky, 2009): 60,000 colour photographs of 32 x 32 pixels in 10 classes, from a file on your disk.

    Each channel is brought to mean 0 and standard deviation 1 with numbers taken from the training
    images. In float32 this takes 740 MB.

    Args:
        path: the binary or python archive from https://www.cs.toronto.edu/~kriz/cifar.html, or the
            folder it unpacks to.
        dtype: of the images, float32 or float64.
        checksum: False reads files that are not the original, such as a part of it.

    Returns:
        Split: x_train (50000, 32, 32, 3), y_train (50000,), x_test (10000, 32, 32, 3), y_test
            (10000,).

    Raises:
        FileNotFoundError: there is no CIFAR-10 at `path`; the message says what to download.
        ValueError: a file is truncated, changed, or not CIFAR-10; or dtype cannot hold fractions.
    """
    _check_dtype(dtype)
    train, y_train, test, y_test = cifar10_files.read(path, checksum)
    axes = (0, 1, 2)
    mean, std = train.mean(axis=axes, dtype=np.float64), train.std(axis=axes, dtype=np.float32)
    return Split(_normalise(train, mean, std, dtype), y_train, _normalise(test, mean, std, dtype), y_test)


def fashion_mnist(path: str | Path, dtype: str = "float32", *, checksum: bool = True) -> Split:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017; MIT): 70,000 grey photographs of clothes, 28 x 28 pixels, in 10 classes.

    Pixels are brought to mean 0 and standard deviation 1 with two numbers taken from the training
    images. In float32 this takes 220 MB.

    Args:
        path: the folder with its four files, gzipped or not. Debian and Ubuntu have them as a
            package: after `apt-get install dataset-fashion-mnist` they are in
            /usr/share/datasets/fashion-mnist.
        dtype: of the images, float32 or float64.
        checksum: False reads other files of these names, such as those of MNIST or KMNIST, or a
            part of the original.

    Returns:
        Split: x_train (60000, 28, 28, 1), y_train (60000,), x_test (10000, 28, 28, 1), y_test
            (10000,).

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: a file is truncated, changed, exchanged with another or not Fashion-MNIST; or
            dtype cannot hold fractions.
    """
    _check_dtype(dtype)
    train, y_train, test, y_test = fashion_mnist_files.read(path, checksum)
    mean, std = _moments(train)
    return Split(_normalise(train, mean, std, dtype), y_train, _normalise(test, mean, std, dtype), y_test)


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

    Raises:
        ValueError: a number is not whole, or below 1.
    """
    given = {"count": count, "size": size, "channels": channels, "num_classes": num_classes}
    count, size, channels, num_classes = (arguments.whole(f"synthetic: {name}", value, 1) for name, value in given.items())
    patterns = rng.standard_normal((num_classes, size, size, channels))
    y = rng.integers(num_classes, size=count)
    x = patterns[y] + noise * rng.standard_normal((count, size, size, channels))
    return x.astype(dtype), y


def _check_dtype(dtype):
    try:
        floating = np.dtype(dtype).kind == "f"
    except TypeError:  # no dtype at all
        floating = False
    if not floating:
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}: normalised pixels are fractions")


def _moments(images):
    """Mean and standard deviation of all pixels, from exact counts of their 256 values."""
    counts, values = np.zeros(256, np.int64), np.arange(256)
    for image in images:
        counts += np.bincount(image.reshape(-1), minlength=256)
    mean = counts @ values / counts.sum()
    return mean, np.sqrt(counts @ (values - mean) ** 2 / counts.sum())


def _normalise(images, mean, std, dtype):
    """(images - mean) / std, in the memory of the result; a std below 1 grey level, of blank images, counts as 1."""
    x = images.astype(dtype)
    x -= np.asarray(mean, dtype)
    x /= np.asarray(np.maximum(std, 1), dtype)
    return x
