"""Checkpoints: a training run on disk, either whole or not at all.

`save` and `load` write and read the file: named arrays, and facts that JSON can hold. `save_run` and
`load_run` lay out a training run in it:

    model/NAME              the model's state_dict
    optimizer/GROUP/NAME    the arrays of the group's optimiser, such as velocity/0
    history/COLUMN          the measurements so far
    facts                   the other numbers of each optimiser, state of the random generator, columns, settings
"""

import json
import os
import tempfile
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from minibn import nn
from minibn.backend import Array, to_numpy
from minibn.optim import Optimizer
from minibn.training.history import History


def save(path: str | Path, arrays: Mapping[str, Array], facts: Any) -> None:
    """Write `arrays` {name: array} and `facts` (anything JSON can hold) to `path`, atomically.

    They go to a temporary file beside it, which is flushed to the disk and then renamed. At every
    moment `path` holds either the old checkpoint or the new one, even when the disk is full or the
    process is killed.

    Raises:
        OSError: the file cannot be written. An earlier checkpoint at `path` is still there.
    """
    path = Path(path)
    parts: dict[str, Any] = {name: to_numpy(value) for name, value in arrays.items()}
    parts["facts.json"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"checkpoint not written ({error.strerror}); what was saved before is untouched",
                      str(path)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_folder(path.parent)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], Any]:
    """(arrays, facts) as `save` wrote them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, or is truncated or changed (each part of it carries
            a checksum).
    """
    with open(path, "rb") as stream:
        try:
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return arrays, json.loads(arrays.pop("facts.json").tobytes())
        except Exception as error:  # damaged bytes make zipfile and NumPy raise a dozen types
            raise ValueError(f"{path} is not a whole minibn checkpoint ({type(error).__name__}: {error}); delete it to start "
                             "again, or use another") from error


def save_run(path: str | Path, model: nn.Module, optimizers: Mapping[str, Optimizer], generator: Any, history: History,
             settings: Any) -> None:
    """Write a training run to `path`.

    Args:
        model, optimizers, history: as in `training.fit`.
        generator: the state of the random generator from which to resume.
        settings: anything JSON can hold; `load_run` needs the same.

    Raises:
        OSError: as in `save`.
    """
    arrays = {f"model/{name}": value for name, value in model.state_dict().items()}
    arrays |= {f"history/{name}": history[name] for name in history.columns}
    numbers: dict[str, dict[str, Any]] = {}
    for group, optimizer in optimizers.items():
        state = optimizer.state_dict()
        numbers[group] = {key: value for key, value in state.items() if isinstance(value, Real)}
        arrays |= {f"optimizer/{group}/{key}": value for key, value in state.items() if key not in numbers[group]}
    facts = {"optimizers": numbers, "generator": generator, "columns": list(history.columns), "settings": settings}
    save(path, arrays, facts)


def load_run(path: str | Path, model: nn.Module, optimizers: Mapping[str, Optimizer], rng: Generator, settings: Any) -> History:
    """Bring `model`, `optimizers` and `rng` to the state that `save_run` wrote, and return its History.

    Raises:
        ValueError: the file is damaged, or was written with other settings, groups or shapes.
    """
    arrays, facts = load(path)
    if not isinstance(facts, dict) or not facts.keys() >= {"optimizers", "generator", "columns", "settings"}:
        raise ValueError(f"{path} is a checkpoint, but not one of this version's training.fit; give another file")
    if facts["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{path} was written with other settings, {facts['settings']}; now they are {settings}. Go on with the "
                         "same, or give another file")
    if facts["optimizers"].keys() != optimizers.keys():
        raise ValueError(f"{path} has the groups {list(facts['optimizers'])}, not {list(optimizers)}")
    model.load_state_dict(_below("model/", arrays))
    for group, optimizer in optimizers.items():
        optimizer.load_state_dict(facts["optimizers"][group] | _below(f"optimizer/{group}/", arrays))
    rng.bit_generator.state = facts["generator"]
    return History({name: arrays[f"history/{name}"].tolist() for name in facts["columns"]})


def _below(prefix, arrays):
    """{rest of the name: array} of the arrays whose names begin with `prefix`."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _sync_folder(folder):
    """Make the rename itself durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
