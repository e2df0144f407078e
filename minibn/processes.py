"""Worker processes for runs beside each other. They end when the process that started them ends, even if it is killed."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import wait

__all__ = ["end_with_parent", "pool"]


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """An executor with this many processes of its own; they are killed if the block raises.

    Each process is a new Python, which imports what it needs. So it must be possible to import a
    function by its name, and to pickle its arguments and its result.
    """
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent) as executor:
        try:
            yield executor
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.kill()  # or this would wait until its run is done
            raise


@cache
def end_with_parent() -> None:
    """Let this process end when the process that started it ends, even if that one is killed.

    As `initializer=` of a `ProcessPoolExecutor` it also ends workers that have had nothing to do
    yet. In processes that `multiprocessing` did not start, it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end():
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=end, daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=end_with_parent.cache_clear)  # threads are not in the child
