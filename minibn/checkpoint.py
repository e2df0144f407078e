"""Checkpoints: a training run on disk, whole or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minibn.backend import Array, to_numpy


def save(path: str | Path, arrays: Mapping[str, Array], facts: Any) -> None:
    """Write `arrays` {name: array} and `facts` (anything JSON can hold) to `path`, atomically.

    They go to a temporary file beside it, which is flushed to the disk and then renamed: at every moment `path` holds
    either the old checkpoint or the new one, also when the disk is full or the process is killed.

    Raises:
        OSError: the file cannot be written; what was at `path` is still there.
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
        ValueError: the file is not a checkpoint, or is truncated or changed (each part of it carries a checksum).
    """
    with open(path, "rb") as stream:
        try:
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return arrays, json.loads(arrays.pop("facts.json").tobytes())
        except Exception as error:  # damaged bytes make zipfile and NumPy raise a dozen types
            raise ValueError(f"{path} is not a whole minibn checkpoint ({type(error).__name__}: {error}); delete it to start "
                             "anew, or use another") from error


def _sync_folder(folder):
    """Make the rename itself durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
