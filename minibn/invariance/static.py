"""Which weights may be rescaled without changing the network, from its layers: the equations of `minibn.degree`, solved exactly.

The answer is for training mode, where BatchNorm uses the batch's statistics, and for eps = 0.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property

from minibn import nn
from minibn.degree import Degree, Equation, Form, Walk, subtract


def symmetries(model: nn.Module) -> "Symmetries":
    """All rescalings `p -> c**a_p p`, c > 0, of parameters that leave the model's output unchanged -> `Symmetries`.

    Paper, appendix C, with an unknown exponent a_p for each parameter in place of one for all. What is found is exact. What
    is not found are coincidences, such as BatchNorm(x + BatchNorm(x)) = BatchNorm(x), and weights without any effect.

    Raises:
        TypeError: a module does not define `degree`.

    Example:
        >>> import numpy as np
        >>> from minibn import models
        >>> print(symmetries(models.mlp((8,), eps=0.0, rng=np.random.default_rng(0))))
        parameter       group  taken out by
        linear1.weight      1  norm1
        norm1.weight        -  -
        norm1.bias          -  -
        head.weight         -  -
        head.bias           -  -
        <BLANKLINE>
        1 scale-invariant groups; 2 independent rescaling symmetries in all
          norm1.weight^1 · norm1.bias^1 · head.weight^-1
    """
    names = {id(p): name for name, p in model.named_parameters()}
    modules = {id(module): name or "the network" for name, module in model.named_modules()}
    walk = Walk(names, modules)
    output = model.degree(Degree(walk)).settled(None)
    walk.require(output.form, {}, None, "the output must stay as it is")
    eps = {name: value for name, module in model.named_modules() if (value := getattr(module, "eps", 0))}
    return Symmetries({name: p.data.ndim for name, p in model.named_parameters()}, walk.equations, walk.removed, eps)


class Symmetries:
    """The rescaling symmetries of a network; `str()` is a table.

    Args:
        dimensions: {name: number of axes}, in the network's order. A parameter with less than two is taken for a bias, γ or β.
        equations: iterable of `degree.Equation` between the parameters' exponents.
        removed: {name of a parameter: the normalisations that take its scale out}.
        eps: {normalisation: its eps}, where that is not 0.
        sizes: {name: number of entries}. Where sets overlap, the choice with clearly more entries is taken.

    Attributes:
        names: all parameters, in the network's order.
        equations: list of `degree.Equation` between their exponents.
        groups: disjoint, finest sets of parameters (tuples of names) that are scale-invariant when scaled together, in
            network order. Where such sets overlap, the first is taken, of convs rather than of norms' γ and β.
        weights: the parameters of all groups that hold a weight of a conv or linear layer, a list in
            network order. A norm's γ and β that are a group of their own are left out.
        basis: list of {name: exponent}: every rescaling symmetry is a sum of multiples of these.
        eps: {normalisation: its eps}, where that is not 0: there, scale invariance is only approximate.

    Example:
        >>> import numpy as np
        >>> from minibn import models
        >>> found = symmetries(models.mlp((8,), eps=0.0, rng=np.random.default_rng(0)))
        >>> found.groups, found.basis
        ([('linear1.weight',)], [{'linear1.weight': 1}, {'norm1.weight': 1, 'norm1.bias': 1, 'head.weight': -1}])
        >>> found.is_scale_invariant(["norm1.weight", "norm1.bias"])
        False
        >>> found.explain("linear1.weight")
        'linear1.weight may be scaled alone: norm1 takes it out again'
    """

    def __init__(self, dimensions: Mapping[str, int], equations: Iterable[Equation],
                 removed: Mapping[str, Iterable[str]] | None = None, eps: Mapping[str, float] | None = None,
                 sizes: Mapping[str, int] | None = None) -> None:
        self.names, self.equations, self.eps = list(dimensions), list(equations), dict(eps or {})
        self._dimensions, self._removed, self._sizes = dimensions, removed or {}, sizes or {}

    def is_scale_invariant(self, names: Iterable[str]) -> bool:
        """Whether multiplying all parameters in `names` by the same c > 0 leaves the network as it is; exact.

        Raises:
            ValueError: a name is unknown.
        """
        return not self._broken(names)

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        first = self._disjoint(sorted(self.names, key=self._is_vector))  # convs and linear maps first
        if not self._sizes:
            return first
        large = self._disjoint(sorted(self.names, key=lambda n: (self._is_vector(n), -self._sizes[n])))
        entries = [sum(self._sizes[n] for group in groups for n in group) for groups in (first, large)]
        return large if entries[1] > 1.1 * entries[0] else first

    def _disjoint(self, order):
        """Finest sets, none of which overlap, found for one parameter after the other."""
        groups: list[tuple[str, ...]] = []
        taken: set[str] = set()
        for name in order:
            if name not in taken and (group := self._finest(name, taken)):
                groups.append(tuple(n for n in self.names if n in group))
                taken |= group
        return sorted(groups, key=lambda group: self.names.index(group[0]))

    @cached_property
    def weights(self) -> list[str]:
        chosen = {name for group in self.groups if not all(map(self._is_vector, group)) for name in group}
        return [name for name in self.names if name in chosen]

    @cached_property
    def basis(self) -> list[dict[str, int]]:
        return null_space([e.form for e in self.equations], self.names)

    def explain(self, name: str) -> str:
        """A sentence that says what `name` may be scaled with, and why, or why it may not."""
        self._check([name])
        group = next((g for g in self.groups if name in g), None)
        if group is None:
            reasons = _list(dict.fromkeys(f"{e.reason}" for e in self._broken([name])))
            free = self._finest(name, set())
            if free:
                others = _list(n for n in self.names if n in free and n != name)
                return (f"{name} is scale-invariant only together with {others}, part of which is in another group already "
                        f"({reasons})")
            return (f"{name} is in no scale-invariant group, because {reasons}, and no set of weights with {name} keeps that in "
                    "balance")
        removed = self._takers(group)
        if group == (name,):
            return f"{name} may be scaled alone: {removed} takes it out again"
        places = _list(dict.fromkeys(e.reason for n in group for e in self._broken([n])))
        members = _list([name, *(n for n in group if n != name)])
        return (f"{members} may only be scaled together, because {places}; their common scale is taken out by {removed}")

    def __str__(self):
        number = {name: i for i, group in enumerate(self.groups, 1) for name in group}
        width = max(map(len, ["parameter", *self.names]))
        lines = [f"{'parameter':{width}}  group  taken out by"]
        for name in self.names:
            by = self._takers(self.groups[number[name] - 1]) if name in number else "-"
            lines.append(f"{name:{width}}  {number.get(name, '-'):>5}  {by}")
        lines += ["", f"{len(self.groups)} scale-invariant groups; {len(self.basis)} independent rescaling symmetries in all"]
        covered = {name for group in self.groups for name in group}
        for vector in self.basis:
            if not set(vector) <= covered:
                lines.append("  " + " · ".join(f"{name}^{exponent}" for name, exponent in vector.items()))
        if self.eps:
            largest = max(self.eps.values())
            lines.append(f"approximate where eps is not 0: {len(self.eps)} normalisations with eps up to {largest:g}")
        return "\n".join(lines)

    def _takers(self, group):
        """The normalisations that take the group's scale out again."""
        return _list(dict.fromkeys(norm for name in group for norm in self._removed.get(name, ()))) or "nothing: it has no effect"

    def _is_vector(self, name):
        """Whether it is a bias or a norm's γ or β, rather than a weight of a conv or linear map."""
        return self._dimensions[name] < 2

    def _check(self, names):
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise ValueError(f"no parameters named {unknown}; there are {self.names}")

    def _broken(self, names):
        """The equations that scaling `names` together does not satisfy."""
        exponents = dict.fromkeys(names, 1)
        self._check(exponents)
        return [e for e in self.equations if not e.holds(exponents)]

    def _finest(self, name, taken):
        """A finest set with `name`, without what is `taken`, that is scale-invariant together, or None.

        Sets are 0/1 solutions of the equations. They are searched depth first, 0 before 1, norms' γ and β before convs, so the
        first one found is the smallest in lexicographic order, and no part of it can be a solution: leaving that part, or the
        rest, out would have been smaller.
        """
        order = sorted(self._touching, key=self._is_vector, reverse=True)
        fixed = {**dict.fromkeys(taken, 0), name: 1}
        stack = [(fixed, list(fixed))]
        while stack:
            values, changed = stack.pop()
            if not self._propagate(values, changed):
                continue
            free = next((n for n in order if n not in values), None)
            if free is None:
                return {n for n, value in values.items() if value}
            stack.append(({**values, free: 1}, [free]))
            stack.append(({**values, free: 0}, [free]))  # tried first
        return None

    def _propagate(self, values, changed):
        """Add to `values` what the equations leave no choice about; False if one cannot be satisfied any more."""
        todo = {id(e): e for name in changed for e in self._touching.get(name, ())}
        while todo:
            _, equation = todo.popitem()
            known = sum(c * values[name] for name, c in equation.form.items() if name in values)
            open_ = {name: c for name, c in equation.form.items() if name not in values}
            low = known + sum(c for c in open_.values() if c < 0)
            high = known + sum(c for c in open_.values() if c > 0)
            if low > 0 or high < 0:
                return False
            for name, c in open_.items():
                if low + abs(c) > 0 or high - abs(c) < 0:
                    values[name] = int((low + abs(c) > 0) == (c < 0))
                    todo |= {id(e): e for e in self._touching[name]}
                    todo[id(equation)] = equation
                    break
        return True

    @cached_property
    def _touching(self):
        """{name: the equations it is in}."""
        touching: dict[str, list[Equation]] = {}
        for equation in self.equations:
            for name in equation.form:
                touching.setdefault(name, []).append(equation)
        return touching


