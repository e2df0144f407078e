"""`History` lives in `minibn.training.history`; this is its earlier import path."""

from minibn.training.history import History

__all__ = ["History"]
