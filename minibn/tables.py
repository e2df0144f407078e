"""CSV tables as people have them: from spreadsheets, pandas, editors and other systems."""

import csv
import re
from collections.abc import Iterable, Iterator

INDEX = re.compile(r"|Unnamed: \d+|index", re.IGNORECASE)  # how pandas calls the column of row numbers
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?|nan", re.IGNORECASE | re.ASCII)


def read(lines: Iterable[str], name: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """(names of the columns, rows), where each row is (number of its line, {column: text}).

    A byte-order mark, empty lines, commas at the end of lines, any line ends and pandas' column of row
    numbers are passed over.

    Args:
        lines: an open text file, or any iterable of lines. Rows are read as they are used.
        name: how errors call the table.

    Raises:
        ValueError: there is no header, it has a name twice, or a row is cut short or too long.
    """
    reader = csv.reader(_without_mark(lines), strict=True)
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
            yield number, {names[i]: row[i].strip() for i in kept}

    return [names[i] for i in kept], named()


def number(text: str) -> float:
    """The number that `text` spells in plain digits, as programs write it.

    Raises:
        ValueError: it is something else, `1_000` for example.
    """
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{_short([text])!r} is not a number")
    return float(text)


def _numbered(reader, name):
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {name} is not CSV: {error}") from error
        yield reader.line_num, row


def _without_mark(lines):
    for i, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if i == 0 else line


def _short(row):
    text = ",".join(row)
    return text if len(text) <= 80 else text[:77] + "..."
