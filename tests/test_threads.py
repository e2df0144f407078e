"""Threads: chunks run in the pool of their own block, and errors and forks end well."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runs import Run

from minibn import backend


def test_a_block_of_threads_is_of_its_own_thread():
    """As on a Dask worker with several threads: where one run ends, it does not take the pool of another with it."""
    x = np.zeros((8, 2**18), dtype=np.float32)  # 8 chunks
    both = threading.Barrier(2, timeout=60)

    def where(_):
        return threading.get_ident()

    def meet(_):
        both.wait()  # until a second thread is at work too
        return threading.get_ident()

    with backend.threads(2), ThreadPoolExecutor(1) as other:
        assert len(set(backend.map_chunks(meet, x, x.shape[1]))) == 2
        own = other.submit(threading.get_ident).result()
        assert set(other.submit(backend.map_chunks, where, x, x.shape[1]).result()) == {own}
        run = Run()
        other.submit(run.fit, epochs=1, threads=1).result()
        assert len(set(backend.map_chunks(meet, x, x.shape[1]))) == 2
    assert set(backend.map_chunks(where, x, x.shape[1])) == {threading.get_ident()}


def test_an_error_in_a_chunk_is_raised_and_stops_the_rest():
    x = np.zeros((64, 2**18), dtype=np.float32)  # 64 chunks

    def fail(s):
        done.append(s.start)
        if s.start == 3:
            raise ValueError("chunk 3")

    for threads in (1, 2):
        done = []
        with backend.threads(threads), pytest.raises(ValueError, match="chunk 3"):
            backend.map_chunks(fail, x, x.shape[1])
        assert len(done) < 64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not():
    code = """
import os, signal, warnings
import numpy as np
from minibn import backend
warnings.simplefilter("ignore")
x = np.zeros((8, 2**18), dtype=np.float32)
with backend.threads(2):
    backend.map_chunks(lambda s: None, x, x.shape[1])
    child = os.fork()
    if not child:
        signal.alarm(30)
        backend.map_chunks(lambda s: None, x, x.shape[1])
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
