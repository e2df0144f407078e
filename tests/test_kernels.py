"""Every kernel computes what `kernels.reference` says: for NumPy in many chunks, and on every other library."""

import inspect
import sys

import numpy as np
import pytest
from conftest import many_chunks
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import backend, kernels, nn
from minibn.kernels import cpu, device, reference
from minibn.testing import distinct

seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 4)


# ---- one case per kernel: its arguments, arrays of NumPy among them ----


def images(draw, rng, least=1):
    """(N, H, W, C), any two numbers far apart."""
    shape = draw(st.integers(1, 9)), draw(st.integers(least, 7)), draw(st.integers(least, 7)), draw(sizes)
    return distinct(rng, shape)


def convolution(draw, rng):
    """dy, x, W, b, stride, padding."""
    kernel, stride = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))  # also more than the kernel's size
    x = images(draw, rng, 3)
    w = rng.standard_normal((*kernel, x.shape[3], draw(sizes)))
    b = rng.standard_normal(w.shape[3]) if draw(st.booleans()) else None
    dy = rng.standard_normal((len(x), *reference.output_size(x, w, stride, padding), w.shape[3]))
    return dy, x, w, b, stride, padding


def sets(draw, rng):
    """dy, x (B, R, G, S) with means far from 0, μ, 1/σ, γ, β. No σ is far below 1: errors grow with 1/σ."""
    shape = draw(st.sampled_from([1, 2, 5])), draw(st.integers(2, 60)), draw(sizes), draw(sizes)
    dy, x = rng.standard_normal((2, *shape))
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) + 3 * rng.standard_normal((1, 1, *shape[2:]))
    mean, var = reference.moments(x)
    affine = rng.standard_normal((2, *shape[2:])) if draw(st.booleans()) else (None, None)
    return dy, x, mean, reference.inverse_std(mean, var, draw(st.sampled_from([0.0, 0.1]))), *affine


def pooling(draw, rng):
    """dy, x, y, k."""
    k = draw(st.integers(1, 3))
    x = images(draw, rng, k)
    y = reference.max_pool(x, k)
    return rng.standard_normal(y.shape), x, y, k


def affine(draw, rng):
    n, inside, outside = draw(st.integers(1, 9)), draw(sizes), draw(sizes)
    return tuple(rng.standard_normal(shape) for shape in ((n, outside), (n, inside), (inside, outside), (outside,)))


def rows(draw, rng):
    """dy, x (N, …, C), g, ε: a row of zeros among them."""
    shape = (draw(st.integers(1, 9)), *draw(st.sampled_from([(), (3,), (2, 3)])), draw(sizes))
    dy, x = rng.standard_normal((2, *shape))
    x[0] *= draw(st.sampled_from([0.0, 1.0]))
    gain = rng.standard_normal(shape[-1]) if draw(st.booleans()) else None
    return dy, x, gain, draw(st.sampled_from([0.0, 0.1]))


def heads(draw, rng):
    """dy, q (N, T, H, D), k, v (N, T, G, D)."""
    groups, shared = draw(sizes), draw(st.integers(1, 3))
    n, length, size = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(sizes)
    dy, q = rng.standard_normal((2, n, length, groups * shared, size))
    return dy, q, *rng.standard_normal((2, n, length, groups, size))


def lookup(draw, rng):
    """dy (…, C), indices (…), W (V, C); some indices below 0 or above V - 1."""
    shape = draw(st.sampled_from([(7,), (4, 3), (2, 3, 2)]))
    vocabulary, size = draw(sizes), draw(sizes)
    indices = rng.integers(0, vocabulary, shape) + draw(st.sampled_from([0, 0, -1, 1]))
    return rng.standard_normal((*shape, size)), indices, rng.standard_normal((vocabulary, size))


def turns(draw, rng):
    return rng.standard_normal((draw(sizes), draw(sizes), draw(sizes), 2 * draw(sizes))), draw(st.sampled_from([10.0, 10000.0]))


