"""The progress bar of training and of sweeps."""

import sys
import threading

from tqdm import tqdm


class _Bar(tqdm):
    """tqdm's bar without its lock between processes, a semaphore that a killed process would leave behind."""


_Bar.set_lock(threading.RLock())


def bar(total: int, done: int, description: str, shown: bool) -> tqdm:
    """A bar of `total` parts, of which `done` are done, with the latest numbers next to it.

    It is drawn in terminals and notebooks only, never into a file or a pipe. The numbers come right
    after the count, so that the first ones fit into 80 columns.

    Args:
        total, done: whole numbers.
        description: text before the bar.
        shown: False draws no bar.
    """
    format_ = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return _Bar(total=total, initial=done, desc=description, bar_format=format_, dynamic_ncols=True,
                disable=not (shown and (sys.stderr.isatty() or _in_notebook())))


def _in_notebook():
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
