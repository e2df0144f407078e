"""Checkpoint files: what was saved comes back, damage is noticed, and nothing that was saved is lost."""

import errno
import hashlib
import os
import zipfile

import numpy as np
import pytest
from runs import Run, assert_same_bits

from minibn import data, models, schedules
from minibn.optim import SGD
from minibn.training import checkpoint, fit


def test_a_checkpoint_comes_back(tmp_path):
    arrays, facts = {"a/b.c": np.arange(3.0), "d": np.float32([[1]])}, {"generator": {"state": 2**127}, "list": [1, "two"]}
    checkpoint.save(tmp_path / "c.npz", arrays, facts)
    loaded, same = checkpoint.load(tmp_path / "c.npz")
    assert_same_bits(loaded, arrays)
    assert same == facts
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def loads_whole_or_not_at_all(path, arrays, facts):
    """Whether `path` is refused. Else it must hold exactly these."""
    try:
        loaded, same = checkpoint.load(path)
    except ValueError as error:
        if "is not a whole minibn checkpoint" not in str(error) or "\n" in str(error):
            pytest.fail(f"the wrong message: {error}")
        return True
    assert_same_bits(loaded, arrays)
    assert {name: array.dtype for name, array in loaded.items()} == {name: array.dtype for name, array in arrays.items()}
    assert same == facts
    return False


def test_500_truncated_or_flipped_checkpoints_are_refused_or_whole(tmp_path):
    """With an array that is longer than zipfile reads at once, and any bit of the file, those of its directory too."""
    path, rng = tmp_path / "c.npz", np.random.default_rng(0)
    arrays, facts = {"model/a": np.arange(1600.0), "history/b": np.arange(3), "empty": np.zeros((0, 2), "f4")}, {"steps": 1}
    checkpoint.save(path, arrays, facts)
    whole = path.read_bytes()
    refused = 0
    for case in range(500):
        damaged = bytearray(whole)
        if case % 5 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            # half of the bits in the headers of the parts and in the directory, where there is more
            # to go wrong
            where = rng.integers(len(whole)) if case % 2 else rng.choice([*range(1000), *range(len(whole) - 900, len(whole))])
            damaged[where] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        refused += loads_whole_or_not_at_all(path, arrays, facts)
    assert refused > 300


def test_another_shape_of_the_same_bytes_is_refused(tmp_path):
    """A changed header leaves zip's own checksum as it is, since NumPy stops reading early."""
    checkpoint.save(tmp_path / "c.npz", {"a": np.arange(1600.0)}, {})
    content = (tmp_path / "c.npz").read_bytes()
    assert content.count(b"(1600,)") == 1
    (tmp_path / "c.npz").write_bytes(content.replace(b"(1600,)", b"(1200,)"))
    with pytest.raises(ValueError, match="is not a whole minibn checkpoint"):
        checkpoint.load(tmp_path / "c.npz")


def test_only_a_damaged_checkpoint_is_said_to_be_deleted(tmp_path):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"a": np.arange(16.0)}, {})
    whole = path.read_bytes()
    for content, advice in ((whole[:-9], "delete it to start again, or use another"), (b"", "delete it to start again"),
                            (b"my notes", "give another file"), (b"PK\3\4" + bytes(99), "give another file")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"is not a whole minibn checkpoint .*; {advice}"):
            checkpoint.load(path)
        assert path.read_bytes() == content


