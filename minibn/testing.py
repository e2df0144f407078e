"""Checks for people who write a layer: `check_layer` is all of them in one call.

A new layer needs three methods and nothing else, to be trained, converted and moved to a GPU like the ones that are here:

    >>> from minibn import nn
    >>> from minibn.backend import array_namespace
    >>> class Scale(nn.Module):
    ...     '''`y = a x`, one factor per channel; backward: `da = Σ dy x`, `dx = a dy`.'''
    ...
    ...     def __init__(self, channels):
    ...         self.weight = nn.Parameter(np.ones(channels))
    ...
    ...     def forward(self, x):
    ...         return self.keep(x * self.weight.data, x)
    ...
    ...     def backward(self, dy):
    ...         (x,) = self.kept(dy)
    ...         axes = tuple(range(x.ndim - 1))
    ...         self.weight.grad += array_namespace(x).sum(dy * x, axis=axes)
    ...         return dy * self.weight.data
    ...
    ...     def degree(self, x):
    ...         return x.times(self.weight)
    >>> rng = np.random.default_rng(0)
    >>> check_layer(Scale(3), distinct(rng, (4, 5, 5, 3)), rng=rng) < 1e-9
    True

Only names of the array API standard, taken from the input, make it run on every library: `array_namespace(x).sum`, not `np.sum`.
"""

import copy
import math
import warnings
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
from numpy.random import Generator

from minibn import backend
from minibn.degree import Degree, Walk
from minibn.invariance import null_space
from minibn.nn import Module


