"""Degree algebra: how an activation scales when each parameter p is multiplied by c**a_p.

The activation is followed through the network as `c^d · h + shifts`. The part h is multiplied by c
to the degree d, which is a linear form in the unknown exponents a_p. The shifts are biases that
were added on the way, each with a degree of its own.

A bias is one number per channel. Convolutions without padding and pooling leave it one number per
channel, and then a BatchNorm removes it with the mean, whatever its scale. Other layers, such as a
ReLU, require that the bias scales like the rest, which is an equation between exponents. Every sum
of two branches gives an equation, too, and so does the output, whose degree must be 0.
`minibn.invariance` solves these equations.

Every module has a method `degree(x)`, which says what the module does to a `Degree` x. It is
composed of the methods of `Degree`:

    | layer                    | degree(x)                                                      |
    | Linear                   | `x.times(self.weight).plus(self.bias)`                         |
    | Conv2d with padding      | `x.settled(self).times(self.weight).plus(self.bias)`           |
    | ReLU                     | `x.settled(self)`                                              |
    | pooling, Flatten         | `x`                                                            |
    | BatchNorm                | `x.normalised(self, mean=True).times(self.weight).plus(self.bias)` |
    | Residual                 | `branch.degree(x).joined(shortcut.degree(x), self)`            |
    | RMSNorm                  | `x.normalised(self, mean=False).times(self.weight)`            |
    | Embedding                | `x.looked_up(self.weight)`                                     |
    | Positions                | `x.joined(x.looked_up(self.weight), self)`                     |
    | Square                   | `x.power(2, self)`                                             |
    | GELU, SiLU               | `x.fixed(self, "GELU")`                                        |
    | GatedMLP                 | `gate.fixed(self, "SiLU").multiplied(up, self)`                |
    | attention                | `q.multiplied(k, self).fixed(self, "softmax")`, then that of v |

The paper's appendix C follows a single number in this way. Here the exponents are unknowns, so all
rescalings are found at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypeAlias

Form: TypeAlias = dict[str, Fraction]  # a linear form in the exponents: {parameter name: coefficient}


@dataclass(frozen=True)
class Equation:
    """`Σ form[p] a_p = 0` between the exponents of the named parameters, and why: a clause about module `place`."""

    form: Form
    place: str
    reason: str

    def holds(self, exponents: Mapping[str, int | Fraction]) -> bool:
        """Whether {name: exponent} (0 where missing) satisfies it; exact for integers and Fractions."""
        return sum(c * exponents.get(name, 0) for name, c in self.form.items()) == 0


@dataclass
class Walk:
    """What is collected on the way through a network: the equations, and which normalisations cancel whose scale."""

    parameters: dict[int, str]  # id of Parameter -> dotted name
    modules: dict[int, str]  # id of Module -> dotted name
    equations: list[Equation] = field(default_factory=list)
    cancelled_by: dict[str, list[str]] = field(default_factory=dict)  # parameter name -> names of normalisations, in order

    def require(self, one: Form, other: Form, place: object, reason: str) -> None:
        """Add the equation `one = other` between two linear forms, unless it is 0 = 0."""
        form = {name: c for name, c in subtract(one, other).items() if c}
        if form:
            self.equations.append(Equation(form, self.modules.get(id(place), "the output"), reason))


def subtract(one: Form, other: Form) -> Form:
    """The linear form `one - other`."""
    return {name: one.get(name, Fraction(0)) - other.get(name, Fraction(0)) for name in (*one, *other)}


@dataclass(frozen=True)
class Degree:
    """Degree of an activation: `form` {parameter name: coefficient} of its scaling part, and the forms of its `shifts`."""

    walk: Walk
    form: Form = field(default_factory=dict)
    shifts: tuple[tuple[str, Form], ...] = ()  # (bias name, form)

    def times(self, parameter: object) -> "Degree":
        """The activation multiplied by `parameter` (None: not)."""
        if parameter is None:
            return self
        name = self.walk.parameters[id(parameter)]

        def higher(form):
            return {**form, name: form.get(name, Fraction(0)) + 1}

        return replace(self, form=higher(self.form), shifts=tuple((bias, higher(form)) for bias, form in self.shifts))

    def plus(self, bias: object) -> "Degree":
        """The activation with `bias` (None: not), one number per channel, added."""
        if bias is None:
            return self
        name = self.walk.parameters[id(bias)]
        return replace(self, shifts=(*self.shifts, (name, {name: Fraction(1)})))

    def settled(self, place: object) -> "Degree":
        """Where module `place` would mix biases with the rest: from here on they must scale alike."""
        for bias, form in self.shifts:
            self.walk.require(form, self.form, place, f"{bias} is added before {self._name(place)}")
        return replace(self, shifts=())

    def joined(self, other: "Degree", place: object) -> "Degree":
        """The sum of two activations, taken by module `place`: they must scale alike."""
        self.walk.require(self.form, other.form, place, f"{self._name(place)} adds two branches")
        return replace(self, shifts=self.shifts + other.shifts)

    def multiplied(self, other: "Degree", place: object) -> "Degree":
        """The product of two activations, entry by entry or as matrices, taken by module `place`: their degrees add up."""
        one, two = self.settled(place), other.settled(place)
        return replace(one, form=subtract(one.form, {name: -c for name, c in two.form.items()}))

    def power(self, exponent: int | Fraction, place: object) -> "Degree":
        """Every number raised to the power `exponent` by module `place`: the degree is multiplied by it."""
        x = self.settled(place)
        return replace(x, form={name: exponent * c for name, c in x.form.items()})

    def fixed(self, place: object, function: str) -> "Degree":
        """Where module `place` applies a `function`, such as a softmax, whose output is no power of its input's scale.

        The activation must have degree 0, and has it afterwards.
        """
        x = self.settled(place)
        self.walk.require(x.form, {}, place, f"the {function} of {self._name(place)} changes with the scale of its input")
        return Degree(self.walk)

    def looked_up(self, table: object) -> "Degree":
        """Rows of the parameter `table`, whatever this activation chose them by."""
        return Degree(self.walk).times(table)

    def normalised(self, place: object, *, mean: bool) -> "Degree":
        """The activation divided by its spread: degree 0. `mean`: a channel's mean is subtracted, and its biases with it."""
        x = self if mean else self.settled(place)
        for name in [name for form in (x.form, *(form for _, form in x.shifts)) for name in form]:
            norms = self.walk.cancelled_by.setdefault(name, [])
            if self._name(place) not in norms:
                norms.append(self._name(place))
        return Degree(self.walk)

    def _name(self, place):
        return self.walk.modules.get(id(place), "the output")
