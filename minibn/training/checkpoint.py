"""Checkpoints: a training run on disk, either whole or not at all.

`save` and `load` write and read the file: named arrays, and facts that JSON can hold. It is a zip
archive that `numpy.load` can read, too:

    minibn.json         the facts
    NAME.npy            each array
    SHA256SUMS          a checksum of each part above, as the program sha256sum writes and checks them

`save_run` and `load_run` lay out a training run in it:

    model/NAME              the model's state_dict
    optimizer/GROUP/NAME    the arrays of the group's optimiser, such as velocity/0
    history/COLUMN          the measurements so far
    facts                   what else is needed to go on, and what must be the same for that
"""

import errno
import hashlib
import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice, permutations
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.random import Generator

from minibn import arguments, files, jsonable, nn
from minibn.backend import Array, to_numpy
from minibn.optim import Optimizer
from minibn.training import fingerprint
from minibn.training.history import History

FACTS, SUMS = "minibn.json", "SHA256SUMS"


def save(path: str | Path, arrays: Mapping[str, Array], facts: Any, *, commit: bool = True) -> None:
    """Write `arrays` {name: array} and `facts` (anything JSON can hold) to `path`, atomically.

    At every moment `path` holds either the old checkpoint or the new one, even when the disk is
    full or the process is killed: see `files.replacing`. Any names will do. NumPy's numbers in
    `facts` are loaded as Python's, arrays and tuples as lists: see `jsonable`.

    Args:
        commit: False writes everything and removes it again. It shows whether `path` can be
            written.

    Raises:
        OSError: the file cannot be written, or it exists and is not a checkpoint. It is left
            unchanged.
        TypeError, ValueError: a value that is no array or holds objects, or facts that JSON cannot
            hold. The message names it.
    """
    text = jsonable.dumps(facts, "facts").encode()
    ours: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        arguments.array(name, value)
        ours[name] = to_numpy(value)
        if ours[name].dtype.hasobject:
            raise ValueError(f"{name} is an array of objects, which a checkpoint cannot hold; give an array of numbers")
    try:
        _check_ours(path)
        with files.replacing(path, commit=commit) as file:
            _write(file, ours, text)
    except OSError as error:
        raise OSError(error.errno, f"checkpoint not written ({error.strerror}); what was saved before is untouched",
                      str(path)) from error


def load(path: str | Path) -> tuple[dict[str, np.ndarray], Any]:
    """(arrays, facts) as `save` wrote them.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device.
        ValueError: the file is not a checkpoint, or it was changed after it was written.
    """
    with files.reading(path) as stream:
        try:
            parts = _read(stream)
            facts = jsonable.loads(parts.pop(FACTS))
            return {name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
                    for name, data in parts.items()}, facts
        except Exception as error:  # damaged bytes make zipfile raise a dozen types
            stream.seek(0)
            advice = "delete it to start again, or use another" if _begins_as_ours(stream) else "give another file"
            raise ValueError(f"{path} is not a whole minibn checkpoint ({type(error).__name__}: {error}); {advice}") from error


def save_run(path: str | Path, model: nn.Module, optimizers: Mapping[str, Optimizer], generator: Any, history: History,
             run: Any, *, commit: bool = True) -> None:
    """Write a training run to `path`.

    Args:
        model, optimizers, history: as in `training.fit`.
        generator: the state of the random generator from which to resume.
        run: anything JSON can hold; `load_run` needs the same.
        commit: as in `save`.

    Raises:
        OSError: as in `save`.
        ValueError: the name of a group begins with that of another and a slash.
    """
    for group, other in permutations(optimizers, 2):
        if other.startswith(f"{group}/"):
            raise ValueError(f"a checkpoint cannot tell the optimisers {group!r} and {other!r} apart; rename one")
    arrays = {f"model/{name}": value for name, value in model.state_dict().items()}
    arrays |= {f"history/{name}": np.asarray(history[name]) for name in history.columns}
    numbers: dict[str, dict[str, Any]] = {}
    for group, optimizer in optimizers.items():
        state = optimizer.state_dict()
        numbers[group] = {key: value for key, value in state.items() if isinstance(value, Real)}
        arrays |= {f"optimizer/{group}/{key}": value for key, value in state.items() if key not in numbers[group]}
    last = {group: asdict(optimizer.last) for group, optimizer in optimizers.items() if optimizer.last is not None}
    facts = {"optimizers": numbers, "last": last, "generator": generator, "columns": list(history.columns), "run": run}
    save(path, arrays, facts, commit=commit)


