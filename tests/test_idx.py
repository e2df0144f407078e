"""IDX files and Fashion-MNIST, from small files in the real format: what is read, and what is refused."""

import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minibn import data
from minibn.data import fashion_mnist_files
from minibn.experiment import Experiment

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}
TRAIN, TEST = 30, 20  # images in the small files; the real ones have 60,000 and 10,000


def idx_bytes(array):
    """The array as an IDX file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, content, packed):
    path = path.with_name(path.name + ".gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


# ---- one file ----


@given(st.sampled_from(list(CODES)).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=4, max_side=5))),
       st.booleans())
def test_every_type_and_shape_comes_back_as_it_was_written(tmp_path_factory, array, packed):
    path = write(tmp_path_factory.mktemp("idx") / "a", idx_bytes(array), packed)
    found = data.idx(path)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


def test_the_bytes_of_the_format_are_read_as_its_definition_says(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 0xFF, 0xFE]))
    np.testing.assert_array_equal(data.idx(tmp_path / "a"), np.array([[258, -2]], np.int16))


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, packed):
    content = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    whole = gzip.compress(content) if packed else content
    for length in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="a is (truncated|not an IDX file)"):
            data.idx(tmp_path / "a")


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_goes_on_is_refused(tmp_path, packed):
    path = write(tmp_path / "a", idx_bytes(np.zeros((3, 4), np.uint8)) + b"\0", packed)
    with pytest.raises(ValueError, match=r"goes on after the 12 bytes of its \(3, 4\) numbers"):
        data.idx(path)


def test_a_flipped_bit_of_a_gzip_file_is_noticed_wherever_it_changes_a_number(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(50, 4), dtype=np.uint8)
    whole, noticed = gzip.compress(idx_bytes(array), mtime=0), 0
    for position in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            np.testing.assert_array_equal(data.idx(tmp_path / "a"), array)
        except ValueError:
            noticed += 1
    assert noticed >= len(whole) - 7  # gzip does not check the time and system in its header, and has padding


@pytest.mark.parametrize("content", [
    b"", b"\x89PNG\r\n", b"\0\0\x07\1\0\0\0\0", b"\0\0\x08\0", b"\1\0\x08\1\0\0\0\0", b"\0\0\x08\x80"])
def test_what_is_not_idx_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="a is not an IDX file: it begins with the bytes"):
        data.idx(tmp_path / "a")


def test_memory_is_bounded_by_the_limit_and_by_the_file(tmp_path):
    """Neither 100 MB of zeros in a small file nor sizes of 4 GB in the header are believed."""
    bomb = tmp_path / "bomb"
    bomb.write_bytes(gzip.compress(struct.pack(">BBBB2I", 0, 0, 8, 2, 1, 1000) + bytes(10**8)))
    claim = tmp_path / "claim"
    claim.write_bytes(struct.pack(">BBBB2I", 0, 0, 8, 2, 2**16, 2**16) + bytes(100))
    short = tmp_path / "short"
    short.write_bytes(gzip.compress(struct.pack(">BBBB2I", 0, 0, 8, 2, 2**15, 2**15) + bytes(100)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="goes on after the 1,000 bytes"):
            data.idx(bomb)
        with pytest.raises(ValueError, match=r"says that it holds \(65536, 65536\) numbers, 4,294,967,296 bytes, above"):
            data.idx(claim)
        with pytest.raises(ValueError, match="short is truncated: 1,073,741,824 bytes were to come and 100 came"):
            data.idx(short)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="above the largest of 999"):
        data.idx(bomb, largest=999)


# ---- Fashion-MNIST ----


def make_fashion(seed=0, train=TRAIN, test=TEST):
    """{name of a file: its numbers}, small."""
    rng = np.random.default_rng(seed)
    return {name: (rng.integers(256, size=(count, 28, 28), dtype=np.uint8) if "images" in name
                   else rng.permutation(np.arange(count) % 10).astype(np.uint8))
            for name, count in zip(fashion_mnist_files.FILES, (train, train, test, test), strict=True)}


def write_fashion(folder, files, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in files.items():
        write(folder / name, idx_bytes(array), packed)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A folder with small files, and their sizes and sums in the place of the original's."""
    files = make_fashion()
    write_fashion(tmp_path, files)
    monkeypatch.setattr(fashion_mnist_files, "FILES",
                        {name: (array.shape, hashlib.md5(array.tobytes()).hexdigest()) for name, array in files.items()})
    return tmp_path, files


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels_of_all_four_files(small, packed):
    folder, files = small
    write_fashion(folder / "again", files, packed)
    split = data.fashion_mnist(folder / "again")
    train, y_train, test, y_test = files.values()
    assert split.x_train.shape == (TRAIN, 28, 28, 1)
    assert split.x_test.shape == (TEST, 28, 28, 1)
    assert (split.x_train.dtype, split.y_train.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(split.y_train, y_train)
    np.testing.assert_array_equal(split.y_test, y_test)
    mean, std = train.mean(), train.std()
    np.testing.assert_allclose(split.x_train[..., 0], (train - mean) / std, atol=1e-6)
    np.testing.assert_allclose(split.x_test[..., 0], (test - mean) / std, atol=1e-6)
    assert data.fashion_mnist(folder, "float64").x_train.std() == pytest.approx(1, abs=1e-12)


def test_files_that_changed_places_are_told_apart(small):
    folder, files = small
    names = list(files)

    def exchanged(one, other):
        write_fashion(folder / "x", files | {names[one]: files[names[other]], names[other]: files[names[one]]})
        return folder / "x"

    with pytest.raises(ValueError, match="train-images-idx3-ubyte holds .*what train-labels-idx1-ubyte should hold, not images"):
        data.fashion_mnist(exchanged(0, 1))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte holds .*is what t10k-images-idx3-ubyte should hold"):
        data.fashion_mnist(exchanged(0, 2))
    with pytest.raises(ValueError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(exchanged(1, 3))
    with pytest.raises(ValueError, match="holds uint8 numbers of shape .30,., needed uint8 of 3 axes"):
        data.fashion_mnist(exchanged(0, 1), checksum=False)
    with pytest.raises(ValueError, match="20 images and 30 labels in its train files"):
        data.fashion_mnist(exchanged(0, 2), checksum=False)


def test_other_data_sets_in_the_same_format_are_read_only_unchecked(small):
    folder, _ = small
    other = make_fashion(seed=1)
    write_fashion(folder / "kmnist", other)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is changed or of another data set .*checksum=False"):
        data.fashion_mnist(folder / "kmnist")
    np.testing.assert_array_equal(data.fashion_mnist(folder / "kmnist", checksum=False).y_test, other["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: f["train-labels-idx1-ubyte"] + np.uint8(10), "has a label 19, needed 0 to 9"),
    (lambda f: f["train-labels-idx1-ubyte"].astype(np.int32), "holds int32 numbers"),
    (lambda f: f["train-labels-idx1-ubyte"][:0], r"of shape \(0,\)"),
    (lambda f: f["train-labels-idx1-ubyte"][:-1], "30 images and 29 labels"),
])
def test_labels_that_do_not_fit_are_refused_even_unchecked(small, change, message):
    folder, files = small
    write_fashion(folder, files | {"train-labels-idx1-ubyte": change(files)})
    with pytest.raises(ValueError, match=message):
        data.fashion_mnist(folder, checksum=False)


def test_images_of_two_sizes_are_refused_even_unchecked(small):
    folder, files = small
    write_fashion(folder, files | {"t10k-images-idx3-ubyte": files["t10k-images-idx3-ubyte"][:, :20]})
    with pytest.raises(ValueError, match=r"training images of \(28, 28\) pixels and test images of \(20, 28\)"):
        data.fashion_mnist(folder, checksum=False)


def test_missing_and_broken_files_say_where_to_get_them(small):
    folder, _ = small
    for path, why in ((folder / "no", "does not exist"), (folder / "train-images-idx3-ubyte", "is not a folder")):
        with pytest.raises(FileNotFoundError, match=f"no Fashion-MNIST at .*: it {why}.*apt-get install dataset-fashion-mnist"):
            data.fashion_mnist(path)
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is truncated.*apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="it has no t10k-labels-idx1-ubyte, gzipped or not"):
        data.fashion_mnist(folder)


@pytest.mark.parametrize("read", [data.digits, lambda dtype: data.fashion_mnist("nowhere", dtype)])
def test_whole_numbers_cannot_hold_normalised_pixels(read):
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got 'int32'"):
        read("int32")


def test_an_experiment_reads_it(small):
    split = Experiment(data="fashion-mnist", path=str(small[0]), checksum=True).split
    assert split.x_test.shape == (TEST, 28, 28, 1)
    with pytest.raises(ValueError, match="data='fashion-mnist' needs path"):
        Experiment(data="fashion-mnist")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_files():
    """As published: 6,000 and 1,000 images of each class, pixels of mean 0.2860 and standard deviation 0.3530 (white is 1)."""
    train, y_train, test, y_test = fashion_mnist_files.read(DEBIAN)
    assert (train.shape, test.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert np.bincount(y_train).tolist() == [6000] * 10
    assert np.bincount(y_test).tolist() == [1000] * 10
    assert (train / 255).mean() == pytest.approx(0.2860, abs=5e-5)
    assert (train[:6000] / 255).std() == pytest.approx(0.3530, abs=2e-3)
    assert y_test[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
