"""History: one row of measured numbers for each step."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


class History:
    """Columns of equal length: "step", "loss", "accuracy", and for each group of weights

        lr/NAME                 η of the step
        norm/NAME               |w| after it
        effective_lr/NAME       η / |w|², |w| before it (van Laarhoven, 2017)
        angle/NAME              by how many radians it turned w
        predicted_angle/NAME    sqrt(2ηλ / (1+γ)), what that is in equilibrium (`minibn.monitor`); NaN without weight decay

    Example:
        >>> history = History()
        >>> history.append({"step": 0, "loss": 2.5})
        >>> history["loss"], len(history)
        (array([2.5]), 1)
    """

    def __init__(self, columns: Mapping[str, Iterable[float]] | None = None) -> None:
        self.columns = {name: list(values) for name, values in (columns or {}).items()}

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row {column: number}; every row must have the columns of the first."""
        if self.columns and row.keys() != self.columns.keys():
            raise ValueError(f"a row must have the columns {list(self.columns)}, got {list(row)}")
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column as an array."""
        return np.asarray(self.columns[name])

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def write_csv(self, path: str | Path) -> None:
        """Write the header and a line for each row; floats with all their digits, so reading gives the same bits.

        pandas reads it as it is: `pandas.read_csv(path)`; the steps come as integers, all else as floats.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*self.columns.values(), strict=True))

    @classmethod
    def read_csv(cls, path: str | Path) -> "History":
        """The History that `write_csv` wrote.

        Raises:
            ValueError: the file is empty, or a row is cut short or is not numbers.
        """
        with open(path, newline="", encoding="utf-8") as file:
            names, *rows = list(csv.reader(file)) or [[]]
        if not names or any(len(row) != len(names) for row in rows):
            raise ValueError(f"{path} is not a whole History: every line must have as many columns as the first")
        columns = {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}
        if "step" in columns:
            columns["step"] = [int(step) for step in columns["step"]]
        return cls(columns)
