"""The toy problem lives in `minibn.paper.section3`; this is its earlier import path."""

from minibn.paper.section3 import Toy, error, first_passage, gradient, simulate, window

__all__ = ["Toy", "error", "first_passage", "gradient", "simulate", "window"]
