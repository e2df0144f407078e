"""The files of CIFAR-10 (Krizhevsky, 2009), read and checked: the binary form and the pickled "python" form.

minibn ships neither; https://www.cs.toronto.edu/~kriz/cifar.html has both archives. No file is
trusted. A pickle can run any program and ask for any amount of memory when it is opened, so
`minibn.data.pickles` reads it.
"""

import hashlib
import tarfile
from pathlib import Path

import numpy as np

from minibn.data import pickles

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
ARCHIVES = {  # MD5 sums, as that page gives them
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
}
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
PICKLES = {  # MD5 sums of the files in the python archive, as torchvision has them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
IMAGES_PER_FILE, CLASSES, PIXELS = 10_000, 10, 3 * 32 * 32
SIZE = IMAGES_PER_FILE * (1 + PIXELS)  # bytes of a binary file
LARGEST = 2 * SIZE  # no honest file of either form has more


def read(path: str | Path, checksum: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels of CIFAR-10 as they are in the files.

    Args:
        path: one of the two archives (`cifar-10-binary.tar.gz`, `cifar-10-python.tar.gz`), or a
            folder with the files of one, or a folder in which such a folder
            (`cifar-10-batches-bin`, `cifar-10-batches-py`) lies.
        checksum: whether to insist on the original: MD5 sums of an archive or of pickles; for
            binary files, which have no published sums, their size and the number of images of each
            class. False reads any whole number of records.

    Returns:
        images (N, 32, 32, 3) uint8, labels (N,) int64 for training, and the same for testing.

    Raises:
        FileNotFoundError: there is no CIFAR-10 at `path`; the message says what to download.
        ValueError: a file is truncated, changed, or not CIFAR-10.
    """
    path = Path(path).expanduser()
    files = _unpack(path, checksum) if path.is_file() else _files(path)
    binary = f"{NAMES[0]}.bin" in files
    parts = []
    for name in NAMES:
        full = f"{name}.bin" if binary else name
        if full not in files:
            raise _not_found(path, f"has no {full}")
        content = files[full] if isinstance(files[full], bytes) else _read_limited(files[full])
        if checksum and not binary and path.is_dir():
            _check_md5(content, PICKLES[name], path / full)
        parts.append(_from_binary(content, f"{path}: {full}", checksum) if binary else _from_pickle(content, f"{path}: {full}"))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    if checksum:
        for which, y, each in (("training", labels, IMAGES_PER_FILE // 2), ("test", parts[-1][1], IMAGES_PER_FILE // 10)):
            counts = np.bincount(y, minlength=CLASSES)
            if np.any(counts != each):
                raise ValueError(f"{path} is not the original CIFAR-10: its {which} files must have {each} images of each class, "
                                 f"they have {counts.tolist()}; download {' or '.join(ARCHIVES)} from {PAGE}")
    return images, labels, *parts[-1]


def _files(folder):
    """{name: path} of the files in the folder, or in the folder that the archives make."""
    if not folder.is_dir():
        raise _not_found(folder, "does not exist")
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        files = {file.name: file for file in place.iterdir()} if place.is_dir() else {}
        if any(name in files or f"{name}.bin" in files for name in NAMES):
            return files
    raise _not_found(folder, "has none of its files")


def _unpack(archive, checksum):
    """{name: bytes} of the wanted files in a tar archive; nothing is written anywhere."""
    with open(archive, "rb") as file:
        if checksum:
            digest = hashlib.file_digest(file, "md5") if hasattr(hashlib, "file_digest") else hashlib.md5(file.read())
            if digest.hexdigest() not in ARCHIVES.values():
                raise _changed(archive, digest.hexdigest(), " or ".join(ARCHIVES.values()))
            file.seek(0)
        wanted = {*NAMES, *(f"{name}.bin" for name in NAMES)}
        files: dict[str, bytes] = {}
        origins: dict[str, list[str]] = {}
        try:
            with tarfile.open(fileobj=file) as tar:
                for member in tar:
                    name = Path(member.name).name
                    if name in wanted and member.isfile() and member.size <= LARGEST and (part := tar.extractfile(member)):
                        origins.setdefault(name, []).append(member.name)
                        files[name] = part.read()
                while tar.fileobj and tar.fileobj.read(2**20):
                    pass  # to the end, where gzip and its like compare their checksums
        except Exception as error:  # damaged bytes make tarfile and what it decompresses with raise a dozen types
            why = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
            raise ValueError(f"{archive} is not a whole tar archive ({why}); download {' or '.join(ARCHIVES)} from {PAGE}"
                             ) from error
    for name, members in origins.items():
        if len(members) > 1:
            raise ValueError(f"{archive} has more than one {name}: {', '.join(members)}. Unpack it, and give the folder that you "
                             "mean")
    return files


def _read_limited(path):
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size} bytes, more than any file of CIFAR-10; download it again from {PAGE}")
    return path.read_bytes()


def _check_md5(content, wanted, path):
    found = hashlib.md5(content).hexdigest()
    if found != wanted:
        raise _changed(path, found, wanted)


def _from_binary(content, path, whole):
    """Records of one label byte and 3072 pixel bytes -> images (N, 32, 32, 3), labels (N,)."""
    record = 1 + PIXELS
    if len(content) == 0 or len(content) % record or (whole and len(content) != SIZE):
        raise ValueError(f"{path} has {len(content)} bytes, needed {SIZE if whole else f'a multiple of {record}'}: it is "
                         f"truncated or not CIFAR-10; download cifar-10-binary.tar.gz from {PAGE}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return _checked(records[:, 1:], records[:, 0], path)


def _from_pickle(content, path):
    """A pickled {b"data": (N, 3072) uint8, b"labels": list} -> images (N, 32, 32, 3), labels (N,)."""
    try:
        batch = pickles.load(content)
        pixels, labels = (batch[key] if key in batch else batch[key.decode()] for key in (b"data", b"labels"))
        if isinstance(labels, list) and all(type(label) is int for label in labels):
            labels = np.array(labels)
        if not isinstance(pixels, np.ndarray) or not isinstance(labels, np.ndarray):
            raise ValueError(f"needed an array and a list of whole numbers, got {type(pixels).__name__}, {type(labels).__name__}")
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(f"{path} is not a batch of cifar-10-python ({error}); download cifar-10-python.tar.gz from {PAGE}"
                         ) from error
    if not (pixels.dtype == np.uint8 and labels.dtype.kind in "iu" and pixels.shape == (len(labels), PIXELS) and len(labels)):
        raise ValueError(f"{path} must hold data of shape (N, {PIXELS}) uint8 and N labels, got {pixels.shape} {pixels.dtype} "
                         f"and {labels.shape}; download cifar-10-python.tar.gz from {PAGE}")
    return _checked(pixels, labels, path)


def _checked(pixels, labels, path):
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"{path} has a label {labels[(labels < 0) | (labels >= CLASSES)][0]}, needed 0 to {CLASSES - 1}: it is "
                         f"changed or not CIFAR-10; download it again from {PAGE}")
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _not_found(path, why):
    return FileNotFoundError(f"no CIFAR-10 at {path}: it {why}. Download {' or '.join(ARCHIVES)} from {PAGE} and give the path "
                             "of the archive, or of the folder it unpacks to")


def _changed(path, found, wanted):
    return ValueError(f"{path} is truncated or not the original (MD5 sum {found}, needed {wanted}); download it again from "
                      f"{PAGE}, or read it unchecked with checksum=False")