def entries(count):
    return lambda draw, rng: tuple(3 * rng.standard_normal((count, 7, 3, 2, 2)))


def some_arrays(draw, rng, of=None):
    """A list of arrays of several shapes, 0-d among them; or `of` such lists."""
    shapes = draw(st.lists(st.sampled_from([(), (5,), (2, 3), (1, 4, 2)]), min_size=1, max_size=12))
    lists = [[rng.standard_normal(shape) for shape in shapes] for _ in range(of or 1)]
    return lists if of else lists[0]


CASES = {
    "affine": lambda draw, rng: affine(draw, rng)[1:],
    "affine_backward": lambda draw, rng: affine(draw, rng)[:3],
    "sum_rows": lambda draw, rng: (images(draw, rng),),
    "correlate": lambda draw, rng: convolution(draw, rng)[1:],
    "correlate_backward": lambda draw, rng: (lambda dy, x, w, b, *rest: (dy, x, w, *rest))(*convolution(draw, rng)),
    "moments": lambda draw, rng: sets(draw, rng)[1:2],
    "inverse_std": lambda draw, rng: (rng.standard_normal((2, 1, 3, 1)), rng.choice([0.0, 1e-40, 2.0], (2, 1, 3, 1)),
                                      draw(st.sampled_from([0.0, 1e-5]))),
    "normalise": lambda draw, rng: sets(draw, rng)[1:],
    "normalise_backward": lambda draw, rng: (*sets(draw, rng)[:5], draw(st.booleans())),
    "relu": lambda draw, rng: (images(draw, rng),),
    "relu_backward": lambda draw, rng: tuple(rng.standard_normal((2, 7, 3, 2, 2))),
    "add": lambda draw, rng: tuple(rng.standard_normal((2, 7, 3, 2, 2))),
    "global_average_pool": lambda draw, rng: (images(draw, rng),),
    "global_average_pool_backward": lambda draw, rng: (rng.standard_normal((5, 3)), (5, draw(sizes), draw(sizes), 3)),
    "average_pool": lambda draw, rng: pooling(draw, rng)[1::2],
    "average_pool_backward": lambda draw, rng: (lambda dy, x, y, k: (dy, x.shape, k))(*pooling(draw, rng)),
    "max_pool": lambda draw, rng: pooling(draw, rng)[1::2],
    "max_pool_backward": pooling,
    "cross_entropy": lambda draw, rng: (3 * rng.standard_normal((9, 4)), rng.integers(4, size=9)),
    "logistic": lambda draw, rng: (3 * rng.standard_normal(9), rng.choice([-1.0, 1.0], 9)),
    "embed": lambda draw, rng: lookup(draw, rng)[1:],
    "embed_backward": lambda draw, rng: (lambda dy, indices, table: (dy, indices, len(table)))(*lookup(draw, rng)),
    "rms_normalise": lambda draw, rng: rows(draw, rng)[1:],
    "rms_normalise_backward": lambda draw, rng: (lambda dy, x, g, eps: (dy, x, reference.rms_normalise(x, g, eps)[1], g))(
        *rows(draw, rng)),
    "causal_attention": lambda draw, rng: heads(draw, rng)[1:],
    "causal_attention_backward": lambda draw, rng: (lambda dy, *qkv: (dy, *qkv, reference.causal_attention(*qkv)[1]))(
        *heads(draw, rng)),
    "rotate": turns,
    "rotate_backward": turns,
    "gelu": entries(1),
    "gelu_backward": entries(2),
    "silu": entries(1),
    "silu_backward": entries(2),
    "swiglu": entries(2),
    "swiglu_backward": entries(3),
    "square": entries(1),
    "square_backward": entries(2),
    "norm": lambda draw, rng: (some_arrays(draw, rng),),
    "joined": lambda draw, rng: (some_arrays(draw, rng),),
    "zeros_like": lambda draw, rng: (some_arrays(draw, rng),),
    "each": lambda draw, rng: (lambda w, v, g: (w - 0.1 * (0.9 * v + g), 0.9 * v + g), *some_arrays(draw, rng, of=3)),
}
cases = st.composite(lambda draw, name: CASES[name](draw, np.random.default_rng(draw(seeds))))


