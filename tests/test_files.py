"""Files that are replaced as a whole: where and how `open` would write them, or as they were."""

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
import time

import pytest

from minibn import files, sweep
from minibn.training import checkpoint

needs_modes = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
NOT_ROOT = os.name == "posix" and os.geteuid() != 0


def write(path, content=b"new", **options):
    with files.replacing(path, **options) as file:
        file.write(content)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@needs_modes
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_new_file_has_the_mode_that_open_gives_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "ours")
        (tmp_path / "usual").write_bytes(b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "ours") == mode(tmp_path / "usual") == 0o666 & ~umask


@needs_modes
def test_an_existing_file_keeps_its_mode(tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o640)
    write(tmp_path / "f")
    assert mode(tmp_path / "f") == 0o640
    assert (tmp_path / "f").read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path, there):
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    if there:
        real.write_bytes(b"old")
    link.symlink_to(real)
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert [p.name for p in real.parent.iterdir()] == ["real"]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write("~/f")
    assert (tmp_path / "f").read_bytes() == b"new"


@pytest.mark.parametrize(("name", "error", "message"), [
    ("no/such/f", FileNotFoundError, "there is no folder .*no/such; make it first"), ("", IsADirectoryError, "this is a folder"),
    ("f/", IsADirectoryError, "this is a folder"), ("file/f", FileNotFoundError, "there is no folder .*file")])
def test_places_that_cannot_be_written(tmp_path, name, error, message):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error, match=message) as raised:
        write(os.path.join(tmp_path, name))
    assert raised.value.filename == os.path.join(tmp_path, name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not NOT_ROOT, reason="modes do not stop root")
def test_no_permission(tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o444)
    with pytest.raises(PermissionError):
        write(tmp_path / "f")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="no file can be made in its folder"):
            write(tmp_path / "g")
    finally:
        tmp_path.chmod(0o755)
    assert (tmp_path / "f").read_bytes() == b"old"


def test_no_permission_even_where_modes_stop_nobody(tmp_path, monkeypatch):
    original = os.open

    def denied(path, flags, *more):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, flags, *more)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError, match="no file can be made in its folder: Permission denied") as raised:
        write(tmp_path / "g")
    assert raised.value.filename == str(tmp_path / "g")


def test_a_full_disk_leaves_what_was_there(tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "f", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_rehearsal_changes_nothing(tmp_path):
    write(tmp_path / "f", commit=False)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="this link leads to itself"):
        write(tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs os.mkfifo")
@pytest.mark.parametrize("read", [files.reading, checkpoint.load, sweep.read])
def test_pipes_and_devices_are_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="this is a pipe or a device; give a file") as raised:
            read(place)
        assert raised.value.filename == str(place)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


def test_a_device_is_written_and_not_replaced():
    write(os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    path = tmp_path / "f"
    code = ("import sys, time; from minibn import files\n"
            "with files.replacing(sys.argv[1]) as file:\n"
            "    print('ready', flush=True); time.sleep(60)")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            writer.stdout.readline()
        own = tmp_path / "f.minibn-notes.tmp"
        own.write_bytes(b"mine")
        assert len(list(tmp_path.glob("f.minibn-*.tmp"))) == 3
        writers[0].kill()
        writers[0].wait()
        write(path)
        assert len(list(tmp_path.glob("f.minibn-*.tmp"))) == 2
        assert own.exists()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    write(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "f.minibn-notes.tmp"]


SAVES = """
import sys
from minibn import files
for i in range(int(sys.argv[2])):
    with files.replacing(sys.argv[1]) as file:
        file.write(sys.argv[1].encode() + bytes(100_000))
"""
LONG = "preresnet20_cifar10_lr0.1_wd0.0005_momentum0.9_batch128_seed{}.npz"


@pytest.mark.parametrize("names", [[LONG.format(0), LONG.format(1)], ["same", "same"]], ids=["alike", "same"])
def test_processes_that_save_at_the_same_time_all_succeed(tmp_path, names):
    writers = [subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path / name), "300"]) for name in names]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(names))
    for name in names:
        assert (tmp_path / name).read_bytes() == str(tmp_path / name).encode() + bytes(100_000)


def write_and_meanwhile(path, line, happens):
    """Write `path`, and call `happens` before the line of `minibn.files` that runs as number `line`: were there so many?"""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != files.__file__:
            return None
        count += 1
        if count == line:
            sys.settrace(None)
            happens()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        write(path)
    finally:
        sys.settrace(before)
    return count >= line


@pytest.mark.skipif(files.fcntl is None, reason="needs locks of files")
@pytest.mark.parametrize(("name", "other"), [("f", "f"), (LONG.format(0), LONG.format(1))], ids=["same", "alike"])
def test_another_process_may_look_for_leftovers_at_any_moment(tmp_path, name, other):
    taken, line = 0, 1

    def look():
        nonlocal taken
        before = len(list(tmp_path.glob("*.tmp")))
        files._remove_leftovers(tmp_path / other)
        taken += before - len(list(tmp_path.glob("*.tmp")))

    while write_and_meanwhile(tmp_path / name, line, look):
        assert (tmp_path / name).read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
        line += 1
    assert line > 30
    assert (taken > 0) == (name == other)  # before it is locked, or never


@pytest.mark.skipif(files.fcntl is None, reason="needs locks of files")
def test_a_writer_waits_while_another_removes_its_new_file_and_makes_one_more(tmp_path, monkeypatch):
    lock, unlink, holding = files._lock, os.unlink, threading.Event()
    other = threading.Thread(target=lambda: files._remove_leftovers(tmp_path / "f"))

    def late_lock(file, flags=0):
        if not flags and not other.ident:
            other.start()
            assert holding.wait(10)
        lock(file, flags)

    def slow_unlink(path):
        holding.set()
        time.sleep(0.2)
        unlink(path)

    monkeypatch.setattr(files, "_lock", late_lock)
    monkeypatch.setattr(os, "unlink", slow_unlink)
    with files.replacing(tmp_path / "f") as file:
        file.write(b"new")
        other.join()
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_the_longest_names_will_do(tmp_path):
    write(tmp_path / ("ü" * 127))
    assert [p.name for p in tmp_path.iterdir()] == ["ü" * 127]
