"""Scale invariance measured: of any function of a dict of arrays, such as a model of any library."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minibn import arguments


class Probe(NamedTuple):
    """What `probe` measured, each relative to the size of what was compared.

    Where L(cθ) = L(θ) all three are 0, up to rounding.
    """

    value_gap: float  # |f(cθ) - f(θ)| / |f(θ)|
    inner_product: float  # <∇L, θ> / (|∇L| |θ|)
    gradient_gap: float  # |c ∇L(cθ) - ∇L(θ)| / |∇L(θ)|

    def is_scale_invariant(self, tolerance: float = 1e-6) -> bool:
        """Whether none of the three is above `tolerance`, or NaN."""
        return all(gap <= tolerance for gap in self)


def probe(f: Callable[[dict[str, Any]], Any], parameters: Mapping[str, np.ndarray],
          names: Iterable[str] | dict[str, float] | None = None, *,
          scales: Iterable[float] = (2.0**-8, 0.3, 1.7, 12.0, 2.0**8)) -> Probe:
    """Measure the lemma of scale invariance on any function: f(cθ) = f(θ), <∇L, θ> = 0, ∇L(cθ) = ∇L(θ) / c.

    Args:
        f: called with {name: array}. Returns a number or array, or a pair of that and {name:
            gradient}. Without gradients only the first of the three is measured, and the others are
            0.
        parameters: {name: NumPy array}, float64 for a sharp answer.
        names: the parameters that are multiplied by c, all if None. A dict {name: exponent a}
            multiplies by c^a.
        scales: the c that are tried, all above 0 and not 1. The worst counts. The default spans
            what a conversion with a `band` of 2**8 uses: a function that is invariant only near the
            present weights must not pass.

    Returns:
        Probe: for each of the three the worst gap over all `scales`; NaN if f is not finite.

    Raises:
        ValueError: a name is unknown, or `names` or `scales` have nothing to try.

    Example:
        >>> w = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
        >>> probe(lambda p: p["a"] / np.linalg.norm(p["a"]) + p["b"], w, ["a"]).is_scale_invariant()
        True
        >>> probe(lambda p: p["a"] / np.linalg.norm(p["a"]) + p["b"], w).is_scale_invariant()
        False
    """
    if names is not None and not isinstance(names, Mapping):
        names = arguments.iterable("probe: names", names, "a list of names of parameters, or a dict of exponents")
    exponents = dict(names) if isinstance(names, Mapping) else dict.fromkeys(parameters if names is None else names, 1.0)
    unknown = sorted(set(exponents) - set(parameters))
    if unknown:
        raise ValueError(f"no parameters named {unknown}; there are {list(parameters)}")
    if not any(exponents.values()):
        raise ValueError(f"probe has nothing to scale with names={names!r}; give the name of a parameter")
    value, gradients = _value_and_gradients(f, parameters)
    gradient_size = _norm(gradients.values())
    chosen = [(float(exponents[n]) * g, parameters[n]) for n, g in gradients.items() if n in exponents]
    inner_product = abs(sum(float(np.sum(g * w)) for g, w in chosen))
    value_gaps, gradient_gaps = [], []
    for c in scales:
        if not c > 0 or c == 1:
            raise ValueError(f"probe needs scales above 0 and other than 1, got {c}")
        factor = {name: c ** float(exponents.get(name, 0)) for name in parameters}
        scaled_value, scaled_gradients = _value_and_gradients(f, {n: factor[n] * p for n, p in parameters.items()})
        value_gaps.append(_relative(_norm([scaled_value - value]), _norm([value])))
        difference = _norm(factor[n] * scaled_gradients[n] - g for n, g in gradients.items())
        gradient_gaps.append(_relative(difference, gradient_size))
    if not value_gaps:
        raise ValueError("probe needs at least one scale to try, got none")
    orthogonality = _relative(inner_product, gradient_size * _norm(w for _, w in chosen))
    return Probe(float(np.max(value_gaps)), orthogonality, float(np.max(gradient_gaps)))


def _value_and_gradients(f, parameters):
    result = f(parameters)
    value, gradients = result if isinstance(result, tuple) else (result, {})
    return np.asarray(value, dtype=float), {name: np.asarray(g, dtype=float) for name, g in gradients.items()}


def _relative(difference, size):
    return difference / max(size, 1e-300)


def _norm(arrays):
    return math.sqrt(sum(float(np.sum(np.square(a))) for a in arrays))
