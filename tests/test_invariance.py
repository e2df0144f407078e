"""Which weights may be rescaled: what the layers' degrees say is what is measured, on random architectures."""

from fractions import Fraction
from itertools import chain, combinations, islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minibn import invariance, models, nn
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
        names = [name for name in found.names if random.random() < 0.5]
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


def test_the_table_of_a_preresnet_lists_what_it_counts():
    text = str(symmetries(models.preresnet(8, eps=0.0, rng=np.random.default_rng(0))))
    assert "13 independent rescaling symmetries in all: 9 by scale-invariant groups, and 4 others:" in text
    assert text.count("^-1") == 4


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


def conv(rng, inside=4, outside=4, bias=False, padding=0):
    return nn.Conv2d(inside, outside, 1 + 2 * padding, padding=padding, bias=bias, rng=rng, dtype="float64")


def test_a_bias_before_a_norm():
    """BatchNorm and InstanceNorm take a bias away with the mean; LayerNorm, and a ReLU between, do not."""
    rng = np.random.default_rng(0)

    def groups(*layers):
        return symmetries(nn.Sequential(conv(rng, bias=True), *layers)).groups

    alone, together = [("0.weight",), ("0.bias",)], [("0.weight", "0.bias")]
    batch, layer = nn.BatchNorm(4, affine=False), nn.LayerNorm(4, affine=False)
    assert groups(batch) == alone
    assert groups(nn.InstanceNorm(4, affine=False)) == alone
    assert groups(nn.MaxPool2d(2), batch) == alone
    assert groups(layer) == together
    assert groups(nn.GroupNorm(2, 4, affine=False)) == together
    assert groups(nn.ReLU(), batch) == together
    assert groups(conv(rng), batch) == [*alone, ("1.weight",)]
    assert groups(conv(rng, padding=1), batch) == [*together, ("1.weight",)]  # at the border the bias counts less


def test_overlapping_sets_are_made_disjoint():
    rng = np.random.default_rng(0)
    net = nn.Sequential(conv(rng), conv(rng, bias=True), nn.LayerNorm(4, affine=False))
    found = symmetries(net)
    assert found.groups == [("0.weight", "1.bias")]
    assert found.is_scale_invariant(["1.weight", "1.bias"])
    assert "1.weight is scale-invariant only together with 1.bias, part of which is in another group" in found.explain("1.weight")


def test_rescalings_that_are_no_scale_invariance():
    rng = np.random.default_rng(0)
    net = nn.Sequential(conv(rng), nn.ReLU(), conv(rng))
    found = symmetries(net)
    assert found.groups == []
    assert found.basis == [{"0.weight": 1, "2.weight": -1}]
    assert "0.weight^1 · 2.weight^-1" in str(found)
    assert "0.weight is in no scale-invariant group, because the output must stay as it is" in found.explain("0.weight")


@pytest.mark.parametrize(("make", "together"), [(models.resnet, False), (models.preresnet, True)])
def test_residual_networks(make, together):
    """Post-activation: every conv alone. Pre-activation: the convs that write into one stream together only."""
    found = symmetries(make(14, rng=np.random.default_rng(0)))
    convs = [name for name in found.names if "conv" in name or name in ("stem.weight", "stage2.0.sum.shortcut.weight")]
    assert found.is_scale_invariant([name for name, d in found._dimensions.items() if d == 4])
    assert all(found.is_scale_invariant([name]) for name in convs) != together
    if together:
        stream = ("stem.weight", "stage1.0.branch.conv2.weight", "stage1.1.branch.conv2.weight")
        assert found.groups[0] == stream
        assert ("stage2.0.sum.branch.conv2.weight", "stage2.0.sum.shortcut.weight",
                "stage2.1.branch.conv2.weight") in found.groups  # convs together, not with γ and β
        text = found.explain("stem.weight")
        assert text == ("stem.weight, stage1.0.branch.conv2.weight and stage1.1.branch.conv2.weight may only be scaled together, "
                        "because stage1.0 adds two branches and stage1.1 adds two branches; their common scale is cancelled by "
                        "stage1.0.branch.norm1, stage1.1.branch.norm1 and stage2.0.norm1")
    assert not found.is_scale_invariant(["head.weight", "head.bias"])