def _list(items):
    """"a, b and c", at most four of them spelt out."""
    items = list(items)
    if len(items) > 4:
        items = [*items[:3], f"{len(items) - 3} more"]
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def null_space(rows: Iterable[Form], names: Sequence[str]) -> list[dict[str, int]]:
    """Basis of the solutions of Σ row[n] a_n = 0, as {name: integer} without zeros; Gauss-Jordan elimination in Fractions."""
    pivots: dict[str, Form] = {}  # name -> reduced row that has 1 there, and 0 at every other pivot
    for row in rows:
        row = dict(row)
        for name in [n for n in row if n in pivots]:
            factor = row.get(name, 0)
            for n, c in pivots[name].items():
                row[n] = row.get(n, 0) - factor * c
        row = {n: c for n, c in row.items() if c}
        if not row:
            continue
        pivot = next(n for n in reversed(names) if n in row)
        row = {n: c / row[pivot] for n, c in row.items()}
        for name, other in pivots.items():
            if factor := other.get(pivot, 0):
                merged = subtract(other, {n: factor * c for n, c in row.items()})
                pivots[name] = {n: c for n, c in merged.items() if c}
        pivots[pivot] = row
    basis = []
    for free in (n for n in names if n not in pivots):
        vector = {free: Fraction(1), **{name: -row[free] for name, row in pivots.items() if row.get(free)}}
        scale = math.lcm(*(c.denominator for c in vector.values()))
        basis.append({n: int(vector[n] * scale) for n in names if vector.get(n)})
    return basis
