"""Gauss-Jordan elimination, twice: of exact equations in fractions, and of measured ones in floats.

Equations derived from layers have rational coefficients. Any number but 0 can be a pivot, and
nothing is rounded. Measured equations carry rounding errors, so each pivot is the largest number
that is left.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from minibn.degree import Form, subtract


class RowSpace:
    """The span of the rows added so far (all sums of their multiples). Rows are linear forms {name: coefficient}.

    Attributes:
        rows: {pivot: row}. Each row has 1 at its own pivot and 0 at every other one.

    Example:
        >>> space = RowSpace(["a", "b", "c"])
        >>> space.add({"a": 1, "b": -1}), space.add({"b": 2, "c": -2}), space.add({"a": 1, "c": -1})
        (True, True, False)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.rows: dict[str, Form] = {}

    def add(self, row: Mapping[str, int | Fraction]) -> bool:
        """Add a row; returns whether it was new, that is, not a sum of multiples of earlier rows."""
        rest: Form = {name: Fraction(c) for name, c in row.items()}
        for pivot in [name for name in row if name in self.rows]:
            rest = _without(rest, pivot, self.rows[pivot])
        pivot = next((name for name in reversed(self.names) if rest.get(name)), "")
        if not pivot:
            return False
        new = {name: c / rest[pivot] for name, c in rest.items() if c}
        self.rows = {name: _without(other, pivot, new) for name, other in self.rows.items()} | {pivot: new}
        return True


def _without(row, pivot, other):
    """`row` less the multiple of `other`, which is 1 at `pivot`, that leaves 0 there."""
    if factor := row.get(pivot):
        row = subtract(row, {name: factor * c for name, c in other.items()})
    return {name: c for name, c in row.items() if c}


def null_space(rows: Iterable[Mapping[str, int | Fraction]], names: Sequence[str]) -> list[dict[str, int]]:
    """Basis of the solutions a of the equations Σ_n row[n] a_n = 0, exactly.

    Args:
        rows: {name: coefficient} of each equation; a name that is missing has the coefficient 0.
        names: all unknowns.

    Returns:
        list of {name: integer}, without zeros.

    Example:
        >>> null_space([{"a": 1, "b": -1}, {"c": 2, "d": 3}], ["a", "b", "c", "d"])
        [{'a': 1, 'b': 1}, {'c': 3, 'd': -2}]
    """
    space = RowSpace(names)
    for row in rows:
        space.add(row)
    basis = []
    for free in (name for name in names if name not in space.rows):
        vector = {free: Fraction(1), **{pivot: -row[free] for pivot, row in space.rows.items() if free in row}}
        scale = math.lcm(*(c.denominator for c in vector.values()))
        basis.append({name: int(vector[name] * scale) for name in names if name in vector})
    return basis


def reduce_rows(rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Reduced form of measured equations: (the rows, the column of each row's pivot).

    The rows span what they did before. Each has 1 in its pivot's column, where the others have 0.

    Args:
        rows: (r, n) float64, linearly independent, such as an orthonormal basis.

    Example:
        >>> reduce_rows(np.array([[2.0, 2.0, 0.0], [1.0, 1.0, 4.0]]))
        (array([[0., 0., 1.],
               [1., 1., 0.]]), [2, 0])
    """
    rows = rows.copy()
    pivots = []
    for i in range(len(rows)):
        j, k = np.unravel_index(np.abs(rows[i:]).argmax(), rows[i:].shape)
        rows[[i, i + j]] = rows[[i + j, i]]
        rows[i] /= rows[i, k]
        others = np.arange(len(rows)) != i
        rows[others] -= np.outer(rows[others, k], rows[i])
        pivots.append(int(k))
    return rows, pivots
