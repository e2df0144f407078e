"""What `str` and `explain` say of a network's symmetries, word for word, and which of two overlapping sets is taken."""

from fractions import Fraction

import numpy as np
import pytest

from minibn import nn
from minibn.degree import Equation
from minibn.invariance import Symmetries, symmetries


def conv(**options):
    return nn.Conv2d(4, 4, 1, rng=np.random.default_rng(0), **{"bias": False} | options)


def norm(make=nn.BatchNorm, **options):
    return make(4, **{"affine": False, "eps": 0.0} | options)


ALONE = nn.Sequential(conv(), norm(eps=0.25), nn.ReLU(), conv(), norm(eps=0.5))
TOGETHER = nn.Sequential(conv(), conv(bias=True), norm(nn.LayerNorm))
NOT = nn.Sequential(conv(bias=True), norm(nn.LayerNorm, affine=True), nn.ReLU())
FIVE = nn.Sequential(conv(), *(nn.Residual(nn.Sequential(norm(), conv())) for _ in range(4)), norm())

TABLES = [
    (ALONE, """
parameter  group  cancelled by
0.weight       1  1
3.weight       2  4

2 independent rescaling symmetries in all: 2 by scale-invariant groups, and 0 others
approximate where eps is not 0: 2 normalisations with eps up to 0.5"""),
    (TOGETHER, """
parameter  group  cancelled by
0.weight       1  2
1.weight       -  -
1.bias         1  2

2 independent rescaling symmetries in all: 1 by scale-invariant groups, and 1 other:
  1.weight^1 · 1.bias^1"""),
    (nn.Sequential(conv(), nn.Square(), conv(), nn.Square(), conv()), """
parameter  group  cancelled by
0.weight       -  -
2.weight       -  -
4.weight       -  -

2 independent rescaling symmetries in all: 0 by scale-invariant groups, and 2 others:
  0.weight^1 · 4.weight^-4
  2.weight^1 · 4.weight^-2"""),
    (FIVE, """
parameter          group  cancelled by
0.weight               1  1.branch.0, 2.branch.0, 3.branch.0 and 2 more
1.branch.1.weight      1  1.branch.0, 2.branch.0, 3.branch.0 and 2 more
2.branch.1.weight      1  1.branch.0, 2.branch.0, 3.branch.0 and 2 more
3.branch.1.weight      1  1.branch.0, 2.branch.0, 3.branch.0 and 2 more
4.branch.1.weight      1  1.branch.0, 2.branch.0, 3.branch.0 and 2 more

1 independent rescaling symmetries in all: 1 by scale-invariant groups, and 0 others"""),
]

SENTENCES = [
    (ALONE, "0.weight", "0.weight may be scaled alone: 1 cancels it"),
    (TOGETHER, "1.bias", "1.bias and 0.weight may only be scaled together, because 1.bias is added before 2; their common scale "
                         "is cancelled by 2"),
    (TOGETHER, "1.weight", "1.weight is scale-invariant only together with 1.bias, part of which is in another group already "
                           "(1.bias is added before 2)"),
    (NOT, "1.weight", "1.weight is in no scale-invariant group, because 1.bias is added before 2 and the output must stay as it "
                      "is, and no set of weights with 1.weight keeps that in balance"),
    (FIVE, "2.branch.1.weight",
     "2.branch.1.weight, 0.weight, 1.branch.1.weight and 2 more may only be scaled together, because 1 adds two branches, 2 adds "
     "two branches, 3 adds two branches and 4 adds two branches; their common scale is cancelled by 1.branch.0, 2.branch.0, "
     "3.branch.0 and 2 more"),
]


@pytest.mark.parametrize(("net", "table"), TABLES, ids=["alone", "together", "others", "five"])
def test_the_table(net, table):
    assert str(symmetries(net)) == table.strip()


@pytest.mark.parametrize(("net", "name", "sentence"), SENTENCES)
def test_the_explanation(net, name, sentence):
    assert symmetries(net).explain(name) == sentence


def test_a_weight_without_any_effect():
    found = Symmetries({"a": 2, "b": 1}, [])
    assert found.explain("a") == "a may be scaled alone: it has no effect"
    assert "a              1  nothing: it has no effect" in str(found)
    assert (found.groups, found.weights) == ([("a",), ("b",)], ["a"])  # b is a vector


@pytest.mark.parametrize(("b", "taken"), [(None, "a"), (16, "a"), (17, "b")])
def test_of_overlapping_sets_the_other_is_taken_if_it_has_half_as_many_entries_again(b, taken):
    """a and s are 12 numbers, and 18 are not more than half as many again."""
    overlap = Equation({"a": Fraction(1), "b": Fraction(1), "s": Fraction(-1)}, "here", "they are added")
    sizes = b and {"a": 10, "s": 2, "b": b}
    assert Symmetries({"a": 2, "b": 2, "s": 2}, [overlap], sizes=sizes).groups == [(taken, "s")]


def equation(**form):
    return Equation({name: Fraction(c) for name, c in form.items()}, "here", "so it is")


def test_a_set_that_only_a_search_finds():
    """x = a + b looks as if b would do for x, but b = c + d and c = d leave b nothing but 0."""
    equations = [equation(x=1, a=-1, b=-1), equation(b=1, c=-1, d=-1), equation(c=1, d=-1)]
    found = Symmetries(dict.fromkeys("xabcd", 2), equations)
    assert found.groups == [("x", "a")]
    assert found.explain("b").startswith("b is in no scale-invariant group, because so it is, and no set of weights with b keeps")


@pytest.mark.parametrize("sign", [1, -1])
def test_coefficients_may_be_fractions(sign):
    half = Fraction(sign, 2)
    assert Symmetries(dict.fromkeys("xab", 2), [equation(x=-sign, a=half, b=half)]).groups == [("x", "a", "b")]


@pytest.mark.parametrize("first", ["own degree", "no degree"])
def test_a_module_that_is_believed_does_not_hide_the_next_one(first):
    """`degree` of the object itself, and of a class whose base classes have none."""
    class Own(nn.Module):
        def forward(self, x):
            return x

    class Act(nn.ReLU):
        def forward(self, x):
            return x

    believed = nn.ReLU() if first == "own degree" else Own()
    believed.degree = lambda x: x
    with pytest.raises(TypeError, match="^1 has the type Act, which"):
        symmetries(nn.Sequential(believed, Act()))
