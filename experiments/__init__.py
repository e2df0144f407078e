"""Experiments that take hours; what they measured is in docs/."""