def test_a_shortcut_before_the_shared_activation_breaks_it():
    """The paper's appendix C: a PreResNet whose downsampling shortcut takes what was not yet activated."""
    rng = np.random.default_rng(0)

    def net(before):
        branch = [conv(rng), nn.BatchNorm(4, affine=False), conv(rng)]
        first = [nn.BatchNorm(4, affine=False), nn.ReLU()]
        block = [nn.Residual(nn.Sequential(*first, *branch), conv(rng))] if before else [
            *first, nn.Residual(nn.Sequential(*branch), conv(rng))]
        return nn.Sequential(conv(rng), *block, nn.BatchNorm(4, affine=False))

    for before in (False, True):
        found = symmetries(net(before))
        assert found.is_scale_invariant(found.names) != before


def test_eps_is_reported():
    text = str(symmetries(models.vgg(rng=np.random.default_rng(0))))
    assert "approximate where eps is not 0: 4 normalisations with eps up to 1e-05" in text
    assert "approximate" not in str(symmetries(models.vgg(eps=0.0, rng=np.random.default_rng(0))))


def test_a_layer_of_ones_own():
    class Scale(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(np.ones(()))

        def degree(self, x):
            return x.times(self.weight)

    class Silent(nn.Module):
        pass

    rng = np.random.default_rng(0)
    assert symmetries(nn.Sequential(conv(rng), Scale(), nn.BatchNorm(4, affine=False))).groups == [("0.weight",), ("1.weight",)]
    with pytest.raises(TypeError, match=r"Silent must define degree\(x\)"):
        symmetries(nn.Sequential(Silent()))


class Tanh(nn.ReLU):
    """An activation that is not homogeneous, written over one that is."""

    def forward(self, x):
        return self.keep(np.tanh(x), np.tanh(x))


class CallOnly(nn.ReLU):
    def __call__(self, x):
        return np.tanh(x)


class Mixed(type("Squash", (), {"forward": Tanh.forward}), nn.ReLU):
    pass


class BelowThePool(nn.AvgPool2d):
    """`degree` is that of the base class of all pooling, `forward` neither its nor AvgPool2d's."""

    def forward(self, x):
        return super().forward(x**2)


@pytest.mark.parametrize("layer", [Tanh(), CallOnly(), Mixed(), BelowThePool(2)], ids=lambda layer: type(layer).__name__)
def test_a_degree_that_was_written_for_another_forward_is_refused(layer):
    name = type(layer).__name__
    net = nn.Sequential(conv(np.random.default_rng(0)), act=nn.Sequential(layer), norm=nn.BatchNorm(4, affine=False))
    with pytest.raises(TypeError, match=rf"act.0 has the type {name}, which has a forward of its own but inherits the degree of "
                                        rf".*Define degree\(x\) in {name} too .*check_degree"):
        symmetries(net)


def test_a_forward_put_on_one_object_is_refused_too():
    relu = nn.ReLU()
    relu.forward = np.tanh
    with pytest.raises(TypeError, match="0 has the type ReLU, which has a forward of its own"):
        symmetries(nn.Sequential(relu))


def test_a_degree_defined_next_to_the_forward_is_believed():
    class Leaky(nn.ReLU):
        def forward(self, x):
            return np.where(x > 0, x, 0.1 * x)

        degree = nn.ReLU.degree

    class Named(Leaky):
        """Changes neither."""

    class Refined(nn.BatchNorm):
        def degree(self, x):
            return super().degree(x)

    rng = np.random.default_rng(0)
    net = nn.Sequential(conv(rng), Leaky(), Named(), nn.AvgPool2d(2), Refined(4, affine=False))
    assert symmetries(net).groups == [("0.weight",)]


def test_unknown_names():
    found = symmetries(models.vgg(rng=np.random.default_rng(0)))
    for ask in (lambda: found.is_scale_invariant(["nothing"]), lambda: found.explain("nothing"),
                lambda: probe(lambda p: 0.0, {"w": np.ones(1)}, ["nothing"])):
        with pytest.raises(ValueError, match=r"no parameters named \['nothing'\]"):
            ask()


def test_probe_measures_the_lemma():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 4))

    def rayleigh(p):  # wᵀ A w / |w|², scale-invariant
        w = p["w"]
        value = w @ a @ w / (w @ w)
        return value, {"w": ((a + a.T) @ w - 2 * value * w) / (w @ w)}

    parameters = {"w": rng.standard_normal(4)}
    assert max(probe(rayleigh, parameters)) < 1e-14
    measured = probe(lambda p: (rayleigh(p)[0] + 0.01 * p["w"] @ p["w"], rayleigh(p)[1]), parameters)
    assert not measured.is_scale_invariant()
    wrong_gradient = probe(lambda p: (rayleigh(p)[0], {"w": p["w"]}), parameters)
    assert wrong_gradient.value_gap < 1e-14
    assert wrong_gradient.inner_product > 0.1
    assert wrong_gradient.gradient_gap > 0.1
    assert probe(lambda p: np.linalg.norm(p["w"]), parameters).value_gap > 0.1  # a plain function, without gradients


