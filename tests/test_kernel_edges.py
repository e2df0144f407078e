"""Kernels at their edges: the dtype of what they return, how large a chunk is, how many cores there are."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, assert_equal, cases

from minibn import kernels
from minibn.kernels import cpu, device, reference

module = importlib.import_module("minibn.kernels.threads")  # the package has a function of this name

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [reference, cpu, device])


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5)
@given(data=st.data())
def test_every_kernel_keeps_the_dtype_of_its_arrays(name, implementation, data):
    """float32 stays float32; `norm` alone is float64, as it says."""
    def single(argument):
        if isinstance(argument, list):
            return [single(one) for one in argument]
        return np.asarray(argument, "float32") if getattr(argument, "dtype", None) == np.float64 else argument

    def dtypes(result):
        return set().union(*map(dtypes, result)) if isinstance(result, list | tuple) else {np.asarray(result).dtype.name}

    arguments = [single(argument) for argument in data.draw(cases(name))]
    assert dtypes(getattr(implementation, name)(*arguments)) == {"float64" if name == "norm" else "float32"}


@IMPLEMENTATIONS
def test_a_gradient_at_the_kink_of_relu_is_zero(implementation):
    np.testing.assert_array_equal(implementation.relu_backward(np.ones(3), np.array([-1.0, 0.0, 2.0])), [0, 0, 1])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=3)
@given(data=st.data())
def test_the_reference_computes_where_its_arrays_are(name, data):
    """In a library that knows the standard alone, on its second device: nothing is made on the first, or by NumPy."""
    xp = pytest.importorskip("array_api_strict", reason="the standard's own library: pip install -e '.[test]'")
    there, arguments = xp.Device("device1"), data.draw(cases(name))

    def moved(argument):
        if isinstance(argument, list):
            return [moved(one) for one in argument]
        return xp.asarray(argument, device=there) if isinstance(argument, np.ndarray) else argument

    def places(result):
        return set().union(*map(places, result)) if isinstance(result, list | tuple) else {(type(result), result.device)}

    def back(result):
        if isinstance(result, list | tuple):
            return list(map(back, result))
        return np.asarray(result.to_device(xp.Device("CPU_DEVICE")))

    found = getattr(reference, name)(*map(moved, arguments))
    assert places(found) == {(type(xp.zeros(1)), there)}
    assert_equal(back(found), getattr(reference, name)(*arguments))


@pytest.mark.parametrize(("name", "arguments"), [
    ("embed", (np.zeros(2, int), np.ones((3, 2)))), ("embed_backward", (np.ones((2, 2)), np.zeros(2, int), 3)),
    ("cross_entropy", (np.ones((2, 3)), np.zeros(2, int)))])
@pytest.mark.parametrize("place", [0, 1])
def test_arrays_of_two_libraries_are_refused(name, arguments, place):
    xp = pytest.importorskip("array_api_strict", reason="the standard's own library: pip install -e '.[test]'")
    mixed = [xp.asarray(x) if i == place else x for i, x in enumerate(arguments)]
    with pytest.raises(TypeError, match="Multiple namespaces"):
        getattr(reference, name)(*mixed)


def test_the_norm_of_nothing_is_0():
    assert kernels.norm([]) == reference.norm([]) == 0.0


@IMPLEMENTATIONS
@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_is_none_gives_no_number(implementation, label):
    """The loss is NaN, and of its gradient the row with that label alone."""
    loss, gradient = implementation.cross_entropy(np.ones((2, 3)), np.array([0, label]))
    assert np.isnan(loss)
    np.testing.assert_allclose(gradient[0], [-1 / 3, 1 / 6, 1 / 6])
    assert np.isnan(gradient[1]).all()


@IMPLEMENTATIONS
def test_a_sign_that_is_none_gives_no_number(implementation):
    with np.errstate(invalid="ignore"):
        loss, gradient = implementation.logistic(np.ones(3), np.array([1.0, 0.0, -1.0]))
    assert np.isnan(loss)
    assert np.isnan(gradient).tolist() == [False, True, False]


# ---- how much of an array a chunk is ----


def zeros(*shape):
    return np.zeros(shape)


IMAGES, WINDOWS = zeros(5, 7, 8, 3), zeros(3, 2, 3, 4)  # kernels of 3 x 2 pixels, 3 -> 4 channels
PIXELS = zeros(6, 4, 4, 2), zeros(6, 2, 2, 2)
BLOCK, BLOCKS = zeros(1, 96, 2, 4), zeros(5, 6, 2, 4)  # rows are joined by 32 and by 2, to at most 512 numbers
QUERY, KEY = zeros(6, 5, 4, 2), zeros(6, 5, 2, 2)
SMALL, LARGE = 2**20, 2**21
# kernel: its arguments, and for each pass over an array (items, bytes of one item, bytes of a chunk)
PASSES = {
    "correlate": ((IMAGES, WINDOWS, None, (1, 1), (0, 0)), [(5, 7 * 7 * 2 * 3 * 8, LARGE)]),  # H · width · kw · C
    "correlate, stride": ((IMAGES, WINDOWS, None, (1, 2), (0, 1)), [(5, 7 * 5 * 2 * 3 * 8, LARGE)]),
    "correlate_backward": ((zeros(5, 5, 7, 4), IMAGES, WINDOWS, (1, 1), (0, 0)), [(5, 7 * 8 * 2 * 4 * 8, LARGE)]),
    "correlate_backward, stride": ((zeros(5, 3, 7, 4), IMAGES, WINDOWS, (2, 1), (0, 0)), [(5, 3 * 7 * 3 * 2 * 3 * 8, LARGE)]),
    "correlate_backward, stride beyond the kernel":
        ((zeros(5, 4, 4, 4), IMAGES, zeros(1, 1, 3, 4), (2, 2), (0, 0)), [(5, 7 * 8 * 3 * 8, LARGE)]),  # the images themselves
    "moments": ((BLOCK,), [(3, 32 * 8 * 8, LARGE)]),
    "moments of blocks": ((BLOCKS,), [(5, 6 * 8 * 8, LARGE)]),
    "moments far from 0": ((BLOCK + 1,), 2 * [(3, 32 * 8 * 8, LARGE)]),  # σ = 0: once more, about the mean
    "normalise": ((BLOCKS, zeros(5, 1, 2, 1), zeros(5, 1, 2, 1), None, None), [(5, 6 * 8 * 8, LARGE)]),
    "normalise_backward": ((BLOCK, BLOCK, zeros(1, 1, 2, 1), zeros(1, 1, 2, 1), None, False), 2 * [(3, 32 * 8 * 8, LARGE)]),
    "relu": ((zeros(6, 5, 4),), [(6, 5 * 4 * 8, SMALL)]),
    "relu of nothing": ((zeros(0, 3),), [(0, 0, SMALL)]),
    "relu of float32": ((np.zeros((6, 5), "float32"),), [(6, 5 * 4, SMALL)]),
    "average_pool": ((PIXELS[0], 2), [(6, 4 * 4 * 2 * 8, SMALL)]),
    "average_pool_backward": ((PIXELS[1], (6, 4, 4, 2), 2), [(6, 4 * 4 * 2 * 8, SMALL)]),
    "max_pool": ((PIXELS[0], 2), [(6, 4 * 4 * 2 * 8, SMALL)]),
    "max_pool_backward": ((PIXELS[1], *PIXELS, 2), [(6, 4 * 4 * 2 * 8, SMALL)]),
    "gelu": ((zeros(6, 5),), [(6, 5 * 8, SMALL)]),
    "causal_attention": ((QUERY, KEY, KEY), [(6, 5 * 5 * 4 * 8, SMALL)]),  # the scores: T · T · H
    "causal_attention, wide": ((zeros(6, 2, 1, 9), zeros(6, 2, 1, 9), zeros(6, 2, 1, 9)), [(6, 2 * 9 * 8, SMALL)]),
    "causal_attention_backward": ((QUERY, QUERY, KEY, KEY, zeros(6, 2, 2, 5, 5)), [(6, 2 * 2 * 5 * 5 * 8, SMALL)]),
    "rotate": ((QUERY, 10.0), [(6, 5 * 4 * 2 * 8, SMALL)]),
    "rms_normalise_backward": ((zeros(6, 5), zeros(6, 5), zeros(6, 1), None), [(6, 5 * 8, SMALL)]),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_chunk_is_as_large_as_is_said(name, monkeypatch):
    """Chunks too large miss the cache, and chunks too small cost calls: no result shows it."""
    arguments, expected = PASSES[name]
    passes = []
    for part in (cpu.convolution, cpu.elementwise, cpu.normalisation, cpu.sequences):
        def recorded(function, *sizes, original=part.map_chunks):
            passes.append(sizes)
            return original(function, *sizes)

        monkeypatch.setattr(part, "map_chunks", recorded)
    getattr(cpu, name.split(",")[0].split(" ")[0])(*arguments)
    assert passes == expected


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 1), (2**20, 1), (2**20 + 1, 4), (4 * 2**20, 4), (4 * 2**20 + 1, 8)])
def test_chunks_come_in_fours_and_hold_a_mebibyte(size, count):
    """So that 2 or 4 threads finish together."""
    assert len(module.map_chunks(lambda s: s, 100, size / 100)) == count


# ---- how many cores ----


@pytest.mark.parametrize(("affinity", "quotas", "found"), [(8, [], 8), (8, [3, 5], 3), (2, [3], 2), (1, [], 1), (4, [0], 1)])
def test_cores_are_those_of_the_affinity_and_of_every_quota(affinity, quotas, found, monkeypatch):
    asked = []
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    monkeypatch.setattr(module, "_quotas", lambda *paths: asked.append([str(path) for path in paths]) or quotas)
    assert module.cores() == found
    assert asked == [["/sys/fs/cgroup", "/proc/self/cgroup"]]


@pytest.mark.parametrize(("count", "found"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_cores_are_those_of_the_machine(count, found, monkeypatch):
    monkeypatch.delattr(module.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: count)
    monkeypatch.setattr(module, "_quotas", lambda *paths: [])
    assert module.cores() == found


# ---- what the first and the last block of threads do to the process ----


class Recorded:
    """In place of threadpoolctl's limits, and of glibc."""

    def __init__(self, log, **options):
        self.log = log
        log.append(options)

    def restore_original_limits(self):
        self.log.append("restored")

    def malloc_trim(self, pad):
        self.log.append(("trimmed", pad))

    def mallopt(self, option, value):
        self.log.append((option, value))


