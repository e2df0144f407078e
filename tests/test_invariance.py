"""Which weights may be rescaled: what the layers' degrees say is what is measured, on random architectures."""

from fractions import Fraction
from itertools import chain, combinations, islice

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minibn import nn
from minibn.invariance import null_space, probe, symmetries
from minibn.invariance.elimination import RowSpace, reduce_rows

INVARIANT, CHANGED = 1e-8, 1e-5  # measured gaps: rounding, and anything else


class Architecture:
    """A random network of 4-channel layers, from a hypothesis `draw`."""

    def __init__(self, draw):
        self.draw, self.rng = draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        layers = [self.conv(2)]
        for _ in range(draw(st.integers(1, 4))):
            layers.append(draw(st.sampled_from([self.conv, self.norm, nn.ReLU, self.pool, self.residual, self.shared]))())
        if draw(st.booleans()):
            layers.append(self.norm())
        end = draw(st.sampled_from(["pool", "flatten", "norm at the end"]))
        layers += [nn.Flatten()] if end == "flatten" else [nn.ReLU(), nn.GlobalAvgPool()]  # the mean of InstanceNorm is 0
        width = 4 * self.size() ** 2 if end == "flatten" else 4
        if end == "norm at the end":
            layers.append(nn.LayerNorm(4, eps=0.0, affine=False, dtype="float64"))
        if draw(st.booleans()):
            layers.append(nn.Linear(width, 5, draw(st.booleans()), rng=self.rng, dtype="float64"))
        self.model = nn.Sequential(*layers)
        for _, p in self.model.named_parameters():
            if p.data.ndim == 1:  # zeros and ones would hide what a bias does
                p.data = self.rng.uniform(0.3, 1.5, p.data.shape) * self.rng.choice([-1, 1], p.data.shape)
        self.x = self.rng.standard_normal((6, 4, 4, 2))
        self.y = self.model(self.x)

    pooled = 0

    def size(self):
        return 4 // 2**self.pooled

    def conv(self, inside=4):
        kernel = self.draw(st.sampled_from([1, 3]))
        return nn.Conv2d(inside, 4, kernel, padding=kernel // 2, bias=self.draw(st.booleans()), rng=self.rng, dtype="float64")

    def norm(self):
        make = self.draw(st.sampled_from([nn.BatchNorm, nn.LayerNorm, nn.InstanceNorm, lambda c, **kw: nn.GroupNorm(2, c, **kw)]))
        return make(4, eps=0.0, affine=self.draw(st.booleans()), dtype="float64")

    def pool(self):
        if self.pooled:
            return nn.MaxPool2d(1)
        self.pooled = 1
        return self.draw(st.sampled_from([nn.AvgPool2d, nn.MaxPool2d]))(2)

    def branch(self):
        """With a conv at least: BatchNorm(x + BatchNorm(x)) would be BatchNorm(x), which no degree tells."""
        before, after = ([self.draw(st.sampled_from([self.conv, self.norm, nn.ReLU]))()
                          for _ in range(self.draw(st.integers(0, 2)))] for _ in range(2))
        return nn.Sequential(*before, self.conv(), *after)

    def residual(self):
        """The shortcut is taken before the activation, if the branch starts with one."""
        return nn.Residual(self.branch(), self.draw(st.sampled_from([lambda: None, self.conv, self.branch]))())

    def shared(self):
        """Norm and ReLU for branch and shortcut together, as at the start of a PreResNet's stage."""
        return nn.Sequential(self.norm(), nn.ReLU(), nn.Residual(self.branch(), self.conv()))

    def measured(self, names, parameters=None):
        """How much the output changes, relative to its spread over the batch, if `names` (or {name: exponent}) are scaled."""
        return probe(self.output, parameters or self.parameters(), names, scales=[1.7]).value_gap

    def measured_nearby(self, names):
        """The same at other weights, the largest of several: at one point a function that is not invariant may be flat.

        A channel that ReLU leaves a single number of is the same after InstanceNorm, whatever that number is.
        """
        near = ({n: v * self.rng.uniform(0.5, 1.5, v.shape) for n, v in self.parameters().items()} for _ in range(8))
        return max(self.measured(names, parameters) for parameters in near)

    def parameters(self):
        return {name: p.data for name, p in self.model.named_parameters()}

    def output(self, parameters):
        old = self.parameters()
        self.set(parameters)
        y = self.model(self.x)
        self.set(old)
        return y

    def set(self, parameters):
        for name, p in self.model.named_parameters():
            p.data = parameters[name]

    def output_change(self, change):
        """Relative change of the output if each parameter becomes `change(name, value)`."""
        changed = self.output({n: change(n, v) for n, v in self.parameters().items()})
        return np.linalg.norm(changed - self.y) / max(np.linalg.norm(self.y), 1e-300)

    def is_generic(self):
        """No normalisation of mere rounding errors (as of InstanceNorm's means, all 0), and no weight without any effect."""
        if self.output_change(lambda name, value: value * (1 + 1e-10 * self.rng.standard_normal(value.shape))) > 1e-7:
            return False
        alone = {name for group in symmetries(self.model).groups for name in group if len(group) == 1}
        return all(name in alone or self.output_change(
            lambda n, value, name=name: value * self.rng.uniform(0.5, 1.5, value.shape) if n == name else value) > 1e-4
                   for name in dict(self.model.named_parameters()))

    def __repr__(self):
        return repr(self.model)


@st.composite
def architectures(draw):
    architecture = Architecture(draw)
    assume(architecture.is_generic())
    return architecture


@settings(max_examples=60)
@given(architectures(), st.randoms(use_true_random=False))
def test_static_answer_is_the_measured_one(architecture, random):
    found = symmetries(architecture.model)
    for group in found.groups:
        assert found.is_scale_invariant(group)
        assert architecture.measured(group) < INVARIANT, group
        parts = chain.from_iterable(combinations(group, size) for size in range(1, len(group)))
        assert not any(found.is_scale_invariant(part) for part in islice(parts, 300)), "not the finest"
    for vector in found.basis:
        assert architecture.measured(vector) < INVARIANT, vector
    for _ in range(4):
        names = [name for name in found.names if random.random() < 0.5] or [found.names[0]]
        gap = architecture.measured(names)
        if found.is_scale_invariant(names):
            assert gap < INVARIANT, names
        else:
            assert gap > CHANGED or architecture.measured_nearby(names) > CHANGED, names
    for name in found.names:
        assert name in found.explain(name)
        assert name in str(found)


@settings(max_examples=30)
@given(architectures())
def test_the_basis_is_all_there_is(architecture):
    """As many vectors as numpy's rank leaves, independent, and each solves every equation exactly."""
    found = symmetries(architecture.model)
    matrix = np.array([[float(e.form.get(n, 0)) for n in found.names] for e in found.equations]).reshape(-1, len(found.names))
    assert len(found.basis) == len(found.names) - (np.linalg.matrix_rank(matrix) if len(matrix) else 0)
    assert all(e.holds(vector) for e in found.equations for vector in found.basis)
    assert rank(found.basis, found.names) == len(found.basis)


def rank(vectors, names):
    return np.linalg.matrix_rank([[v.get(n, 0) for n in names] for v in vectors]) if vectors else 0


@settings(max_examples=30)
@given(architectures())
def test_groups_and_others_are_all_there_is(architecture):
    """Each symmetry is counted once: the table's number is that of the groups and of the vectors it lists."""
    found = symmetries(architecture.model)
    every = [*(dict.fromkeys(group, 1) for group in found.groups), *found.others]
    assert rank(every, found.names) == len(every) == len(found.basis)
    assert all(vector in found.basis for vector in found.others)
    table = str(found).split("\n\n")[1].splitlines()
    assert table[0].startswith(f"{len(found.basis)} independent rescaling symmetries in all: {len(found.groups)} by scale-")
    assert [line for line in table if line.startswith("  ")] == [
        "  " + " · ".join(f"{name}^{exponent}" for name, exponent in vector.items()) for vector in found.others]


fractions = st.builds(Fraction, st.integers(-3, 3), st.integers(1, 4))


@given(st.lists(st.lists(fractions, min_size=5, max_size=5), max_size=6))
def test_elimination_exact_and_rounded_agree(rows):
    """Both reduce the same equations; the rounded form solves what the exact one does."""
    names = list("abcde")
    equations = [dict(zip(names, row, strict=True)) for row in rows]
    basis = null_space(equations, names)
    assert all(sum(c * vector.get(n, 0) for n, c in equation.items()) == 0 for equation in equations for vector in basis)
    space = RowSpace(names)
    new = [row for row, equation in zip(rows, equations, strict=True) if space.add(equation)]
    assert len(new) + len(basis) == len(names)
    matrix = np.array(new, float).reshape(-1, len(names))
    reduced, pivots = reduce_rows(matrix)
    np.testing.assert_allclose(reduced[:, pivots], np.eye(len(new)), atol=1e-9)
    for vector in basis:
        np.testing.assert_allclose(reduced @ [vector.get(n, 0) for n in names], 0, atol=1e-6)
    assert np.linalg.matrix_rank(np.vstack([matrix, reduced]), tol=1e-6) == len(new)
