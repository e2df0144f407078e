"""Which weights may be rescaled without changing the network: the equations of `minibn.degree`, solved exactly.

The answer is for training mode, where BatchNorm uses the batch's statistics, and for eps = 0.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property

from minibn import arguments, nn
from minibn.degree import Degree, Equation, Walk
from minibn.invariance.elimination import RowSpace, null_space


def symmetries(model: nn.Module) -> "Symmetries":
    """All rescalings `p -> c**a_p p`, c > 0, of parameters that leave the model's output unchanged -> `Symmetries`.

    This is the paper's appendix C, with an unknown exponent a_p for each parameter instead of one
    for all. The symmetries found are exact. Coincidences, such as BatchNorm(x + BatchNorm(x)) =
    BatchNorm(x), and weights without any effect are not found.

    The `degree` of each layer is taken as true; `testing.check_degree` checks it by measurement.

    Raises:
        TypeError: the model is no `nn.Module`; a module does not define `degree`, or it has a
            `forward` of its own and inherits the `degree` of another one.

    Example:
        >>> import numpy as np
        >>> from minibn import models
        >>> print(symmetries(models.mlp((8,), eps=0.0, rng=np.random.default_rng(0))))
        parameter       group  cancelled by
        linear1.weight      1  norm1
        norm1.weight        -  -
        norm1.bias          -  -
        head.weight         -  -
        head.bias           -  -
        <BLANKLINE>
        2 independent rescaling symmetries in all: 1 by scale-invariant groups, and 1 other:
          norm1.weight^1 · norm1.bias^1 · head.weight^-1
    """
    arguments.of_kind("the model", model, nn.Module, "an nn.Module")
    _refuse_degrees_of_another_forward(model)
    names = {id(p): name for name, p in model.named_parameters()}
    modules = {id(module): name or "the network" for name, module in model.named_modules()}
    walk = Walk(names, modules)
    output = model.degree(Degree(walk)).settled(None)
    walk.require(output.form, {}, None, "the output must stay as it is")
    eps = {name: value for name, module in model.named_modules() if (value := getattr(module, "eps", 0))}
    return Symmetries({name: p.data.ndim for name, p in model.named_parameters()}, walk.equations, walk.cancelled_by, eps)


def _refuse_degrees_of_another_forward(model):
    """Raise where a class (or an object) has a `forward` of its own, but inherits the `degree` that was written for another."""
    def forwards(definitions):
        return sum("forward" in names or "__call__" in names for names in definitions)

    for path, module in model.named_modules():
        classes = [c for c in type(module).__mro__ if c is not nn.Module]  # which leaves all three methods to others
        i, owner = next(((i, c) for i, c in enumerate(classes) if "degree" in vars(c)), (None, None))
        if owner is None or "degree" in vars(module):
            continue
        described = forwards(map(vars, classes[i:]))  # none: a base class, for the first `forward` that a subclass adds
        if forwards([vars(module), *map(vars, classes[:i])]) > (0 if described else 1):
            name = type(module).__name__
            raise TypeError(f"{path or 'the network'} has the type {name}, which has a forward of its own but inherits the "
                            f"degree of {owner.__name__}: that says how another function scales. Define degree(x) in {name} "
                            f"too (if it scales in the same way, `degree = {owner.__name__}.degree`), and check it by "
                            "minibn.testing.check_degree")


class Symmetries:
    """The rescaling symmetries of a network; `str()` is a table.

    Args:
        dimensions: {name: number of axes}, in the network's order. A parameter with less than two
            is taken for a bias, γ or β.
        equations: iterable of `degree.Equation` between the parameters' exponents.
        cancelled_by: {name of a parameter: the normalisations that cancel its scale}.
        eps: {normalisation: its eps}, where that is not 0.
        sizes: {name: number of entries}. If sets overlap and another choice of sets has more than
            1.5 times as many entries, that choice is taken.

    Attributes:
        names: all parameters, in the network's order.
        equations: list of `degree.Equation` between their exponents.
        groups: disjoint, finest sets of parameters (tuples of names) that are scale-invariant when
            scaled together, in network order. Where such sets overlap, the first is taken, of convs
            rather than of norms' γ and β.
        weights: the parameters of all groups that hold a weight of a conv or linear layer, a list
            in network order. A norm's γ and β that are a group of their own are left out.
        basis: list of {name: exponent}: every rescaling symmetry is a sum of multiples of these.
        others: the part of `basis` that, together with `groups`, makes up every rescaling symmetry.
        eps: {normalisation: its eps}, where that is not 0: there, scale invariance is only
            approximate.

    Example:
        >>> import numpy as np
        >>> from minibn import models
        >>> found = symmetries(models.mlp((8,), eps=0.0, rng=np.random.default_rng(0)))
        >>> found.groups, found.basis
        ([('linear1.weight',)], [{'linear1.weight': 1}, {'norm1.weight': 1, 'norm1.bias': 1, 'head.weight': -1}])
        >>> found.is_scale_invariant(["norm1.weight", "norm1.bias"])
        False
        >>> found.explain("linear1.weight")
        'linear1.weight may be scaled alone: norm1 cancels it'
    """

    def __init__(self, dimensions: Mapping[str, int], equations: Iterable[Equation],
                 cancelled_by: Mapping[str, Iterable[str]] | None = None, eps: Mapping[str, float] | None = None,
                 sizes: Mapping[str, int] | None = None) -> None:
        self.names, self.equations, self.eps = list(dimensions), list(equations), dict(eps or {})
        self._dimensions, self._cancelled_by, self._sizes = dimensions, cancelled_by or {}, sizes or {}

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
        return large if entries[1] > 1.5 * entries[0] else first

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

    @cached_property
    def others(self) -> list[dict[str, int]]:
        space = RowSpace(self.names)
        for group in self.groups:
            space.add(dict.fromkeys(group, 1))
        return [vector for vector in self.basis if space.add(vector)]

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
        norms = self._cancelling(group)
        if group == (name,):
            return f"{name} may be scaled alone: " + (f"{_list(norms)} cancels it" if norms else "it has no effect")
        places = _list(dict.fromkeys(e.reason for n in group for e in self._broken([n])))
        members = _list([name, *(n for n in group if n != name)])
        return f"{members} may only be scaled together, because {places}; their common scale is cancelled by {_list(norms)}"

    def __str__(self):
        number = {name: i for i, group in enumerate(self.groups, 1) for name in group}
        width = max(map(len, ["parameter", *self.names]))
        lines = [f"{'parameter':{width}}  group  cancelled by"]
        for name in self.names:
            by = _list(self._cancelling(self.groups[number[name] - 1])) or "nothing: it has no effect" if name in number else "-"
            lines.append(f"{name:{width}}  {number.get(name, '-'):>5}  {by}")
        count, rest = len(self.groups), len(self.others)
        lines += ["", f"{count + rest} independent rescaling symmetries in all: {count} by scale-invariant groups, and {rest} "
                      f"other{'s' * (rest != 1)}{':' * bool(rest)}"]
        lines += ["  " + " · ".join(f"{name}^{exponent}" for name, exponent in vector.items()) for vector in self.others]
        if self.eps:
            largest = max(self.eps.values())
            lines.append(f"approximate where eps is not 0: {len(self.eps)} normalisations with eps up to {largest:g}")
        return "\n".join(lines)

    def _cancelling(self, group):
        """Names of the normalisations that cancel the group's scale."""
        return list(dict.fromkeys(norm for name in group for norm in self._cancelled_by.get(name, ())))

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
        """The smallest scale-invariant set with `name` and without what is `taken`, or None.

        A set is a 0/1 solution of the equations. The search is depth first and tries 0 before 1, so
        the first solution that it finds is the smallest in lexicographic order; norms' γ and β come
        first in that order, so a set without them is preferred. The set is minimal: if a part S of
        it were a solution too, so would be the rest, since the equations are linear; and of S and
        the rest, the one that contains `name` comes earlier in the order.
        """
        if name not in self._scalable:
            return None  # known without a search, which would try every combination of the others
        order = sorted(self._touching, key=lambda n: min(self._dimensions[n], 2))
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

    @cached_property
    def _scalable(self):
        """Names that any solution of the equations contains, 0/1 or not."""
        return set().union(*self.basis)

    def _propagate(self, values, changed):
        """Add to `values` what the equations leave no choice about; False if one of them can no longer hold.

        Each value is 0 or 1, so an equation's sum lies in a range. A value with which that range
        excludes 0 is impossible.
        """
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
                less, more = min(c, 0), max(c, 0)  # what the value adds to the range, if it is not yet known
                may_be_0 = low - less <= 0 <= high - more
                may_be_1 = low + more <= 0 <= high + less
                if not may_be_0 and not may_be_1:
                    return False
                if may_be_0 != may_be_1:
                    values[name] = int(may_be_1)
                    todo |= {id(e): e for e in self._touching[name]}
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
