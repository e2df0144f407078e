"""Which weights of a torch module may be rescaled without changing its loss: measured, on any model.

If multiplying each parameter p by c**a_p leaves the loss as it is, wherever the weights are, then
at every point

    Σ_p a_p t_p = 0,    t_p = <∂L/∂p, p>

(Euler's theorem). A backward pass at a random point gives one such equation, so the exponents of
all rescaling symmetries are the null space of a measured matrix. In float64 and with a negligible
eps in the normalisations, the null space is accurate to ten digits or more. Its rows, reduced and
rounded to fractions, are the equations that `invariance.symmetries` derives from the layers of a
minibn network.

**Cost.** Tensors that are scale-invariant alone have t_p = 0 at three points, and drop out. Each of
the others needs about one more backward pass, in which the gradients of those that dropped out are
not computed.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from minibn.degree import Equation
from minibn.invariance.elimination import reduce_rows
from minibn.pytorch.loss import Loss, inner, size

NOISE, SIGNAL = 1e-11, 1e-6  # rounding lies below the one, in networks 1e-15; what matters above the other, 1e-2
WEAK = 1e-8  # a gradient that is smaller than the largest by this factor has too few digits to measure with
POINTS = 3  # places, far from each other, that tell what is scale-invariant alone; and equations without news that end the search
MORE_POINTS = 12  # so many, if something has no effect at the first: dropped at random, or an expert without tokens


class Measured(NamedTuple):
    """What `measure` found.

    Attributes:
        names: of the parameters that have an effect, or have none because it cancels (a bias before
            BatchNorm).
        cancelled: those of `names` that have none because it cancels.
        unknown: of those whose gradient was zero, or too small to measure, at every point.
        equations: between the exponents of `names`.
        slices: {name: [(part, parts)]}: equal parts of its rows that are scale-invariant though the
            whole is not.
    """

    names: list[str]
    cancelled: set[str]
    unknown: list[str]
    equations: list[Equation]
    slices: dict[str, list[tuple[int, int]]]


def measure(loss: Loss) -> Measured:
    """All rescaling symmetries of `loss`, measured at random points. Afterwards `loss` stands at one of these points."""
    everything = list(loss.parameters)
    products: list[dict[str, float]] = []
    sizes: list[dict[str, float]] = []
    slices: list[dict[str, set[tuple[int, int]]]] = []
    seed = 0
    while seed < POINTS or seed < MORE_POINTS and any(all(not s.get(n) for s in sizes) for n in everything):
        seed += 1
        loss.scatter(seed)
        _, gradients = loss.gradients(everything, seed)
        products.append({n: inner(g, loss.parameters[n]) for n, g in gradients.items()})
        sizes.append({n: size(g, loss.parameters[n]) for n, g in gradients.items()})
        slices.append(_slices(gradients, loss))
        del gradients  # before the next ones are made
    if not any(sizes):
        raise ValueError("the loss does not depend on the model's parameters: loss_fn(model) must use the model that it is "
                         "given, which is a copy")
    largest = [max(s.values(), default=0.0) or 1.0 for s in sizes]
    effect = {n: max(s.get(n, 0.0) / top for s, top in zip(sizes, largest, strict=True)) for n in everything}
    weak = [n for n in everything if 0 < effect[n] < WEAK]
    cancelled = _rounding_errors(loss, weak, seed) if weak else set()
    unknown = [n for n in everything if effect[n] == 0 or n in weak and n not in cancelled]
    names = [n for n in everything if n not in unknown]
    alone = {n for n in names if n in cancelled or all(
        abs(t.get(n, 0.0)) <= s.get(n, 0.0) * NOISE + 1e-13 * top for t, s, top in zip(products, sizes, largest, strict=True))}
    rest = [n for n in names if n not in alone]
    rows, scale = _rows(loss, rest, products, sizes, seed)
    return Measured(names, cancelled, unknown, _equations(rows, scale, rest), _common(slices, rest))


def _rounding_errors(loss, weak, seed):
    """Those whose tiny gradient is what rounding left over of a sum that cancels: it is another one a little way off."""
    _, before = loss.gradients(weak, seed)
    loss.scale(dict.fromkeys(loss.parameters, 1 + 1e-09))
    _, after = loss.gradients(weak, seed)
    return {n for n in weak if float((after[n] - before[n]).abs().max()) > 0.01 * float(before[n].abs().max())}


def _rows(loss, names, products, sizes, seed):
    """(matrix of t, one row per point and one column per name; the columns' sizes): until more rows tell nothing new."""
    scale = np.array([max(s[n] for s in sizes if n in s) for n in names])
    rng, rows, basis, stale = np.random.default_rng(0), [], np.empty((0, len(names))), 0
    factors = np.zeros(len(names))
    while names and stale < POINTS:
        if products:
            product = products.pop(0)
        else:
            seed += 1
            before, factors = factors, rng.uniform(-1, 1, len(names))
            loss.scale(dict(zip(names, np.exp2(factors - before), strict=True)))
            _, gradients = loss.gradients(names, seed)
            product = {n: inner(g, loss.parameters[n]) for n, g in gradients.items()}
            del gradients
        row = np.array([product.get(n, 0.0) for n in names]) / scale
        row /= np.linalg.norm(row) or 1.0
        rows.append(row)
        new = row - basis.T @ (basis @ row)
        new -= basis.T @ (basis @ new)
        length = np.linalg.norm(new)
        stale = stale + 1 if length < SIGNAL else 0
        if length >= SIGNAL:
            basis = np.vstack([basis, new / length])
    return np.array(rows).reshape(len(rows), len(names)), scale


def _row_space(rows):
    """An orthonormal basis of the rows."""
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    values = values / values.max(initial=1e-300)
    if np.any((values > NOISE) & (values < SIGNAL)):
        raise ValueError("the loss is not exact enough to tell which parameters are scale-invariant: the measured gradients "
                         "are neither dependent nor independent")
    return basis[values > NOISE]


def _equations(rows, scale, names):
    """The row space in reduced form, rounded to fractions, as `degree.Equation`s between the parameters' exponents."""
    basis, pivots = reduce_rows(_row_space(rows))
    equations = []
    for row, k in zip(basis * scale, pivots, strict=True):
        row = row / row[k]
        exact = [Fraction(float(c)).limit_denominator(12) for c in row]
        if np.max(np.abs(row - np.array(exact, float))) > 1e-4:
            raise ValueError(f"the measured exponents of rescalings with {names[k]}, {row[np.abs(row) > 1e-4]}, are not "
                             "small fractions: the loss is not exact enough, or random")
        equations.append(Equation({n: c for n, c in zip(names, exact, strict=True) if c}, "the loss", "measured"))
    return equations


def _slices(gradients, loss):
    """{name: {(part, parts)}}: the halves and thirds of each matrix's rows that look scale-invariant at this point."""
    found: dict[str, set[tuple[int, int]]] = {}
    for name, g in gradients.items():
        p = loss.parameters[name]
        for parts in (2, 3):
            if p.ndim >= 2 and p.shape[0] % parts == 0:
                pieces = zip(g.chunk(parts), p.chunk(parts), strict=True)
                flat = {(i, parts) for i, (a, b) in enumerate(pieces) if abs(inner(a, b)) <= NOISE * size(a, b)}
                found[name] = found.get(name, set()) | flat
    return found


def _common(slices, names):
    """{name: the thirds found at every point, or else the halves}, of `names`."""
    common = {n: set.intersection(*(s.get(n, set()) for s in slices)) for n in names}
    most = {n: max((of for _, of in parts), default=0) for n, parts in common.items()}
    return {n: sorted((i, of) for i, of in parts if of == most[n]) for n, parts in common.items() if parts}
