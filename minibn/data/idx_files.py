"""IDX files: the format of MNIST, Fashion-MNIST, KMNIST and EMNIST, read and checked.

    0  0  type  d      four bytes: two zeros, the type of the numbers, how many sizes follow
    size_1 … size_d    each four bytes, the most significant first
    numbers            size_1 x … x size_d of them, the last index varying fastest, the most significant byte first

A file may be compressed by gzip, whatever its name.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
LARGEST = 2**30  # bytes; the largest file of the family, EMNIST's by class, has 547 million


def idx(path: str | Path, *, largest: int = LARGEST) -> np.ndarray:
    """The array in one IDX file, with the shape and dtype that the file says.

    EMNIST stores each image with rows and columns exchanged.

    Args:
        path: the file, compressed by gzip or not.
        largest: bytes of numbers to accept. No more than that is ever decompressed.

    Returns:
        array of uint8, int8, int16, int32, float32 or float64, in the machine's byte order.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not IDX, is truncated or damaged, goes on after its numbers, or is
            larger than `largest`.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            try:
                return _read(file, path, largest)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path} is truncated or damaged: gzip says {error}; download it again") from error


def _read(file, path, largest):
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or not 1 <= start[3] <= 32:
        raise ValueError(f"{path} is not an IDX file: it begins with the bytes {start.hex(' ') or '(none)'}, needed 00 00, "
                         f"a type of {', '.join(f'{t:02x}' for t in TYPES)}, and how many sizes follow")
    dtype, sizes = np.dtype(TYPES[start[2]]), _exactly(file, 4 * start[3], path)
    shape = struct.unpack(f">{start[3]}I", sizes)
    count = math.prod(shape) * dtype.itemsize
    if count > largest:
        raise ValueError(f"{path} says that it holds {shape} numbers, {count:,} bytes, above the largest of {largest:,}: it is "
                         "damaged, or give a higher `largest`")
    numbers = np.frombuffer(_exactly(file, count, path), dtype).reshape(shape)
    if file.read(1):
        raise ValueError(f"{path} goes on after the {count:,} bytes of its {shape} numbers: it is not the file that it says")
    return numbers.astype(dtype.newbyteorder("="), copy=False)


def _exactly(file, count, path):
    """`count` bytes, read in pieces, so that memory grows only as far as the file really goes."""
    content = bytearray()
    while len(content) < count and (part := file.read(min(2**20, count - len(content)))):
        content += part
    if len(content) < count:
        raise ValueError(f"{path} is truncated: {count:,} bytes were to come and {len(content):,} came; download it again")
    return content
