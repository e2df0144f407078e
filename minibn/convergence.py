"""Convergence at a fixed rate lives in `minibn.paper.section4`; this is its earlier import path."""

from minibn.paper.section4 import Convergence, bound, fixed_rate

__all__ = ["Convergence", "bound", "fixed_rate"]