def test_the_first_block_limits_blas_and_the_last_one_lifts_the_limit(monkeypatch):
    log = []
    monkeypatch.setattr(module, "threadpool_limits", lambda **options: Recorded(log, **options))
    monkeypatch.setattr(module, "_libc", lambda: None)
    monkeypatch.setattr(module, "_let_this_thread_limit_blas", lambda: log.append("again"))
    with module.threads(1):
        with module.threads(2):
            assert log == ["again", {"limits": 1, "user_api": "blas"}]
        assert len(log) == 2
    assert log[2:] == ["again", "restored"]
    with module.threads(1):
        assert log[4:] == ["again", {"limits": 1, "user_api": "blas"}]
    assert log[6:] == ["again", "restored"]


@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "1"}])
def test_glibc_keeps_freed_memory_until_the_last_block_ends(variables, monkeypatch):
    """mallopt(M_MMAP_THRESHOLD = -3, 32 MiB) and mallopt(M_TRIM_THRESHOLD = -1, 2 GiB), unless the user has set it otherwise."""
    log = []
    for name in [name for name in module.os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    module._libc.cache_clear()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: Recorded(log, library=name))
    monkeypatch.setattr(module, "threadpool_limits", lambda **options: Recorded([]))
    monkeypatch.setattr(module, "_let_this_thread_limit_blas", lambda: None)
    try:
        with module.threads(1):
            assert log == [{"library": None}, *([] if variables else [(-3, 2**25), (-1, 2**31 - 1)])]
        assert log[-1] == ({"library": None} if variables else ("trimmed", 0))
    finally:
        module._libc.cache_clear()