def flat(result):
    """The arrays of a result, which may be lists of lists, as NumPy."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in flat(part)]
    return [backend.to_numpy(result)]


def call(implementation, name, arguments):
    """The kernel's arrays; of `joined`, which may be few or many, all numbers."""
    arrays = flat(getattr(implementation, name)(*arguments))
    return [np.concatenate([array.ravel() for array in arrays])] if name == "joined" else arrays


def assert_equal(ours, theirs, tolerance=1e-12):
    ours, theirs = flat(ours), flat(theirs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))


def test_there_is_a_case_for_every_kernel():
    assert CASES.keys() == set(cpu.__all__) == set(device.__all__)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", [cpu, device])
def test_implementations_have_the_reference_s_signatures(implementation, name):
    def parameters(module):
        return list(inspect.signature(getattr(module, name)).parameters)

    assert parameters(implementation) == parameters(reference)


@pytest.mark.parametrize("name", CASES)
@given(st.data(), st.sampled_from([1, 400, 2**20]))
def test_numpy_in_chunks_is_the_reference(name, data, chunk_bytes):
    arguments = data.draw(cases(name))
    with many_chunks(chunk_bytes):
        assert_equal(call(cpu, name, arguments), call(reference, name, arguments))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10)
@given(data=st.data())
def test_other_libraries_are_the_reference(library, name, data):
    arguments = data.draw(cases(name))

    def there(argument):
        if isinstance(argument, list):
            return [there(one) for one in argument]
        return library.array(argument) if isinstance(argument, np.ndarray) else argument

    def at_home(result):
        return all(map(at_home, result)) if isinstance(result, tuple | list) else library.is_home_of(result)

    moved = [there(argument) for argument in arguments]
    assert at_home(getattr(device, name)(*moved))
    assert_equal(call(device, name, moved), call(reference, name, arguments))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["correlate", "correlate_backward", "moments", "normalise", "normalise_backward", "relu",
                                  "rms_normalise_backward", "causal_attention_backward"])
