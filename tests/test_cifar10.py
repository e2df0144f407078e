"""CIFAR-10 from small files in the real formats: what is read, and what is refused."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import data
from minibn.data import cifar10_files as cifar10
from minibn.data import pickles

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


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Files of both forms under tmp_path, and their sums and sizes in the place of the original's."""
    batches = make_batches()
    write_binary(tmp_path / "b" / "cifar-10-batches-bin", batches)
    write_pickles(tmp_path / "p" / "cifar-10-batches-py", batches)
    pack(tmp_path / "b" / "cifar-10-batches-bin", tmp_path / "cifar-10-binary.tar.gz")
    pack(tmp_path / "p" / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz")

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(cifar10, "ARCHIVES", {name: md5(tmp_path / name) for name in cifar10.ARCHIVES})
    monkeypatch.setattr(cifar10, "PICKLES", {name: md5(tmp_path / "p/cifar-10-batches-py" / name) for name in cifar10.NAMES})
    monkeypatch.setattr(cifar10, "SIZE", COUNT * 3073)
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", COUNT)
    return tmp_path, batches


FORMS = ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "b", "p", "b/cifar-10-batches-bin", "p/cifar-10-batches-py"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(small, form, monkeypatch):
    folder, batches = small
    # five training files of COUNT images have COUNT/2 of each class: 10 classes, 5 files
    x, y, x_test, y_test = cifar10.read(folder / form)
    assert x.shape == (5 * COUNT, 32, 32, 3)
    assert x_test.shape == (COUNT, 32, 32, 3)
    assert x.dtype == np.uint8
    pixels, labels = batches["data_batch_2"]
    np.testing.assert_array_equal(y[COUNT : 2 * COUNT], labels)
    np.testing.assert_array_equal(y_test, batches["test_batch"][1])
    red, row, column = 0, 3, 7
    assert x[COUNT + 4, row, column, red] == pixels[4, red * 1024 + row * 32 + column]
    assert x[COUNT + 4, row, column, 2] == pixels[4, 2 * 1024 + row * 32 + column]


def test_channels_are_normalised(small):
    split = data.cifar10(small[0] / "b")
    assert split.x_train.dtype == np.float32
    np.testing.assert_allclose(split.x_train.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(split.x_train.std(axis=(0, 1, 2)), 1, atol=1e-3)
    assert abs(split.x_test.mean()) > 0  # with the numbers of the training images
    assert data.cifar10(small[0] / "b", "float64").x_test.dtype == np.float64


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_truncated_and_tampered_files(small, form, damage):
    folder, _ = small
    path = folder / form
    if path.is_dir():
        path = next(p for p in sorted(path.rglob("*")) if "data_batch_1" in p.name)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) - 100]
    else:
        content[0 if path.suffix == ".bin" else len(content) // 2] ^= 1  # of a binary file, a label
    path.write_bytes(content)
    with pytest.raises(ValueError, match="download"):
        cifar10.read(folder / form)


def test_unchecked_files_may_be_a_part_but_not_broken(small):
    folder, _ = small
    file = folder / "b" / "cifar-10-batches-bin" / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[: 3 * 3073])
    assert len(cifar10.read(folder / "b", checksum=False)[0]) == 4 * COUNT + 3
    with pytest.raises(ValueError, match=f"has 9219 bytes, needed {COUNT * 3073}"):
        cifar10.read(folder / "b")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="has 9218 bytes, needed a multiple of 3073"):
        cifar10.read(folder / "b", checksum=False)
    file.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="has a label 10, needed 0 to 9"):
        cifar10.read(folder / "b", checksum=False)


def test_missing_files(small, tmp_path):
    folder, _ = small
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 at .*nowhere: it does not exist. Download cifar-10-binary.tar.gz"):
        cifar10.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has none of its files"):
        cifar10.read(tmp_path / "empty")
    (folder / "b" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match="has no test_batch.bin"):
        cifar10.read(folder / "b")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("where", ["whole", "inside"])
