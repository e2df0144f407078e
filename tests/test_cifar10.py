"""CIFAR-10 from small files in the real formats: what is read, and what is refused."""

import hashlib
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from cifar10_batches import COUNT, make_batches, pack, write_binary, write_pickles

from minibn import data
from minibn.data import cifar10_files as cifar10


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
