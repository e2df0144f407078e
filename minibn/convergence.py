"""Convergence at a fixed rate lives in `minibn.paper.section4`; this is its earlier import path."""

from minibn.paper.section4 import Convergence, fixed_rate

__all__ = ["Convergence", "fixed_rate"]
