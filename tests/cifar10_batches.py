"""A small CIFAR-10 of random images, and its files in the two forms of the original."""

import pickle
import tarfile

import numpy as np

from minibn.data import cifar10_files as cifar10

COUNT = 20  # images in each file; the real ones have 10,000


def make_batches():
    """{name: (pixels (COUNT, 3072), labels (COUNT,))}, with all classes equally often, as in the original."""
    rng = np.random.default_rng(0)
    return {name: (rng.integers(256, size=(COUNT, 3072), dtype=np.uint8), rng.permutation(np.arange(COUNT) % 10))
            for name in cifar10.NAMES}


def write_binary(folder, batches):
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels.astype(np.uint8), pixels]).tobytes())
    (folder / "batches.meta.txt").write_text("airplane\n")


def write_pickles(folder, batches, protocol=2):
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"training batch", b"filenames": [b"a.png"] * COUNT}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
