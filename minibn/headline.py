"""The headline experiment lives in `minibn.paper.headline`; this is its earlier import path."""

from minibn.paper.headline import EXPONENTIAL, TOLERANCE, USUAL, run, settings, table

__all__ = ["EXPONENTIAL", "TOLERANCE", "USUAL", "run", "settings", "table"]
