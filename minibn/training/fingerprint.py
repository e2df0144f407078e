"""What a checkpoint remembers of the data, so that a run does not go on with other images or labels of the same shape."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

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


def other_data(old: Fingerprint | None, new: Fingerprint | None) -> Iterator[str]:
    """Which part of two fingerprints differs; none if the file has none, or the shapes differ, which is said elsewhere."""
    for what in ("examples", "labels"):
        one, other = (np.asarray((data or {}).get(what, [])) for data in (old, new))
        if one.shape == other.shape and not np.allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max(initial=0)):
            yield f"the {what} of the data are others than those that it was trained on"
