"""What a checkpoint remembers of data, model and functions, so that a run does not go on with others of the same shapes."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from minibn import jsonable, nn
from minibn.backend import Array, array_namespace, device, to_numpy

Fingerprint: TypeAlias = dict[str, list[float]]


def of(x: Array, y: Array) -> Fingerprint:
    """Numbers that tell data sets apart: a random projection of 64 evenly spaced examples, and of 4,096 labels each.

    The array library makes no difference, and rounding next to none.
    """
    return {"examples": _projections(x, 64), "labels": _projections(y, 4096)}


def _projections(array, most):
    """`a · r` for each of at most `most` entries a of the array, with one random unit vector r."""
    count = min(most, array.shape[0])
    places = [i * array.shape[0] // count for i in range(count)]
    xp = array_namespace(array)
    chosen = to_numpy(xp.take(array, xp.asarray(places, device=device(array)), axis=0)).astype(float).reshape(count, -1)
    r = np.random.default_rng(0).standard_normal(chosen.shape[1])
    return (chosen @ (r / np.linalg.norm(r))).tolist()


def other_data(old: Fingerprint | None, new: Fingerprint | None, called: str, use: str) -> Iterator[str]:
    """"the examples of the `called` are others than those that it was `use`".

    Which part of two fingerprints differs; none if the file has none, or the shapes differ, which
    is said elsewhere.
    """
    for what in ("examples", "labels"):
        one, other = (np.asarray((data or {}).get(what, [])) for data in (old, new))
        if one.shape == other.shape and not np.allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max(initial=0)):
            yield f"the {what} of the {called} are others than those that it was {use}"


def of_model(model: nn.Module) -> dict[str, Any]:
    """{"PATH.SETTING": value}: the class, the parts in their order, and the settings of each module.

    Settings are the attributes without an underscore at the front that are functions, or that JSON
    can hold. The arrays of the module are no settings, and neither is its mode.

    Example:
        >>> of_model(nn.Sequential(nn.MaxPool2d(2)))
        {'class': 'Sequential', 'parts': {'0': '0'}, '0.class': 'MaxPool2d', '0.kernel_size': 2}
    """
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        changed = {k: v for k, v in vars(module).items() if k != "training" and not callable(getattr(type(module), k, None))}
        own = {"class": type(module).__qualname__, **_settings(changed)}
        if parts := module.children():
            own["parts"] = {str(i): name for i, (name, _) in enumerate(parts)}
        found |= {f"{path}.{name}" if path else name: value for name, value in own.items()}
    return found


def of_function(function: Callable | None) -> Any:
    """The name of a function or of the class of an object; with the arguments of a `functools.partial`. None for None.

    Example:
        >>> of_function(len), of_function(partial(sorted, reverse=True))
        ('len', {'partial': 'sorted', 'reverse': True})
    """
    if isinstance(function, partial):
        given = {**{str(i): value for i, value in enumerate(function.args)}, **function.keywords}
        return {"partial": of_function(function.func), **_settings(given)}
    if function is None:
        return None
    return getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or type(function).__qualname__


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the attributes that can be compared after they were saved."""
    found = {}
    for name, value in attributes.items():
        if name.startswith("_") or isinstance(value, (nn.Module, nn.Parameter)) or hasattr(value, "dtype") and value.ndim:
            continue
        try:
            found[name] = jsonable.plain(value)
        except (TypeError, ValueError):
            if callable(value):
                found[name] = of_function(value)
    return found
