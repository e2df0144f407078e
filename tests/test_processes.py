"""Worker processes."""

import multiprocessing
import time
from concurrent.futures import BrokenExecutor

import pytest

from minibn import processes


def test_a_block_that_raises_kills_the_workers_of_its_pool_and_no_other_process():
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    other.start()
    runs = []

    def block():
        with processes.pool(1) as pool:
            runs.append(pool.submit(time.sleep, 30))
            while not runs[0].running():
                time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert isinstance(runs[0].exception(), BrokenExecutor)  # where the block had waited, there would be a result
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()


def test_a_block_that_ends_waits_for_what_it_asked_for():
    with processes.pool(1) as pool:
        future = pool.submit(abs, -3)
    assert future.result() == 3
    assert multiprocessing.active_children() == []
