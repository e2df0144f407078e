"""Files that are replaced as a whole, at the place where `open` would write them."""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


def target(path: str | os.PathLike) -> Path:
    """The file that `open(path, "w")` would write: links are followed. `~` is the home folder.

    Raises:
        IsADirectoryError: `path` is a folder, or ends as one does.
        FileNotFoundError: its folder is missing.
        OSError: the link leads to itself.
    """
    given = os.path.expanduser(os.fsdecode(path))
    place = Path(os.path.realpath(given))
    if place.is_symlink():
        raise OSError(errno.ELOOP, "this link leads to itself; give the name of a file", str(path))
    if not given or given.endswith(("/", os.sep)) or place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder; give the name of a file", str(path))
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {place.parent}; make it first", str(path))
    return place


def reading(path: str | os.PathLike) -> BinaryIO:
    """The file at `path`, open for reading bytes. `~` is the home folder.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is a folder, a pipe or a device, which may never end.
    """
    given = os.path.expanduser(os.fsdecode(path))
    if not os.path.isdir(given) and os.path.exists(given) and not os.path.isfile(given):
        raise OSError(errno.EINVAL, "this is a pipe or a device; give a file", str(path))
    return open(given, "rb")


@contextmanager
def replacing(path: str | os.PathLike, *, commit: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write. At the end it takes the place of the file at `path`, all at once.

    At every moment `path` holds either its earlier content or the new one, even when the disk is
    full or the process is killed. Until then the new content is in a file named `NAME.minibn-….tmp`
    beside it. Files of this name that a killed process has left are removed. Of several processes
    that write one file at once, the last one's content stays.

    As with `open`, a link stays a link, an existing file keeps its mode and a new one has that of
    the umask. A device or a pipe is written directly.

    Args:
        path: file to write.
        commit: False writes everything and removes it again. It shows whether there is room.

    Raises:
        OSError: the file cannot be written. What was at `path` is still there.
    """
    place = target(path)
    if place.exists() and not place.is_file():
        with _named(path, place), open(place, "wb") as device:
            yield device
        return
    earlier = place.stat() if place.exists() else None
    if earlier:
        os.close(os.open(place, os.O_WRONLY))  # raises where the file may not be written, though it could be replaced
    _remove_leftovers(place)
    try:
        file, temporary = _new(place)
    except OSError as error:
        raise OSError(error.errno, f"no file can be made in its folder: {error.strerror}", str(path)) from error
    try:
        with _named(path, temporary), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not fcntl:
                file.close()  # Windows renames no open file; elsewhere it stays locked until it has its name
            if earlier:
                with suppress(OSError, AttributeError):  # only root may give a file to another user
                    os.chown(temporary, earlier.st_uid, earlier.st_gid)
                os.chmod(temporary, earlier.st_mode & 0o7777)
            if commit:
                os.replace(temporary, place)
                _sync_folder(place.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path, place):
    """Let an OSError name the file as the caller does: one of a write names none, and that of another name is no help."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(place)):
            error.filename, error.filename2 = str(path), None
        raise


def _new(place):
    """(a new temporary file of `place`, open and locked; its path)."""
    while True:
        temporary = place.with_name(f"{_stem(place)}{secrets.token_hex(4)}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        file = open(handle, "wb")  # noqa: SIM115 - closed by the caller
        with suppress(OSError):  # some file systems know no locks
            _lock(file)
        if temporary.exists():  # or another process took it for a leftover before it was locked
            return file, temporary
        file.close()


def _stem(place):
    """How the names of this place's temporary files, and of no other's, begin. They are no longer than names may be."""
    return f"{place.name[:50]}.minibn-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:8]}-"


def _lock(file, flags=0):
    """Mark `file` as in use, as soon as nobody else does; the mark goes with the process."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | flags)


def _remove_leftovers(place):
    """Remove the temporary files of processes that were killed while they wrote `place`."""
    pattern = re.compile(re.escape(_stem(place)) + r"[0-9a-f]{8}\.tmp")
    names = []
    with suppress(PermissionError):  # a folder may be writable and not readable
        names = os.listdir(place.parent)
    for name in filter(pattern.fullmatch, names):
        with suppress(OSError), open(place.with_name(name), "rb") as file:
            _lock(file, getattr(fcntl, "LOCK_NB", 0))  # raises while its process lives
            os.unlink(file.name)


def _sync_folder(folder):
    """Make the new name itself durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(PermissionError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