@pytest.mark.parametrize("scales", [(0.5, 2.0, 3.0), (3.0, 2.0, 0.5), (2.0, 3.0, 0.5)])
def test_probe_gives_the_worst_of_its_scales(scales):
    """|f(cθ) - f(θ)| = |c - 1| and the gradient's gap |c 2c - 2| / 2 = |c² - 1|; wherever the worst scale stands."""
    found = probe(lambda p: (np.array([1.0, p["w"] - 1]), {"w": 2 * p["w"]}), {"w": np.array(1.0)}, scales=scales)
    assert found.value_gap == pytest.approx(2)
    assert found.gradient_gap == pytest.approx(8)


@pytest.mark.parametrize("scales", [(2.0, 3.0), (3.0, 2.0)])
def test_what_is_not_finite_at_any_scale_is_not_invariant(scales):
    found = probe(lambda p: np.where(p["w"] > 2.5, np.nan, 1.0), {"w": np.array(1.0)}, scales=scales)
    assert np.isnan(found.value_gap)
    assert not found.is_scale_invariant()
    gradient = probe(lambda p: (1.0, {"w": np.where(p["w"] > 2.5, np.nan, 0.0)}), {"w": np.array(1.0)}, scales=scales)
    assert not gradient.is_scale_invariant()


def test_probe_measures_integers_as_numbers_that_may_be_negative():
    """A difference of unsigned integers would wrap around."""
    found = probe(lambda p: (np.uint8(10 - 2 * p["w"]), {"w": np.uint8(20 - 2 * p["w"])}), {"w": np.array(1.0)}, scales=[2.0])
    assert found.value_gap == pytest.approx(2 / 8)
    assert found.gradient_gap == pytest.approx((2 * 16 - 18) / 18)


@pytest.mark.parametrize("scales", [[], [1.0], [0.0], [-2.0], [float("nan")]])
def test_probe_refuses_scales_that_measure_nothing(scales):
    with pytest.raises(ValueError, match="probe needs (at least one scale|scales above 0 and other than 1)"):
        probe(lambda p: 1.0, {"w": np.array(1.0)}, scales=scales)


@pytest.mark.parametrize("make", [models.resnet, models.preresnet])
def test_probe_on_a_whole_network(make):
    rng = np.random.default_rng(0)
    net = make(8, width=4, eps=0.0, in_channels=1, rng=rng, dtype="float64")
    f = invariance.loss_function(net, rng.standard_normal((4, 8, 8, 1)), rng.integers(10, size=4))
    parameters = {name: p.data for name, p in net.named_parameters()}
    for group in symmetries(net).groups:
        assert max(probe(f, parameters, group)) < 1e-8, group
    assert not probe(f, parameters, ["head.weight"]).is_scale_invariant()


def test_what_cannot_be_scaled_is_known_without_a_search(monkeypatch):
    """The last bias is in no solution of the equations; trying all combinations of a PreResNet-20's others would take days."""
    net = models.preresnet(20, in_channels=1, width=4, eps=0.0, rng=np.random.default_rng(0))
    found, tried = symmetries(net), []
    propagate = found._propagate
    monkeypatch.setattr(found, "_propagate", lambda *args: tried.append(args) or propagate(*args))
    assert found.explain("head.bias").startswith("head.bias is in no scale-invariant group")
    assert len(tried) < 1000
