"""The file of a sweep: JSON Lines, each line a record with a checksum.

    {"configuration": …, "result": …, "seconds": …, "checksum": …}

`result` is `error` if the run failed. The checksum is the CRC-32 of the record without it, as JSON
with sorted keys: eight hexadecimal digits. So a value that has changed is noticed, and other spaces
are no change. Lines without a checksum, of an earlier version or written by hand, are records, too.

A process that is killed, or a power loss, may leave a last line that is no whole record. It is cut
off before the next record is written, and kept in a file beside it.
"""

import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from minibn import files, jsonable

START = b'{"configuration": '  # of every record
BETWEEN = re.compile(rb'(?<=\})(?=\{"configuration": |\0+\Z)')  # records without a line end; in a string, " is \" and NUL \u0000


def line(record: Mapping[str, Any]) -> bytes:
    """A record as its line of the file."""
    return jsonable.dumps({**record, "checksum": _checksum(record)}).encode() + b"\n"


def read(path: str | Path) -> tuple[list[dict[str, Any]], bytes]:
    """(records without their checksums, the rest: what follows the last whole one).

    Lines may end in any way: as on Unix, Windows or an old Mac, or not at all.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device.
        ValueError: a line is not a record, or was changed; or the rest does not begin as a record
            does. After records, NUL bytes are a rest, too: a power loss leaves them.
    """
    with files.reading(path) as file:
        lines = file.read().splitlines(keepends=True)
    records: list[dict[str, Any]] = []
    for number, text in enumerate(lines, 1):
        for part in filter(bytes.strip, BETWEEN.split(text)):
            try:
                records.append(_record(part, f"line {number} of {path}"))
            except ValueError:
                ends = part[-1:] in (b"\r", b"\n")
                cut = part.startswith(START) or START.startswith(part) or (records and not part.strip(b"\0"))
                if ends or not cut:
                    raise
                return records, part
    return records, b""


@contextmanager
def appending(path: str | Path, rest: bytes) -> Iterator[BinaryIO]:
    """The file at `path`, open for more lines; its end, the `rest` that `read` found, is moved to another file, with a warning.

    Raises:
        OSError: a file cannot be written. The records that were there are still there.
    """
    place = files.target(path)
    with open(place, "a+b") as file:
        if rest:
            aside = place.with_name(f"{place.name}.cut")
            with open(aside, "ab") as other:
                other.write(rest + b"\n")
                other.flush()
                os.fsync(other.fileno())
            file.truncate(file.seek(0, os.SEEK_END) - len(rest))
            warnings.warn(f"the end of {path} is no whole record: its run was cut short, or the line was changed. It is now in "
                          f"{aside}, and the run is done again", stacklevel=4)
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")  # an editor left out the last one
        yield file


def _record(text, name):
    try:
        record = jsonable.loads(text)
        if not isinstance(record["configuration"], dict) or ("result" in record) == ("error" in record):
            raise ValueError("a record has a configuration, and a result or an error")
        changed = "checksum" in record and record.pop("checksum") != _checksum(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} is not a record of a sweep ({error}); give another file, or remove the line to run it "
                         "again") from error
    if changed:
        raise ValueError(f"{name} was changed after it was written: its checksum differs; remove the line to run it again, or "
                         "only its checksum if the change was meant")
    return record


def _checksum(record):
    return f"{zlib.crc32(jsonable.dumps(record, sort_keys=True).encode()):08x}"
