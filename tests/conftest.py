"""Settings for all tests, and the array libraries that they run on.

Hypothesis has no time limits, since a slow machine is not a failure. GPU tests run where there is a
GPU.
"""

import os  # noqa: I001  threads are set before NumPy is imported

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread for each library in each of them
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import signal
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from cupy_double import in_place_of_cupy
from hypothesis import HealthCheck, Phase, settings

from minibn import backend, kernels
from minibn.kernels.cpu import convolution, elementwise, normalisation, sequences

# `nohup`, and shells in the background, have signals ignored: the tests that send some expect what a terminal gives
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# the fixture `library` stays the same from example to example
settings.register_profile("minibn", deadline=None, max_examples=30,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("quick", parent=settings.get_profile("minibn"), max_examples=6, database=None,  # for mutation testing
                          phases=[Phase.explicit, Phase.generate])  # a failure is enough: no search for the smallest
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "minibn"))

OLDEST = "2023.12"  # of the standard's versions, that will do: see `minibn.backend`


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is no such hook
def pytest_xdist_make_scheduler(config, log):
    """With `-n auto`, each process begins with its own part of the tests, in order, and takes some of another's when it is done.

    By default they take turns, and what the tests of a file share (the site, a trained network) is made once in each of them.
    """
    if config.getoption("dist") == "load":
        from xdist.scheduler import WorkStealingScheduling

        return WorkStealingScheduling(config, log)
    return None


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu():
    """None if CuPy works as `minibn` needs it (allocates, compiles, multiplies), else what stands in the way."""
    try:
        backend.library("cupy")
    except backend.BackendError as error:
        return f"needs CuPy and a GPU: {error}"
    return None


class Library(NamedTuple):
    """An array library, by the name it has in `backend.library`, and the device that tests use."""

    name: str
    xp: Any
    device: Any

    def array(self, x):
        """A NumPy array, moved there."""
        return backend.convert(x, self.xp, device=self.device)

    def is_home_of(self, x):
        """Whether array `x` is there."""
        like = self.xp.zeros(1, device=self.device)
        return backend.array_namespace(x) is self.xp and backend.device(x) == backend.device(like)


@contextmanager
def many_chunks(size=256):
    """NumPy's kernels cut arrays into chunks of at most `size` bytes, so that small arrays have many, on two threads.

    Their new memory holds NaN, so that a number which nobody wrote shows.
    """
    with ExitStack() as changed:
        for module in (convolution, elementwise, normalisation, sequences):
            changed.enter_context(patch.object(module, "BYTES", size))
        for module in (convolution, elementwise, normalisation):
            changed.enter_context(patch.object(module, "empty", _full_of_nan))
        with kernels.threads(2):
            yield


def _full_of_nan(shape, like):
    return np.full(shape, np.nan if like.dtype.kind == "f" else -1, like.dtype)


@pytest.fixture(params=["plain", "many chunks"])
def arithmetic(request):
    """The reference, and the chunked kernels as they are for large arrays."""
    with kernels.plain() if request.param == "plain" else many_chunks():
        yield request.param


STRICT = ["strict-oldest", "strict-newest"]
OTHERS = [*STRICT, "torch", "cupy-double", pytest.param("torch-gpu", marks=pytest.mark.gpu),
          pytest.param("cupy", marks=pytest.mark.gpu)]


@pytest.fixture(params=["numpy", *OTHERS])
def library(request):
    """Each `Library` in turn: array-api-strict in the oldest version of the standard that will do
    and in the newest, without what
    would make a GPU wait (shapes that depend on data); `cupy_double`, the strict stand-in for
    CuPy."""
    if request.param == "cupy-double":
        with in_place_of_cupy():
            yield Library("cupy", *backend.library("cupy"))
        return
    if request.param not in STRICT:
        name = request.param.removesuffix("-gpu")
        pytest.importorskip(name)
        xp, device = backend.library(name)
        if request.param == "torch-gpu" and device == "cpu":
            pytest.skip("needs a GPU that PyTorch can use")
        yield Library(name, xp, "cpu" if request.param == "torch" else device)
        return
    strict = pytest.importorskip("array_api_strict")
    version = OLDEST if request.param == "strict-oldest" else strict.get_array_api_strict_flags()["api_version"]
    with strict.ArrayAPIStrictFlags(api_version=version, boolean_indexing=False, data_dependent_shapes=False):
        yield Library("array_api_strict", *backend.library("array_api_strict"))


@pytest.fixture(params=["torch", "cupy-double", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend_name(request):
    """Each library that a command can name, NumPy apart; "cupy" both of the stand-in and of a GPU."""
    if request.param == "cupy-double":
        with in_place_of_cupy():
            yield "cupy"
        return
    pytest.importorskip(request.param)
    yield request.param


@pytest.fixture
def far(monkeypatch):
    """NumPy arrays taken for those of a GPU; returns a list of how many rows of the history were fetched at a time."""
    def read(numbers):
        if len(numbers) > 2:  # those of the labels and of an evaluation are two
            fetched.append(sum(isinstance(n, int) for n in numbers))  # the number of the step
        return original(numbers)

    monkeypatch.setattr(backend, "is_on_host", lambda x: False)
    fetched, original = [], backend.read
    monkeypatch.setattr(backend, "read", read)
    return fetched


def others(test):
    """For tests that compare with NumPy: `library` is every one but that."""
    return pytest.mark.parametrize("library", OTHERS, indirect=True)(test)