def test_a_hostile_pickle_is_refused(small, where, protocol, tmp_path):
    folder, _ = small
    harm = Hostile(tmp_path / "harm")
    content = pickle.dumps(harm if where == "whole" else {b"data": np.zeros((1, 3072), np.uint8), b"labels": [harm]}, protocol)
    (folder / "p" / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match="is not a batch of cifar-10-python .it asks for (posix|nt).system"):
        cifar10.read(folder / "p", checksum=False)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_of_any_protocol(small, protocol):
    folder, batches = small
    write_pickles(folder / "q", batches, protocol)
    np.testing.assert_array_equal(cifar10.read(folder / "q", checksum=False)[0], cifar10.read(folder / "p")[0])


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ">i4"])
def test_labels_may_be_numbers_or_an_array_of_numpy(small, protocol, dtype):
    folder, batches = small
    pixels, labels = batches["test_batch"]
    for kept in (list(labels.astype(dtype)), labels.astype(dtype), labels.tolist()):
        batch = {"data": pixels, "labels": kept}
        (folder / "p" / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        np.testing.assert_array_equal(cifar10.read(folder / "p", checksum=False)[3], labels)


@pytest.mark.parametrize("batch", [{}, [], {b"data": 3, b"labels": [1]}, {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
                                   {b"data": np.zeros((1, 3072)), b"labels": [1]},
                                   {b"data": np.zeros((1, 3072), object), b"labels": [1]}])
def test_pickles_that_are_no_batches(small, batch):
    folder, _ = small
    (folder / "p" / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(batch))
    with pytest.raises(ValueError, match="data_batch_1 (is not a batch|must hold data).*download cifar-10-python"):
        cifar10.read(folder / "p", checksum=False)


LARGE = struct.pack("<Q", 2**33)
DTYPE = b"cnumpy\ndtype\n(S'i4'\ntR"
ENCODE = b"c_codecs\nencode\n(X\1\0\0\0aX\3\0\0\0hextR"  # with other codecs it would double the text, again and again


@pytest.mark.parametrize(("program", "message"), [
    pytest.param(b"]r\xff\xff\xff\x7f.", "stores object number 2147483647 after 2 operations", id="memo"),
    pytest.param(b"]p2147483647\n.", "stores object number 2147483647 after 2 operations", id="memo in text"),
    pytest.param(b"\x80\4\x8e" + LARGE + b"abc.", "expected 8589934592 bytes", id="bytes"),
    pytest.param(b"\x80\5\x96" + LARGE + b"abc.", "expected 8589934592 bytes", id="bytearray"),
    pytest.param(b"\x80\4\x95" + LARGE + b"N.", "truncated|exhausted", id="frame"),
    pytest.param(b"cnumpy\nndarray\n(I10000000000\ntR.", "not callable", id="ndarray"),
    pytest.param(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I10000000000\ntS'b'\ntR.",
                 "makes an array of shape .10000000000,. without numbers", id="reconstruct"),
    pytest.param(ENCODE + b".", "asks for text in the encoding hex", id="codecs"),
    pytest.param(DTYPE + b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb" * 17 + b".", "more than 16 NumPy objects", id="objects"),
    pytest.param(DTYPE.replace(b"i4", b"V10000000") + b".", "numbers of the type .V10000000", id="void"),
])
def test_a_small_pickle_cannot_take_much_memory(program, message):
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match=message):
            pickles.load(program)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


WHOLE = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, np.int64(2)], b"filenames": [b"a.png", b"b.png"]}, 2)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4), st.sampled_from([0, -200]))
def test_a_changed_pickle_gives_something_or_an_error_within_little_memory(changes, start):
    content = bytearray(WHOLE)
    for place, value in changes:
        content[(start + place) % len(content)] = value
    tracemalloc.start()
    try:
        with suppress(Exception):
            pickles.load(bytes(content))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_reading_a_pickle_does_not_change_numpy():
    """A dtype is filled after it is made: the copy, not NumPy's own int32, becomes big-endian."""
    assert pickles.load(pickle.dumps(np.arange(3, dtype=">i4"), 2)).tolist() == [0, 1, 2]
    assert np.dtype("int32").isnative
    assert np.frombuffer(b"\1\0\0\0", "<i4")[0] == 1


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flip", "noise"])
def test_a_damaged_archive_that_is_read_unchecked(small, form, damage):
    folder, _ = small
    path = folder / f"damaged.tar.{form}"
    with tarfile.open(path, f"w:{form}") as tar:
        tar.add(folder / "p" / "cifar-10-batches-py")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "cut":
        del content[middle:]
    else:
        content[middle : middle + (1 if damage == "flip" else 4000)] = b"\xa5" * (1 if damage == "flip" else 4000)
    path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"damaged.tar.*download|damaged.tar.*Download"):
        cifar10.read(path, checksum=False)


def test_a_zip_archive_is_refused_in_one_line(small):
    folder, _ = small
    with zipfile.ZipFile(folder / "cifar.zip", "w") as file:
        file.writestr("data_batch_1", b"x")
    with pytest.raises(ValueError, match="cifar.zip is not a whole tar archive .*download") as error:
        cifar10.read(folder / "cifar.zip", checksum=False)
    assert "\n" not in str(error.value)


def test_two_copies_of_a_batch_in_one_archive_are_refused(small):
    folder, _ = small
    with tarfile.open(folder / "two.tar", "w") as tar:
        for copy in ("old", "new"):
            tar.add(folder / "b" / "cifar-10-batches-bin", copy)
    with pytest.raises(ValueError, match="has more than one data_batch_1.bin: old/data_batch_1.bin, new/data_batch_1.bin"):
        cifar10.read(folder / "two.tar", checksum=False)


def test_an_archive_with_an_endless_file_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "LARGEST", 1000)
    with tarfile.open(tmp_path / "big.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("x/data_batch_1.bin")
        info.size = 10_000
        tar.addfile(info, io.BytesIO(bytes(10_000)))
    with pytest.raises(FileNotFoundError, match="has no data_batch_1"):
        cifar10.read(tmp_path / "big.tar.gz", checksum=False)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(1001))
    with pytest.raises(ValueError, match="has 1001 bytes, more than any file of CIFAR-10"):
        cifar10.read(tmp_path, checksum=False)


# ---- augmentation ----


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