@pytest.mark.parametrize("lacks", ["malloc_trim", "CDLL"])
def test_another_c_library_is_left_alone(lacks, monkeypatch):
    def load(_):
        if lacks == "CDLL":
            raise OSError("no such library")
        return object()

    module._libc.cache_clear()
    monkeypatch.setattr(module.ctypes, "CDLL", load)
    try:
        assert module._libc() is None
    finally:
        module._libc.cache_clear()


def test_a_thread_may_limit_blas_though_another_did_before(monkeypatch):
    cleared = []

    class Controller:
        clear_controlling_thread = staticmethod(lambda force: cleared.append(force))

    monkeypatch.setattr(module.threadpoolctl, "OpenBLASController", Controller, raising=False)
    module._let_this_thread_limit_blas()
    assert cleared == [True]
    monkeypatch.setattr(module.threadpoolctl, "OpenBLASController", object)
    module._let_this_thread_limit_blas()
    monkeypatch.delattr(module.threadpoolctl, "OpenBLASController")
    module._let_this_thread_limit_blas()


def test_a_block_without_a_count_is_the_surrounding_one_or_has_all_cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 3)
    with module.threads():
        assert module._workers.get()[1] == 3
    with module.threads(2):
        outer = module._workers.get()
        with module.threads():
            assert module._workers.get() is outer
        with module.threads(1):
            assert module._workers.get()[1] == 1
        assert module._workers.get() is outer
    assert module._workers.get() is None


def test_a_forked_child_has_no_pool_and_a_lock_that_is_free(monkeypatch):
    held = module.threading.Lock()
    held.acquire()
    monkeypatch.setattr(module._BLAS, "lock", held)
    token = module._workers.set(("pool", 2))
    try:
        module._in_child()
        assert module._workers.get() is None
    finally:
        module._workers.reset(token)
    assert module._BLAS.lock.acquire(blocking=False)
