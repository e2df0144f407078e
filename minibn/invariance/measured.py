"""Scale invariance measured: of any function of a dict of arrays, such as a model of any library."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minibn import nn
from minibn.backend import Array, to_numpy


class Probe(NamedTuple):
    """What `probe` measured, relative to the size of what was compared; all are 0, up to rounding, where L(cθ) = L(θ)."""

    value_gap: float  # |f(cθ) - f(θ)| / |f(θ)|
    inner_product: float  # <∇L, θ> / (|∇L| |θ|)
    gradient_gap: float  # |c ∇L(cθ) - ∇L(θ)| / |∇L(θ)|

    def is_scale_invariant(self, tolerance: float = 1e-6) -> bool:
        """Whether none is above `tolerance`."""
        return max(self) <= tolerance


def probe(f: Callable[[dict[str, Any]], Any], parameters: Mapping[str, np.ndarray],
          names: Iterable[str] | dict[str, float] | None = None, *,
          scales: Iterable[float] = (2.0**-8, 0.3, 1.7, 12.0, 2.0**8)) -> Probe:
    """Measure the lemma of scale invariance on any function: f(cθ) = f(θ), <∇L, θ> = 0, ∇L(cθ) = ∇L(θ) / c.

    Args:
        f: called with {name: array}; returns a number or array, or a pair of it and {name: gradient}. Without gradients
            only the first of the three is measured, the others are 0.
        parameters: {name: NumPy array}, float64 for a sharp answer.
        names: which are scaled; None: all.
        scales: the c that are tried; the worst counts. By default they span what a conversion with a `band` of 2**8 uses:
            a symmetry that holds only near the present weights is none. Exponents other than 1: give {name: exponent} as `names`.

    Returns:
        Probe

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> w = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
        >>> probe(lambda p: p["a"] / np.linalg.norm(p["a"]) + p["b"], w, ["a"]).is_scale_invariant()
        True
        >>> probe(lambda p: p["a"] / np.linalg.norm(p["a"]) + p["b"], w).is_scale_invariant()
        False
    """
    exponents: dict[str, Any] = dict.fromkeys(parameters if names is None else names, 1)
    if isinstance(names, dict):
        exponents = names
    unknown = sorted(set(exponents) - set(parameters))
    if unknown:
        raise ValueError(f"no parameters named {unknown}; there are {list(parameters)}")
    value, gradients = _value_and_gradients(f, parameters)
    size = _norm(gradients.values())
    chosen = [(float(a) * gradients[n], parameters[n]) for n, a in exponents.items() if n in gradients]
    product = abs(sum(np.sum(g * w) for g, w in chosen))
    worst = [0.0, product / max(size * _norm(w for _, w in chosen), 1e-300), 0.0]
    for c in scales:
        factor = {name: c ** float(exponents.get(name, 0)) for name in parameters}
        scaled, scaled_gradients = _value_and_gradients(f, {n: factor[n] * p for n, p in parameters.items()})
        worst[0] = max(worst[0], _norm([scaled - value]) / max(_norm([value]), 1e-300))
        gap = _norm(factor[n] * scaled_gradients[n] - g for n, g in gradients.items())
        worst[2] = max(worst[2], gap / max(size, 1e-300))
    return Probe(*map(float, worst))


def _value_and_gradients(f, parameters):
    result = f(parameters)
    value, gradients = result if isinstance(result, tuple) else (result, {})
    return np.asarray(value, dtype=float), {name: np.asarray(g, dtype=float) for name, g in gradients.items()}


def _norm(arrays):
    return math.sqrt(sum(float(np.sum(np.square(a))) for a in arrays))


def loss_function(model: nn.Module, x: Array, y: Array,
                  loss: nn.Loss | None = None) -> Callable[[Mapping[str, Array]], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The model as a function for `probe`: {name: array} -> (logits, gradients of the loss), in training mode.

    Args:
        model: its present parameters are `{name: p.data}`; each call replaces them.
        x, y: a batch.
        loss: `nn.CrossEntropy()` if None.

    Example:
        >>> from minibn import data, models
        >>> net = models.mlp((8,), eps=0.0, rng=np.random.default_rng(0), dtype="float64")
        >>> digits = data.digits("float64")
        >>> f = loss_function(net, digits.x_train[:32], digits.y_train[:32])
        >>> probe(f, {name: p.data for name, p in net.named_parameters()}, ["linear1.weight"]).value_gap < 1e-12
        True
    """
    loss = loss or nn.CrossEntropy()
    named = dict(model.named_parameters())

    def f(parameters):
        model.train()
        for name, value in parameters.items():
            named[name].data = value
        model.zero_grad()
        logits = model(x)
        loss(logits, y)
        model.backward(loss.backward())
        return to_numpy(logits), {name: to_numpy(p.grad) for name, p in named.items()}

    return f