def load_run(path: str | Path, model: nn.Module, optimizers: Mapping[str, Optimizer], rng: Generator, run: Any) -> History:
    """Bring `model`, `optimizers` and `rng` to the state that `save_run` wrote, and return its History.

    Nothing is changed before all that must be the same has been compared: `run`, the kind of `rng`,
    the groups, every dtype and shape, and the schedules as far as they were followed. What the file
    of an earlier version does not say of `run` is not compared.

    Raises:
        ValueError: the file is damaged, or of another run. The message names what differs.
    """
    arrays, facts = load(path)
    try:
        history = History({name: arrays[f"history/{name}"].tolist() for name in facts["columns"]})
        old = {**facts["run"], "rng": facts["generator"]["bit_generator"], "groups": list(facts["optimizers"])}
        kinds = {name: (str(array.dtype), array.shape) for name, array in arrays.items() if name.startswith("model/")}
        steps = {group: arguments.whole("steps", numbers["steps"], 0) for group, numbers in facts["optimizers"].items()}
        last, rates = dict(facts["last"]), {group: history[f"lr/{group}"].tolist() for group in steps if len(history)}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is a checkpoint, but not one of this version's training.fit; give another file") from error
    new = {name: value for name, value in run.items() if name in facts["run"]}
    new |= {"rng": type(rng.bit_generator).__name__, "groups": list(optimizers)}
    new = jsonable.loads(jsonable.dumps(new))
    now = {f"model/{name}": (str(array.dtype), array.shape) for name, array in _in_numpy(model.state_dict())}
    other_data = [fingerprint.other_data(old.pop(name, None), new.pop(name, None), *words)
                  for name, words in (("data", ("data", "trained on")), ("validation_data", ("validation data", "evaluated on")))]
    network = [differences(old.pop(name, None), new.pop(name, None), name) for name in ("model", "parameters")]
    _refuse(path, chain(differences(old, new), differences(kinds, now), *other_data, *network))
    for group, optimizer in optimizers.items():
        drawn = list(islice(optimizer.schedule, steps[group]))
        _refuse(path, _other_steps(group, rates.get(group, []), last.get(group),
                                    list(optimizer.as_taken(drawn))))
        rest, optimizer.schedule = optimizer.schedule, iter(drawn)
        with _fitting(path):
            optimizer.load_state_dict(facts["optimizers"][group] | _below(f"optimizer/{group}/", arrays))
        optimizer.schedule = rest
    with _fitting(path):
        model.load_state_dict(_below("model/", arrays))
        rng.bit_generator.state = facts["generator"]
    return history


@contextmanager
def _fitting(path):
    """Let the error of a part that cannot be loaded name the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} does not fit: {what}. Go on with the same run, or give another file") from error


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """"NAME was OLD, now NEW" for each part in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key, "absent"), new.get(key, "absent"), f"{name}.{key}" if name else key)
    elif old != new and repr(old) != repr(new):  # NaN is not equal to itself
        one, other = (arguments.short(value) if isinstance(value, (dict, list)) else repr(value) for value in (old, new))
        yield f"{name or 'it'} was {one}, now {other}"


def _other_steps(group, rates, last, drawn):
    """`differences` of a schedule from the one that was followed: its lr at every step, and all of its last step."""
    for t, (rate, step) in enumerate(zip(rates, drawn, strict=False)):
        if not _close(rate, step.lr):
            yield f"lr of {group!r} at step {t} was {rate!r}, now {step.lr!r}"
            return
    if last and drawn:
        for name, value in jsonable.plain(asdict(drawn[-1])).items():
            if not _close(last.get(name), value):
                yield f"{name} of {group!r} at step {len(drawn) - 1} was {last.get(name, 'absent')!r}, now {value!r}"


def _close(one, other):
    """Whether two values are equal, but for the rounding of another machine."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _refuse(path, different):
    if found := list(different):
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(f"{path} is of another run: {'; '.join(found[:3])}{more}. Go on with the same, or give another file")


def _in_numpy(state):
    return ((name, to_numpy(value)) for name, value in state.items())


def _below(prefix, arrays):
    """{rest of the name: array} of the arrays whose names begin with `prefix`."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


class _Part:
    """A part of the archive that is being written, and the checksum of its bytes."""

    def __init__(self, file):
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data):
        self.sum.update(data)
        return self.file.write(data)


@contextmanager
def _part(archive, name, sums):
    entry = zipfile.ZipInfo(name)
    if entry.filename != name or name in sums or "\n" in name:
        raise ValueError(f"a checkpoint cannot hold the name {name!r}; give another")
    with archive.open(entry, "w", force_zip64=True) as file:
        part = _Part(file)
        yield part
    sums[name] = part.sum.hexdigest()


def _write(file: BinaryIO, arrays: Mapping[str, np.ndarray], facts: bytes) -> None:
    sums: dict[str, str] = {}
    with zipfile.ZipFile(file, "w") as archive:
        with _part(archive, FACTS, sums) as part:
            part.write(facts)
        for name, array in arrays.items():
            with _part(archive, f"{name}.npy", sums) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)
        archive.writestr(zipfile.ZipInfo(SUMS), _listed(sums))


def _read(file: BinaryIO) -> dict[str, bytes]:
    """{name: bytes} of all parts but the checksums, which must be right."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(max(entry.file_size, entry.compress_size) for entry in entries) > os.fstat(file.fileno()).st_size:
            raise ValueError("its parts are longer than the file")
        parts = {entry.filename: archive.read(entry) for entry in entries}
    sums = parts.pop(SUMS, None)
    if sums is None:
        raise ValueError("it has no checksums; a file of an earlier version, or of another program")
    if sums != _listed({name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}):
        raise ValueError("a checksum differs")
    return parts


def _listed(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()


def _check_ours(path):
    """Raise FileExistsError if there is a file at `path` that `save` did not begin."""
    place = files.target(path)
    if place.exists():
        ours = False
        if place.is_file():
            with open(place, "rb") as file:
                ours = _begins_as_ours(file)
        if not ours:
            raise FileExistsError(errno.EEXIST, "the file that is there is not a minibn checkpoint; give another name", str(path))


def _begins_as_ours(file):
    """Whether `save` may have begun this file. An empty one is such a file."""
    head = file.read(30 + len(FACTS))
    return not head or (head[:4] == b"PK\3\4" and head[30:] == FACTS.encode())
