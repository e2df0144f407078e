"""`check_degree`: whether what a layer says about its rescalings is true."""

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from minibn import arguments
from minibn.backend import is_floating
from minibn.degree import Degree, Form, Walk
from minibn.invariance import null_space
from minibn.nn import Module

INPUT, SHIFT = "the input", "a bias of the input"
POINTS = 4  # random points, at each of which a claim must hold
GAP = 1e-8  # relative; rounding leaves 1e-13
RANK = 1e-5  # singular values below this part of the whole count as 0; central differences leave 1e-9


def check_degree(module: Module, x: np.ndarray, *, rng: Generator) -> None:
    """Check that `module.degree` claims every rescaling that the module has, and no other.

    The check is made in training mode, with eps = 0. The input is h + b, where b has one number per
    channel. So the claim is about exponents a of h, of b and of every parameter p: equations that
    they must satisfy, and the degree d of the output. If they do, the output f must scale as

        f(c^a θ) = c^d f(θ),   θ = (h, b, p, …)

    which is measured at random θ and c for each solution of the equations. To find what is not
    claimed, differentiate at c = 1:

        Σ_i a_i ∂f/∂θ_i · θ_i = d f

    So all (a, d) that the module has are a null space, and it may have no more dimensions than the
    solutions. Both checks are made twice: of f, where all biases must scale like the rest, and of f
    without each channel's mean, where a bias that is still one number per channel is free.

    Args:
        module: a module of float64 parameters. It is copied and stays as it is.
        x: float64 input (N, …, C) of NumPy, or integers, which are used as they are. The points θ
            at which is measured have its shape, with N of at least 8. Their entries are drawn from
            x and multiplied, like the parameters, by random factors in [1/2, 3/2], so signs are
            kept.
        rng: numpy.random.Generator.

    Raises:
        AssertionError: a claim is wrong, or one is missing. (A module made of others may have a
            rescaling by coincidence, as `invariance.symmetries` says. A layer should not.)
        TypeError: the module does not define `degree`.
    """
    arguments.of_kind("module", module, Module, "an nn.Module")
    arguments.array("x", x)
    module = _without_eps(module)
    points = [_random_point(module, x, rng) for _ in range(POINTS)]
    names = [name for name, array in points[0].items() if is_floating(array)]  # integers have no scale
    for centred in (False, True):
        claim = _claim(module, names, centred)
        _check_what_is_claimed(claim, points, rng)
        _check_that_nothing_is_missing(claim, points)


class _Claim(NamedTuple):
    """What `module.degree` says: the solutions of its equations, and the output's degree as a linear form."""

    module: Module
    names: list[str]
    solutions: list[dict[str, int]]
    degree: Form
    centred: bool

    def output(self, theta):
        """f(θ), without each channel's mean if `centred`."""
        for name, parameter in self.module.named_parameters():
            parameter.data = theta[name]
        y = self.module(theta[INPUT] + theta[SHIFT] if SHIFT in theta else theta[INPUT])
        return y - y.mean(axis=tuple(range(y.ndim - 1)), keepdims=True) if self.centred else y

    @property
    def of_what(self):
        return "the output without its mean" if self.centred else "the output"


def _claim(module, names, centred):
    walk = Walk({id(p): name for name, p in module.named_parameters()},
                {id(m): name or str(module) for name, m in module.named_modules()})
    scaled = Degree(walk, {INPUT: Fraction(1)}, ((SHIFT, {SHIFT: Fraction(1)}),))
    claimed = module.degree(scaled if INPUT in names else Degree(walk))
    if not centred:
        claimed = claimed.settled(module)
    return _Claim(module, names, null_space([e.form for e in walk.equations], names), claimed.form, centred)


def _check_what_is_claimed(claim, points, rng):
    """f(c^a θ) = c^d f(θ) for each claimed solution a, at each point."""
    for exponents in claim.solutions:
        degree = float(sum(c * exponents.get(name, 0) for name, c in claim.degree.items()))
        for theta in points:
            c = math.exp(rng.uniform(0.3, 1.0) * rng.choice([-1, 1]) / max(map(abs, exponents.values())))
            expected = c**degree * claim.output(theta)
            difference = claim.output(_scaled(theta, c, exponents)) - expected
            gap = np.linalg.norm(difference) / max(float(np.linalg.norm(expected)), 1e-300)
            assert gap < GAP, (f"{claim.module}.degree is wrong: it claims that scaling {_words(exponents)} multiplies "
                               f"{claim.of_what} by c^{degree:g}, but the gap is {gap:.1e}")


def _check_that_nothing_is_missing(claim, points):
    """The measured null space is no larger than the claimed one."""
    rows = np.concatenate([_derivatives(claim.output, theta, claim.names) for theta in points])
    unknowns = len(claim.names) + 1  # the exponents, and the output's degree
    measured = unknowns - np.linalg.matrix_rank(rows, tol=RANK * np.linalg.norm(rows))
    listed = "; ".join(map(_words, claim.solutions)) or "none"
    assert measured <= len(claim.solutions), (
        f"{claim.module}.degree claims too little: {len(claim.solutions)} independent rescalings ({listed}), but "
        f"{claim.of_what} has {measured}")


def _without_eps(module):
    """A copy of the module, in training mode, with every eps set to 0."""
    module = copy.deepcopy(module).train()
    for _, part in module.named_modules():
        if getattr(part, "eps", 0):
            part.eps = 0.0
    return module


def _random_point(module: Module, x: np.ndarray, rng: Generator) -> dict[str, np.ndarray]:
    """θ: {what: array} of the parameters, of the input h and its bias b; no number is 0."""
    def vary(array):
        return np.where(array == 0, 1.0, array) * rng.uniform(0.5, 1.5, array.shape)

    parameters = {name: vary(p.data) for name, p in module.named_parameters()}
    if not is_floating(x):
        return {**parameters, INPUT: x}
    shape = (max(x.shape[0], 8), *x.shape[1:])
    images, channels = (rng.choice(x.ravel(), size) for size in (shape, x.shape[-1]))
    return {**parameters, INPUT: vary(images), SHIFT: vary(channels)}


def _scaled(theta, c, exponents):
    return {name: c ** float(exponents[name]) * array if name in exponents else array for name, array in theta.items()}


def _derivatives(f: Callable[[dict[str, Any]], np.ndarray], theta: dict[str, np.ndarray], names: list[str],
                 h: float = 1e-6) -> np.ndarray:
    """Columns ∂f/∂θ_i · θ_i (central differences in ln c) for each name, and -f; one row per number of f."""
    more, less = ([f(_scaled(theta, math.exp(e), {name: 1})).ravel() for name in names] for e in (h, -h))
    matrix = np.stack([*((a - b) / (2 * h) for a, b in zip(more, less, strict=True)), -f(theta).ravel()], axis=1)
    return matrix / max(np.linalg.norm(matrix), 1e-300)


def _words(exponents):
    return ", ".join(f"{name} by c^{a}" for name, a in exponents.items())
