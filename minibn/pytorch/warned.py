"""Warnings that point at a line of the script."""

import sys
import warnings
from pathlib import Path

import torch

INSIDE = tuple(str(Path(file).parent / "_")[:-1] for file in (__file__, torch.__file__))  # the folders, with a slash at the end


def warn(message: str) -> None:
    """`warnings.warn`, at the last line that is neither torch's nor of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