def rewritten(path, change):
    """The archive at `path` with its parts {name: bytes} changed; zip's checksums are right."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("change", [
    lambda parts: parts.update({"c.npy": parts.pop("a.npy")}), lambda parts: parts.pop("b.npy"),
    lambda parts: parts.update({"a.npy": parts["b.npy"], "b.npy": parts["a.npy"]}), lambda parts: parts.pop("minibn.json"),
    lambda parts: parts.update({"new.npy": parts["a.npy"]}), lambda parts: parts.pop("SHA256SUMS"),
    lambda parts: parts.update({"minibn.json": b"[1]"}), lambda parts: parts.clear()],
    ids=["renamed", "missing", "exchanged", "no facts", "added", "no checksums", "other facts", "nothing"])
def test_foreign_missing_and_renamed_parts_are_refused(tmp_path, change):
    checkpoint.save(tmp_path / "c.npz", {"a": np.arange(3), "b": np.ones(2)}, {"steps": 1})
    rewritten(tmp_path / "c.npz", change)
    with pytest.raises(ValueError, match="is not a whole minibn checkpoint"):
        checkpoint.load(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["file", "allow_pickle", "minibn.json", "SHA256SUMS", "a.npy", "args", "ü/ñ", ""])
def test_any_name_of_an_array_comes_back(tmp_path, name):
    checkpoint.save(tmp_path / "c.npz", {name: np.arange(3), "a": np.ones(1)}, {"file": 1, "facts": 2})
    arrays, facts = checkpoint.load(tmp_path / "c.npz")
    assert_same_bits(arrays, {name: np.arange(3), "a": np.ones(1)})
    assert facts == {"file": 1, "facts": 2}


def test_numpy_and_sha256sum_read_it_too(tmp_path):
    checkpoint.save(tmp_path / "c.npz", {"a/b": np.arange(3)}, {"steps": np.int64(1)})
    with np.load(tmp_path / "c.npz") as file:
        np.testing.assert_array_equal(file["a/b"], np.arange(3))
        assert file["minibn.json"] == b'{"steps": 1}'
        *lines, end = file["SHA256SUMS"].decode().split("\n")
    with zipfile.ZipFile(tmp_path / "c.npz") as archive:
        assert [line.split("  ") for line in lines] == [[hashlib.sha256(archive.read(name)).hexdigest(), name]
                                                        for name in ("minibn.json", "a/b.npy")]
    assert end == ""


@pytest.mark.parametrize("content", [b"my notes", b"PK\3\4" + bytes(60)])
def test_a_file_that_is_no_checkpoint_is_never_replaced(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(FileExistsError, match="the file that is there is not a minibn checkpoint"):
        checkpoint.save(path, {}, {})
    with pytest.raises(FileExistsError, match="the file that is there is not a minibn checkpoint"):
        Run().fit(path=path, resume=False)
    with pytest.raises(ValueError, match="is not a whole minibn checkpoint"):
        Run().fit(path=path)
    assert path.read_bytes() == content


def test_arrays_of_objects_and_facts_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a is an array of objects, which a checkpoint"):
        checkpoint.save(tmp_path / "c.npz", {"a": np.array([None])}, {})
    with pytest.raises(TypeError, match=r"facts\['f'\] is .* of type builtin_function"):
        checkpoint.save(tmp_path / "c.npz", {}, {"f": len})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole minibn checkpoint"):
        checkpoint.load(path)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"a": np.ones(3)}, {})
    old = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="checkpoint not written .No space left on device.; what was saved before is untouched"):
        checkpoint.save(path, {"a": np.zeros(3)}, {})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.parametrize("facts", [{"steps": 3}, [], None])
def test_a_checkpoint_that_fit_did_not_write_is_named_as_that(facts, tmp_path):
    checkpoint.save(tmp_path / "c.npz", {"a": np.zeros(1)}, facts)
    with pytest.raises(ValueError, match=r"c.npz is a checkpoint, but not one of this version's training.fit"):
        Run().fit(path=tmp_path / "c.npz")


# ---- a run that goes on ----

def go(path, *, first=0, images=64, relabelled=0, size=16, momentum=0.9, lr=0.1, dtype="float32", rng="PCG64", groups=1,
       width=8, **options):
    """Train an MLP on some digits."""
    digits = data.digits(dtype)
    net = models.mlp((width,), rng=np.random.default_rng(0), dtype=dtype)
    parameters = net.parameters()
    optimizers = {f"group{i}": SGD(parameters[i::groups], schedules.constant(lr, momentum=momentum)) for i in range(groups)}
    options = {"epochs": 2, "batch_size": size, "progress": False} | options
    generator = np.random.Generator(getattr(np.random, rng)(0))
    x, y = digits.x_train[first : first + images], digits.y_train[first : first + images].copy()
    y[:relabelled] = 0
    return fit(net, optimizers, x, y, rng=generator, path=path, **options), net


@pytest.mark.parametrize("rng", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_bit_generator_goes_on(tmp_path, rng):
    whole, net = go(None, rng=rng)
    go(tmp_path / "c.npz", rng=rng, max_steps=3)
    resumed, other = go(tmp_path / "c.npz", rng=rng)
    assert_same_bits(*({name: run[name] for name in run.columns} for run in (resumed, whole)))
    assert_same_bits(net.state_dict(), other.state_dict())


@pytest.mark.parametrize(("change", "message"), [
    ({"size": 8}, "batch_size was 16, now 8"), ({"images": 48}, "examples was 64, now 48"),
    ({"first": 1}, "the examples of the data are others than"), ({"relabelled": 9}, "the labels of the data are others than"),
    ({"momentum": 0.8}, "momentum of 'group0' at step 4 was 0.9, now 0.8"),
    ({"lr": 0.2}, "lr of 'group0' at step 0 was 0.1, now 0.2"),
    ({"dtype": "float64"}, "dtype was 'float32', now 'float64'"), ({"rng": "MT19937"}, "rng was 'PCG64', now 'MT19937'"),
    ({"groups": 2}, r"groups was \['group0'\], now \['group0', 'group1'\]"),
    ({"drop_last": False}, "drop_last was True, now False"),
    ({"width": 9}, r"model/linear1.weight was .*64, 8.*, now .*64, 9"),
    ({"settings": {"a": 2, "b": 3}}, "settings.a was 1, now 2. Go on"),
    ({"augment": data.crop_flip}, "augment was None, now 'crop_flip'"),
    ({"validation": (np.ones((2, 8, 8, 1), "f4"), np.ones(2, "i4"))}, "validation was False, now True"),
    ({"epochs": 1}, "is at step 5, beyond the 1 epochs of 4 steps asked for; give at least 2 epochs")])
def test_a_checkpoint_of_another_run_is_refused_and_the_difference_named(tmp_path, change, message):
    settings = {"settings": {"a": 1, "b": float("nan") if "size" in change else 3}}
    go(tmp_path / "c.npz", max_steps=5, **settings)
    before = (tmp_path / "c.npz").read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        go(tmp_path / "c.npz", **settings | change)
    assert "\n" not in str(error.value)
    assert (tmp_path / "c.npz").read_bytes() == before
    resumed, _ = go(tmp_path / "c.npz", **settings)
    assert len(resumed) == 8


def test_a_path_that_cannot_be_written_is_found_before_the_first_step(tmp_path, monkeypatch):
    def no_step(self):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(SGD, "step", no_step)
    (tmp_path / "folder").mkdir()
    for name, error, message in (("no/such/c.npz", FileNotFoundError, "there is no folder"),
                                 ("folder", OSError, "folder|directory"),
                                 (os.devnull, OSError, "this is a pipe or a device")):
        with pytest.raises((error, ValueError), match=message):
            go(tmp_path / name)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="checkpoint not written .No space left on device"):
        go(tmp_path / "c.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_the_home_folder_and_links(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    go("~/c.npz", max_steps=3)
    (tmp_path / "link.npz").symlink_to("c.npz")
    assert len(go("~/link.npz")[0]) == 8
    assert (tmp_path / "link.npz").is_symlink()
    assert len(go("~/c.npz")[0]) == 8


def test_what_is_no_array_of_numbers_is_named(tmp_path):
    for bad, message in (([1.0], "a/b must be an array of NumPy, .*, got builtins.list; give np.asarray"), (None, "a/b must be"),
                         (np.ma.masked_array([1.0]), "a/b is a masked array")):
        with pytest.raises(TypeError, match=message):
            checkpoint.save(tmp_path / "c.npz", {"a/b": bad}, {})
    assert not list(tmp_path.iterdir())


def _changed(name, value):
    return lambda arrays, facts: facts["optimizers"]["rest"].update({name: value})


@pytest.mark.parametrize("change", [
    lambda arrays, facts: facts["generator"].update(state={}), lambda arrays, facts: facts.update(generator=3),
    lambda arrays, facts: facts.update(last=5), lambda arrays, facts: facts.update(columns=["none"]),
    lambda arrays, facts: arrays.pop("optimizer/rest/velocity/0"),
    lambda arrays, facts: arrays.update({"history/loss": np.ones(2)}),
    lambda arrays, facts: arrays.update({"optimizer/rest/velocity/0": np.ones(99)}),
    _changed("steps", -1), _changed("steps", "two"), _changed("steps", 2.5), _changed("steps", None)],
    ids=["state", "generator", "last", "columns", "velocity", "history", "shape", "negative", "words", "part", "none"])
def test_a_whole_checkpoint_of_something_else_is_refused_by_its_name(tmp_path, change):
    path = tmp_path / "c.npz"
    Run().fit(epochs=1, path=path)
    arrays, facts = checkpoint.load(path)
    change(arrays, facts)
    checkpoint.save(path, arrays, facts)
    with pytest.raises(ValueError, match=r"c.npz (is a checkpoint, but not one of this|does not fit: ).*give another file"):
        Run().fit(epochs=2, path=path)


def test_settings_that_were_not_there_are_named_in_short(tmp_path):
    Run().fit(epochs=1, path=tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"settings was None, now \{'name0': 0, 'name1': 1, .*\.\.\.\}\. Go on with"):
        Run().fit(epochs=1, path=tmp_path / "c.npz", settings={f"name{i}": i for i in range(30)})
