"""The four files of Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017), read and checked.

minibn does not ship them. They are in the package dataset-fashion-mnist of Debian and Ubuntu, and
at https://github.com/zalandoresearch/fashion-mnist.
"""

import hashlib
from pathlib import Path

import numpy as np

from minibn.data.idx_files import idx

SOURCE = ("get it by `apt-get install dataset-fashion-mnist`, which installs it in /usr/share/datasets/fashion-mnist, or from "
          "https://github.com/zalandoresearch/fashion-mnist")
FILES = {  # name: (shape, MD5 sum of its numbers: zcat FILE | tail -c +17 | md5sum for images, +9 for labels)
    "train-images-idx3-ubyte": ((60_000, 28, 28), "f209073e486d5113ebe2cc431d4df862"),
    "train-labels-idx1-ubyte": ((60_000,), "3236f6424fc25388b2834cb19942cf7e"),
    "t10k-images-idx3-ubyte": ((10_000, 28, 28), "b7656a891b218fc13e45205c48a92cae"),
    "t10k-labels-idx1-ubyte": ((10_000,), "8dea97a4e78c1bd1b5a6e8efbb870b6e"),
}
CLASSES = 10


def read(path: str | Path, checksum: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels of Fashion-MNIST as they are in the files.

    Args:
        path: the folder with the four files, each gzipped (NAME.gz) or not.
        checksum: whether to insist on the original: the number of images, their size, and MD5 sums.
            False reads any images and labels from 0 to 9 in files of these names.

    Returns:
        images (N, H, W, 1) uint8, labels (N,) int64 for training, and the same for testing.

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: a file is truncated, changed, exchanged with another, or not Fashion-MNIST.
    """
    folder = Path(path).expanduser()
    arrays = [_array(folder, name, checksum) for name in FILES]
    for (images, labels), part in zip((arrays[:2], arrays[2:]), ("train", "t10k"), strict=True):
        if len(images) != len(labels):
            raise ValueError(f"{folder} has {len(images)} images and {len(labels)} labels in its {part} files, needed as many: "
                             f"they do not belong together; {SOURCE}")
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise ValueError(f"{folder} has training images of {arrays[0].shape[1:]} pixels and test images of "
                         f"{arrays[2].shape[1:]}: they do not belong together; {SOURCE}")
    train, y_train, test, y_test = arrays
    return train[..., None], y_train.astype(np.int64), test[..., None], y_test.astype(np.int64)


def _array(folder, name, checksum):
    """The numbers of one file, checked."""
    places = [folder / name, folder / f"{name}.gz"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        why = f"has no {name}, gzipped or not" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"no Fashion-MNIST at {folder}: it {why}. Give the folder with its four files; {SOURCE}")
    (shape, wanted), images = FILES[name], name.endswith("images-idx3-ubyte")
    try:
        array = idx(path)
    except ValueError as error:
        raise ValueError(f"{error}. For Fashion-MNIST, {SOURCE}") from error
    if array.dtype != np.uint8 or array.ndim != len(shape) or 0 in array.shape or (checksum and array.shape != shape):
        number = f"{len(shape)} axes" if not checksum else str(shape)
        raise ValueError(f"{path} holds {array.dtype} numbers of shape {array.shape}, needed uint8 of {number}: it is "
                         f"{_meant(array.shape)}, not {'images' if images else 'labels'} of Fashion-MNIST; {SOURCE}")
    if not images and array.max() >= CLASSES:
        raise ValueError(f"{path} has a label {array.max()}, needed 0 to {CLASSES - 1}: it is not Fashion-MNIST; {SOURCE}")
    if checksum and (found := hashlib.md5(array.data).hexdigest()) != wanted:
        raise ValueError(f"{path} is changed or of another data set (MD5 sum of its numbers {found}, needed {wanted}); {SOURCE}, "
                         "or read it unchecked with checksum=False (on the command line --no-checksum)")
    return array


def _meant(shape):
    """What an array of this shape probably is, in words."""
    names = [name for name, (known, _) in FILES.items() if known == shape]
    return f"what {names[0]} should hold" if names else "another file"