@settings(max_examples=15)
@given(data=st.data())
def test_the_number_of_threads_changes_no_bit(name, dtype, data):
    arguments = [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in data.draw(cases(name))]
    results = []
    for count in (1, 2, 3):
        with many_chunks(), kernels.threads(count):
            results.append(flat(getattr(cpu, name)(*arguments)))
    for one, two, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_chunks_of_a_real_size_give_what_whole_arrays_give():
    """A layer as it is in training: 64 images, chunks of the size that is used, forward and backward."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 16, 16, 16)), rng.standard_normal((3, 3, 16, 16))
    y = reference.correlate(x, w, None, (1, 1), (1, 1))
    assert y.nbytes * 3 > 2 * cpu.convolution.BYTES
    assert_equal(cpu.correlate(x, w, None, (1, 1), (1, 1)), y)
    assert_equal(cpu.correlate_backward(y, x, w, (1, 1), (1, 1)), reference.correlate_backward(y, x, w, (1, 1), (1, 1)), 1e-11)
    z = np.tile(x, (4, 1, 1, 1)).reshape(1, -1, 16, 1)
    assert z.nbytes > 2 * cpu.normalisation.BYTES
    assert_equal(cpu.moments(z), reference.moments(z))


# ---- numbers that float32 makes hard ----


@pytest.mark.parametrize("implementation", [reference, cpu, device])
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e5])
def test_moments_are_accurate_where_the_mean_is_large(implementation, ratio):
    """By E x² - μ², σ² would have no correct digit in float32 from |μ| / σ = 3e3 on."""
    x = (ratio + np.random.default_rng(0).standard_normal((1, 4000, 2, 1))).astype("float32")
    exact = x.astype("float64")
    mean, var = implementation.moments(x)
    np.testing.assert_allclose(mean, exact.mean(axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var(axis=1, keepdims=True), rtol=1e-3)
    naive = np.mean(x * x, axis=1, dtype="float32") - np.mean(x, axis=1, dtype="float32") ** 2
    assert ratio < 1e4 or np.abs(naive / exact.var(axis=1) - 1).max() > 0.1


@pytest.mark.parametrize("implementation", [reference, cpu, device])
def test_moments_are_accurate_where_the_first_rows_are_far_from_the_others(implementation):
    """A first mean of the first rows alone is then as wrong as it can be, √15 standard deviations."""
    x = np.random.default_rng(0).standard_normal((1, 4000, 2, 1)).astype("float32")
    x[:, :250] += 1e4
    exact = x.astype("float64")
    mean, var = implementation.moments(x)
    np.testing.assert_allclose(mean, exact.mean(axis=1, keepdims=True), atol=1e-5 * exact.std())
    np.testing.assert_allclose(var, exact.var(axis=1, keepdims=True), rtol=5e-5)


def test_an_infinite_or_missing_number_gives_no_warning_and_no_finite_moments():
    for value in (np.inf, np.nan):
        x = np.zeros((1, 320, 2, 1), "float32")
        x[0, -1, 0] = value
        mean, var = cpu.moments(x)
        assert not np.isfinite([mean[0, 0, 0, 0], var[0, 0, 0, 0]]).any()
        assert mean[0, 0, 1, 0] == var[0, 0, 1, 0] == 0


@pytest.mark.parametrize("first_mean", [1.0, 1 + 1e-4])
def test_the_second_pass_corrects_an_inexact_first_mean(first_mean, monkeypatch):
    """The corrected two-pass algorithm does not need an exact m."""
    add_rows = cpu.normalisation.add_rows
    x = 1000 + np.random.default_rng(0).standard_normal((1, 4000, 2, 1))
    calls = []

    def inexact(part):
        calls.append(part)
        return add_rows(part) * (first_mean if len(calls) == 1 else 1.0)

    monkeypatch.setattr(cpu.normalisation, "add_rows", inexact)
    mean, var = cpu.moments(x)
    np.testing.assert_allclose(mean, x.mean(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(var, x.var(axis=1, keepdims=True), rtol=1e-10)


@pytest.mark.parametrize("implementation", [reference, cpu, device])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_set_is_constant_below_four_ulps_of_its_mean_and_not_above(implementation, dtype):
    ulp = np.finfo(dtype).eps
    mean = np.full((1, 1, 3, 1), -8.0, dtype)
    std = np.array([2, 3.9, 6], dtype).reshape(mean.shape) * ulp * 8
    inverse = implementation.inverse_std(mean, std * std, 0.0)[0, 0, :, 0]
    np.testing.assert_array_equal(inverse[:2], 0)
    np.testing.assert_allclose(inverse[2], 1 / std[0, 0, 2, 0], rtol=1e-5)
    np.testing.assert_allclose(implementation.inverse_std(mean, std * std, 1.0), 1, rtol=1e-5)  # ε is above the rounding


@pytest.mark.parametrize("value", [1e20, 1e27, 1e30, -1e35])
def test_a_constant_channel_is_constant_however_large(value):
    layer = nn.BatchNorm(2, eps=0.0)
    y = layer(np.full((9, 5, 5, 2), value, "float32"))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(layer.backward(np.ones_like(y)), 0)


def test_a_spread_beyond_float_range_is_nan_and_not_silently_zero():
    x = np.random.default_rng(0).standard_normal((9, 5, 5, 2)).astype("float32")
    assert np.isfinite(nn.BatchNorm(2)(x * np.float32(1e18))).all()
    assert np.isnan(nn.BatchNorm(2)(x * np.float32(1e30))).all()


def test_losses_do_not_mind_numpy_s_floating_point_errors():
    with np.errstate(all="raise"):
        assert nn.CrossEntropy()(np.array([[0.0, -800.0]]), np.array([0])) == 0
        assert nn.Logistic()(np.array([800.0]), np.array([1])) == 0


# ---- plain(): the reference, one call away ----


def test_plain_uses_the_reference_and_ends_with_its_block():
    x = np.ones((1, 2))
    assert kernels.of(x) is cpu
    with kernels.plain():
        assert kernels.of(x) is reference
        assert kernels.is_plain()
    assert kernels.of(x) is cpu


def test_an_environment_variable_makes_a_process_plain(monkeypatch):
    import subprocess

    code = "import minibn; print(minibn.kernels.is_plain())"
    for value, expected in {"1": "True", "0": "False", "": "False"}.items():
        monkeypatch.setenv("MINIBN_PLAIN", value)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == expected


def test_a_debugger_is_two_calls_from_the_equation():
    """From a breakpoint in `Conv2d.backward` to the line `dx[pixels] += dy @ w[u, v, ...].T`."""
    conv = nn.Conv2d(2, 3, 3, padding=1, rng=np.random.default_rng(0), dtype="float64")
    lines, first = inspect.getsourcelines(reference.correlate_backward)
    target = first + next(i for i, line in enumerate(lines) if "dx[pixels] += dy @ w[u, v, ...].T" in line)
    depths = []

    def trace(frame, event, argument):
        if event == "line" and frame.f_lineno == target and frame.f_code.co_filename == reference.convolution.__file__:
            depth, caller = 0, frame
            while caller.f_code is not nn.Conv2d.backward.__code__:
                depth, caller = depth + 1, caller.f_back
            depths.append(depth)
        return trace

    with kernels.plain():
        y = conv(np.ones((1, 4, 4, 2)))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            conv.backward(y)
        finally:
            sys.settrace(before)
    assert len(depths) == 9  # once per tap
    assert max(depths) <= 2


def test_an_array_changed_between_forward_and_backward_is_noticed_in_plain():
    for layer in (nn.ReLU(), nn.MaxPool2d(1), nn.BatchNorm(2), nn.Conv2d(2, 2, 1, rng=np.random.default_rng(0))):
        x = np.random.default_rng(0).standard_normal((3, 2, 2, 2)).astype("float32")
        with kernels.plain():
            y = layer(x)
            layer.backward(np.ones_like(y))
            y = layer(x)
            (y if isinstance(layer, nn.ReLU) else x)[0, 0, 0, 0] = 7
            with pytest.raises(RuntimeError, match="changed in place"):
                layer.backward(np.ones_like(y))


def test_torch_tensors_that_require_grad_are_detached():
    """Otherwise PyTorch would track one graph over all steps."""
    torch = pytest.importorskip("torch")
    net = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)), nn.BatchNorm(3)).to("torch")
    net.load_state_dict({name: torch.nn.Parameter(value) for name, value in net.state_dict().items()})
    y = net(torch.ones(2, 4, requires_grad=True, device=next(net.arrays()).device) * torch.arange(4.0))
    dx = net.backward(y)
    assert not any(array.requires_grad for array in (*net.arrays(), y, dx))
    assert backend.to_numpy(torch.ones(2, requires_grad=True)).sum() == 2


def test_correlation_with_more_padding_than_a_kernel_reaches():
    """The outermost outputs see zeros alone, so they have no part in the gradients."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 4, 6, 2)), rng.standard_normal((2, 3, 2, 3))
    dy = rng.standard_normal(reference.correlate(x, w, None, (1, 1), (3, 4)).shape)
    with many_chunks():
        found = cpu.correlate_backward(dy, x, w, (1, 1), (3, 4))
    for ours, plain in zip(found, reference.correlate_backward(dy, x, w, (1, 1), (3, 4)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-12)
