"""Checkpoint files live in `minibn.training.checkpoint`; this is their earlier import path."""

from minibn.training.checkpoint import load, save

__all__ = ["load", "save"]