def distinct(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random float64 numbers between -2 and 2, any two of them (and zero) at least 1 / (their count) apart.

    Far enough from each other for central differences: none of ReLU's and max-pooling's kinks, nor a set of nearly equal
    numbers for a normalisation, lies within a step of them.
    """
    count = int(np.prod(shape))
    return ((rng.permutation(count) + 0.5) * 4 / count - 2 + 0.25 / count).reshape(shape)


def check_layer(module: Module, x: np.ndarray, *, rng: Generator, tolerance: float = 1e-6) -> float:
    """`check_gradient`, `check_degree` and `check_libraries`.

    Args:
        module: a module of float64 parameters.
        x: float64 input (N, …, C) of NumPy, such as `distinct` makes.
        rng: numpy.random.Generator for what the checks draw.
        tolerance: of the gradient.

    Returns:
        The largest error of a gradient, a float.

    Raises:
        AssertionError: a check failed; the message says what is wrong.
        TypeError: the module does not define `degree`.
    """
    worst = check_gradient(module, x, rng=rng, tolerance=tolerance)
    check_degree(module, x, rng=rng)
    check_libraries(module, x, rng=rng)
    return worst


def check_gradient(module: Module, x: np.ndarray, *, rng: Generator, tolerance: float = 1e-6) -> float:
    """Compare `module.backward` with central differences of `module.forward`, in x and in every parameter, and check that it
    adds to gradients.

    For a random dy and L = Σ dy · forward(x), the derivative of L in each single number is measured by the five-point rule
        L' ≈ (8 (L(+h) - L(-h)) - (L(+2h) - L(-2h))) / 12 h,    h = 1e-5.
    The error is |measured - backward| / max(|backward|, |dy| / 1000), norms over an array.

    Returns:
        The largest error, a float.

    Raises:
        AssertionError: the error is above `tolerance`, or a gradient was replaced; the message names the array.
    """
    x = x.copy()
    module.zero_grad()
    y = module(x)
    dy = rng.standard_normal(y.shape)
    arrays = {"the input": (x, module.backward(dy))}
    arrays |= {name: (parameter.data, parameter.grad.copy()) for name, parameter in module.named_parameters()}
    module(x)
    module.backward(dy)
    for name, parameter in module.named_parameters():
        assert np.array_equal(parameter.grad, 2 * arrays[name][1]), f"{module}: backward must add to {name}.grad, not replace it"
    worst = 0.0
    for name, (array, gradient) in arrays.items():
        measured = _differences(lambda: float(np.sum(dy * module(x))), array)
        error = np.linalg.norm(measured - gradient) / max(np.linalg.norm(gradient), np.linalg.norm(dy) / 1000)
        assert error <= tolerance, (f"{module}: backward's gradient in {name} is off by {error:.1e} (tolerance "
                                    f"{tolerance:.0e}) from central differences\n{gradient}\ninstead of\n{measured}")
        worst = max(worst, float(error))
    return worst


def _differences(f, array, h=1e-5):
    """Derivative of f() in each number of `array`, which is changed in place and restored."""
    derivative = np.empty_like(array)
    for i in np.ndindex(array.shape):
        old, values = array[i], []
        for offset in (h, -h, 2 * h, -2 * h):
            array[i] = old + offset
            values.append(f())
        array[i] = old
        derivative[i] = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
    return derivative


INPUT, SHIFT = "the input", "a bias of the input"


def check_degree(module: Module, x: np.ndarray, *, rng: Generator) -> None:
    """Check that `module.degree` claims every rescaling that the module has, and no other; in training mode, with eps = 0.

    The input is h + b, b one number a channel, so the claim is about exponents a of h, b and every parameter p: equations that
    they must satisfy, and the degree d of the output. If they do, the output f must scale as
        f(c^a θ) = c^d f(θ),   θ = (h, b, p, …)
    which is measured at random θ and c for each solution of the equations. To find what is not claimed, differentiate at c = 1:
        Σ_i a_i ∂f/∂θ_i · θ_i = d f
    so all (a, d) that the module has are a null space, and its dimension may not be larger than that of the solutions. Both are
    done twice: with all biases scaling like the rest, and with each channel's mean taken away from f, and so every bias that is
    still one number a channel.

    The shape is that of x, with a batch of at least 8. Numbers are drawn from x and times random factors between 1/2 and 3/2, as
    are the parameters, so signs stay.

    Raises:
        AssertionError: a claim is wrong, or one is missing. (A module made of others may have a rescaling by coincidence, as
            `invariance.symmetries` says; a layer should not.)
        TypeError: the module does not define `degree`.
    """
    module = _without_eps(module)
    points = [_random_point(module, x, rng) for _ in range(4)]
    names = list(points[0])
    for centred in (False, True):
        walk = Walk({id(p): name for name, p in module.named_parameters()},
                    {id(m): name or str(module) for name, m in module.named_modules()})
        claimed = module.degree(Degree(walk, {INPUT: Fraction(1)}, ((SHIFT, {SHIFT: Fraction(1)}),)))
        if not centred:
            claimed = claimed.settled(module)

        def f(theta, centred=centred):
            return _output(module, theta, centred)

        solutions = null_space([e.form for e in walk.equations], names)
        for exponents in solutions:
            degree = sum(c * exponents.get(name, 0) for name, c in claimed.form.items())
            for theta in points:
                c = math.exp(rng.uniform(0.3, 1.0) * rng.choice([-1, 1]) / max(map(abs, exponents.values())))
                expected = c ** float(degree) * f(theta)
                gap = np.linalg.norm(f(_scaled(theta, c, exponents)) - expected) / max(float(np.linalg.norm(expected)), 1e-300)
                assert gap < 1e-8, (f"{module}.degree is wrong: it claims that scaling {_words(exponents)} multiplies the output"
                                    f"{' without its mean' if centred else ''} by c^{degree}, but the gap is {gap:.1e}")
        rows = np.concatenate([_derivatives(f, theta, names) for theta in points])
        found = len(names) + 1 - np.linalg.matrix_rank(rows, tol=1e-5 * np.linalg.norm(rows))
        assert found <= len(solutions), (
            f"{module}.degree claims too little: {len(solutions)} independent rescalings ("
            f"{'; '.join(map(_words, solutions)) or 'none'}), but the output{' without its mean' if centred else ''} has {found}")


def _without_eps(module):
    """A copy of the module, in training mode, with every eps set to 0."""
    module = copy.deepcopy(module).train()
    for _, part in module.named_modules():
        if getattr(part, "eps", 0):
            part.eps = 0.0
    return module


def _random_point(module, x, rng):
    """θ: {what: array} of the parameters, of the input h and its bias b; no number 0."""
    def vary(array):
        return np.where(array == 0, 1.0, array) * rng.uniform(0.5, 1.5, array.shape)

    parameters = {name: vary(p.data) for name, p in module.named_parameters()}
    images, channels = (rng.choice(x.ravel(), size) for size in ((max(x.shape[0], 8), *x.shape[1:]), x.shape[-1]))
    return {**parameters, INPUT: vary(images), SHIFT: vary(channels)}


def _output(module, theta, centred):
    """f(θ), with each channel's mean taken away if `centred`."""
    for name, parameter in module.named_parameters():
        parameter.data = theta[name]
    y = module(theta[INPUT] + theta[SHIFT])
    return y - y.mean(axis=tuple(range(y.ndim - 1)), keepdims=True) if centred else y


def _scaled(theta, c, exponents):
    return {name: c ** float(exponents.get(name, 0)) * array for name, array in theta.items()}


def _derivatives(f, theta, names, h=1e-6):
    """Columns ∂f/∂θ_i · θ_i for each name, and -f, of one length."""
    more, less = ([f(_scaled(theta, math.exp(e), {name: 1})).ravel() for name in names] for e in (h, -h))
    matrix = np.stack([*((a - b) / (2 * h) for a, b in zip(more, less, strict=True)), -f(theta).ravel()], axis=1)
    return matrix / max(np.linalg.norm(matrix), 1e-300)


def _words(exponents):
    return ", ".join(f"{name} by c^{a}" for name, a in exponents.items())


def check_libraries(module: Module, x: np.ndarray, *, rng: Generator, tolerance: float = 1e-10) -> None:
    """Check that forward and backward give on array-api-strict and PyTorch, where those are installed, what they give on NumPy.

    array-api-strict has only what is in the array API standard, and a second device, on which this runs: an array that is made
    without `device=device(x)` is on the first, and using it with x is an error. What runs there runs on a GPU.

    Raises:
        AssertionError: a number differs by more than `tolerance`, relative to the largest, or the library raised an error.
    """
    missing = [name for name in ("array_api_strict", "torch") if not find_spec(name)]
    if missing:
        warnings.warn(f"{module} was not checked on {' and '.join(missing)}, which this needs installed; array-api-strict is the "
                      "strictest", stacklevel=2)
    dy = None
    expected = None
    for name in ["numpy", *(name for name in ("array_api_strict", "torch") if find_spec(name))]:
        there, (xp, device) = copy.deepcopy(module).to(name), backend.library(name)
        try:
            y = there(backend.convert(x, xp, device=device))
            dy = rng.standard_normal(tuple(y.shape)) if dy is None else dy
            dx = there.backward(backend.convert(dy, xp, device=device))
            state = there.state_dict() | {f"{path}.grad": p.grad for path, p in there.named_parameters()}
            results = {key: backend.to_numpy(value) for key, value in {"output": y, "input.grad": dx, **state}.items()}
        except Exception as error:
            raise AssertionError(f"{module} does not run on {name}: {type(error).__name__}: {error}") from error
        expected = expected or results
        for key, value in results.items():
            size = max(np.abs(expected[key]).max(), 1e-300) if value.size else 1.0
            gap = np.abs(value - expected[key]).max() / size if value.size else 0.0
            assert gap <= tolerance, f"{module}: {key} on {name} is not that of NumPy; the largest gap is {gap:.1e}"
