"""History: one row of measured numbers per step."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from minibn import arguments, files, jsonable, tables


class History:
    """Columns of equal length: "step", "loss", "accuracy", and for each set NAME of weights w

        lr/NAME                 η of the step
        norm/NAME               |w| after the step
        effective_lr/NAME       η / |w|^(k+1), with |w| before the step (van Laarhoven, 2017): η / |w|² for
                                SGD, η / |w| for AdamW, Lion and Muon
        angle/NAME              angle in radians by which the step turned w
        predicted_angle/NAME    √(2δ / D), its prediction in equilibrium: √(2ηλ / (1+γ)) for SGD,
                                √(2ηλ (1-β1)/(1+β1)) for AdamW (`monitor.predicted_angle_of`)
        predicted_norm/NAME     |w| in equilibrium: for AdamW and Lion from the step's numbers alone, for
                                SGD and Muon from the size of this step's update, so it is as noisy
                                as angle/NAME (`monitor.predicted_norm_here`)

    Both predictions are NaN without weight decay, and where `monitor` has no formula (Nesterov).
    They are for scale-invariant weights, and assume that gradients are mostly noise: see the top of
    `monitor`.

    The sets are the optimisers' parameters, each as one vector, and the `groups` given to `fit`.
    The effective lr of a set has a meaning only if the set is scale-invariant on its own. If an
    optimiser trains several such groups, η / (sum of all their |w|²) is the effective lr of none of
    them.

    Example:
        >>> history = History()
        >>> history.append({"step": 0, "loss": 2.5})
        >>> history["loss"], len(history)
        (array([2.5]), 1)

    Raises:
        ValueError: columns of different lengths.
        TypeError: a value is not a number.
    """

    def __init__(self, columns: Mapping[str, Iterable[float]] | None = None) -> None:
        columns = {} if columns is None else columns
        arguments.of_kind("columns", columns, Mapping, "a dict, {column: numbers}")
        for name, values in columns.items():
            arguments.iterable(f"the column {name!r}", values, "a list of numbers")
        self.columns = {name: [_number(value, name) for value in values] for name, values in columns.items()}
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a History must have one length, got {lengths}")

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row {column: number}. NumPy's numbers become Python's.

        Raises:
            ValueError: the row has other columns than the first one.
            TypeError: a value is not a number.
        """
        arguments.of_kind("a row", row, Mapping, "a dict, {column: number}")
        if self.columns and row.keys() != self.columns.keys():
            raise ValueError(f"a row must have the columns {list(self.columns)}, got {list(row)}")
        numbers = {name: _number(value, name) for name, value in row.items()}
        for name, value in numbers.items():
            self.columns.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column as an array."""
        if name not in self.columns:
            raise KeyError(f"there is no column {name!r}; there are {', '.join(map(str, self.columns)) or 'none yet'}")
        return np.asarray(self.columns[name])

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def write_csv(self, path: str | Path) -> None:
        """Write the header, then one line per row. Floats keep all digits, so reading gives the same bits.

        `pandas.read_csv(path)` reads it: the steps as integers, all else as floats. A History without
        columns gets the column "step". The file at `path` is replaced as a whole.

        Raises:
            ValueError: a column has a name that would not come back, such as an empty one.
            OSError: the file cannot be written.
        """
        columns = self.columns or {"step": []}
        header = io.StringIO()
        csv.writer(header).writerow(columns)
        if tables.read([header.getvalue()], "the header")[0] != list(columns):
            raise ValueError(f"the names of the columns would not come back from CSV: {list(self.columns)}; they may not be "
                             "empty, begin or end with spaces or hold line ends, and the first may not be 'index'")
        with files.replacing(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
            text.detach()  # which writes the rest, and leaves `file` open

    @classmethod
    def read_csv(cls, path: str | Path) -> "History":
        """The History that `write_csv` wrote, also after a spreadsheet or pandas has saved it again.

        Raises:
            ValueError: the file is empty or not text in UTF-8, or a row is cut short or is not
                numbers.
        """
        with open(os.path.expanduser(path), newline="", encoding="utf-8") as file:
            try:
                names, rows = tables.read(file, str(path))
                columns: dict[str, list[float]] = {name: [] for name in names}
                for line, row in rows:
                    for name, text in row.items():
                        try:
                            columns[name].append(tables.whole(text) if name == "step" else tables.number(text or "nan"))
                        except ValueError as error:
                            raise ValueError(f"line {line}, column {name!r}: {error}") from error
            except ValueError as error:  # UnicodeDecodeError is one
                raise ValueError(f"{path} is not a whole History: {error}") from error
        return cls(columns)


def _number(value, name):
    """`value` as an int or a float of Python."""
    number = jsonable.plain(value, f"the column {name!r}")
    if not isinstance(number, (int, float)):
        raise TypeError(f"the column {name!r} of a History holds numbers, got {value!r}")
    return int(number) if isinstance(number, bool) else number
