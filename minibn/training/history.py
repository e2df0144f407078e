"""History: one row of measured numbers per step."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


class History:
    """Columns of equal length: "step", "loss", "accuracy", and for each set NAME of weights w

        lr/NAME                 η of the step
        norm/NAME               |w| after the step
        effective_lr/NAME       η / |w|², with |w| before the step (van Laarhoven, 2017)
        angle/NAME              angle in radians by which the step turned w
        predicted_angle/NAME    sqrt(2ηλ / (1+γ)), its prediction in equilibrium (`minibn.monitor`);
                                NaN without weight decay

    The sets are the optimisers' parameters, each as one vector, and the `groups` given to `fit`. An
    effective lr is that of a layer only if the set is scale-invariant on its own: of an optimiser
    that trains several such groups, η / (sum of all their |w|²) is the effective lr of none of them.

    Example:
        >>> history = History()
        >>> history.append({"step": 0, "loss": 2.5})
        >>> history["loss"], len(history)
        (array([2.5]), 1)
    """

    def __init__(self, columns: Mapping[str, Iterable[float]] | None = None) -> None:
        self.columns = {name: list(values) for name, values in (columns or {}).items()}

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row {column: number}, of ints and floats.

        Raises:
            ValueError: the row has other columns than the first one.
        """
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
        """Write the header, then one line per row. Floats keep all digits, so reading gives the same bits.

        `pandas.read_csv(path)` reads it: the steps as integers, all else as floats.
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
