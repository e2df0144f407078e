"""CSV tables as they come from spreadsheets, pandas, editors and other systems."""

import csv
import itertools
import os
import re
from collections.abc import Iterable, Iterator

from minibn import arguments

INDEX = re.compile(r"|Unnamed: \d+|index", re.IGNORECASE)  # how pandas calls the column of row numbers
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?|nan", re.IGNORECASE | re.ASCII)


def read(lines: Iterable[str], name: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """(names of the columns, rows), where each row is (number of its line, {column: text}).

    A byte-order mark, empty lines, commas at the end of lines, any line ends and pandas' column of
    row numbers are ignored.

    Columns are separated by commas or, if the header has no comma, by semicolons or tabs. With
    semicolons, as spreadsheets write in many countries, `0,5` is a half.

    Args:
        lines: an open text file, or any iterable of lines. Rows are read as they are used.
        name: the table's name in error messages.

    Raises:
        TypeError: `lines` is a path, or has lines of bytes.
        ValueError: there is no header, it has a name twice, a row is cut short or too long, or the
            file was closed before it was read.
    """
    if isinstance(lines, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be an open text file or a list of lines, got {lines!r}; give open({lines!r})")
    start, lines = _header(lines, name)
    separator = next((s for s in ",;\t" if s in start), ",")
    reader = csv.reader(lines, delimiter=separator, strict=True)
    rows = ((number, row) for number, row in _numbered(reader, name) if any(map(str.strip, row)))
    _, header = next(rows, (0, []))
    names = [cell.strip() for cell in header]
    while names and not names[-1]:
        names.pop()
    twice = {column for column in names if column and names.count(column) > 1}
    if not names or twice:
        raise ValueError(f"the first line of {name} must name its columns, each once; got {names}")
    kept = [i for i, column in enumerate(names) if not (i == 0 and INDEX.fullmatch(column) and len(names) > 1)]

    def named() -> Iterator[tuple[int, dict[str, str]]]:
        for number, row in rows:
            if len(row) < len(names) or any(map(str.strip, row[len(names):])):
                raise ValueError(f"line {number} of {name}, {_short(row)!r}, has {len(row)} numbers for {len(names)} columns: "
                                 f"{names}")
            cells = [cell.strip().replace(",", ".") if separator == ";" else cell.strip() for cell in row]
            yield number, {names[i]: cells[i] for i in kept}

    return [names[i] for i in kept], named()


def number(text: str) -> float:
    """The number that `text` spells in plain digits, as programs write it.

    Raises:
        ValueError: it is something else, `1_000` for example.
    """
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{_short([text])!r} is not a number")
    return float(text)


def whole(text: str) -> int:
    """The whole number that `text` spells, exactly; "3.0", as pandas may write it, is 3.

    Raises:
        ValueError: it is something else.
    """
    value = number(text)
    if not value.is_integer():
        raise ValueError(f"{_short([text])!r} is not a whole number")
    return int(text) if text.lstrip("+-").isdigit() else int(value)


def _numbered(reader, name):
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {name} is not CSV: {error}") from error
        yield reader.line_num, row


def _header(lines, name):
    """The first line that is not empty, without a byte-order mark, and an iterator of all lines from the first one on."""
    lines = _lines(arguments.iterable(name, lines, "an open text file or a list of lines"), name)
    seen: list[str] = []
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"{name} must have lines of text, got {type(line).__name__}; open the file in text mode")
        seen.append(line if seen else line.removeprefix("\ufeff"))
        if seen[-1].strip():
            break
    return seen[-1] if seen else "", itertools.chain(seen, lines)


def _lines(file, name):
    try:
        yield from file
    except ValueError as error:
        if not getattr(file, "closed", False):
            raise
        raise ValueError(f"{name} is read as it is used, and its file was closed before that; use it while the file is open, or "
                         "make a list of it there") from error


def _short(row):
    text = ",".join(row)
    return text if len(text) <= 80 else text[:77] + "..."
