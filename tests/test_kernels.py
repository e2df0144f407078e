"""Every kernel computes what `kernels.reference` says: for NumPy in many chunks, and on every other library."""

import inspect

import numpy as np
import pytest
from conftest import many_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, assert_equal, cases, flat

from minibn import backend, kernels, nn
from minibn.kernels import cpu, device, reference


def call(implementation, name, arguments):
    """The kernel's arrays; of `joined`, which may be few or many, all numbers."""
    arrays = flat(getattr(implementation, name)(*arguments))
    return [np.concatenate([array.ravel() for array in arrays])] if name == "joined" else arrays


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


@pytest.mark.parametrize("kernel", [(2, 3), (1, 1), (3, 1)])
def test_correlation_with_more_padding_than_a_kernel_reaches(kernel):
    """The outermost outputs see zeros alone, so they have no part in the gradients."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 4, 6, 2)), rng.standard_normal((*kernel, 2, 3))
    dy = rng.standard_normal(reference.correlate(x, w, None, (1, 1), (3, 4)).shape)
    with many_chunks():
        found = cpu.correlate_backward(dy, x, w, (1, 1), (3, 4))
    for ours, plain in zip(found, reference.correlate_backward(dy, x, w, (1, 1), (3, 4)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_correlation_of_images_that_are_not_contiguous(stride):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 3, 4, 6)).transpose(0, 2, 3, 1), rng.standard_normal((3, 3, 3, 2))
    y = reference.correlate(x, w, None, stride, (1, 1))
    dy = rng.standard_normal(y.shape[::-1]).T
    assert_equal(cpu.correlate(x, w, None, stride, (1, 1)), y)
    assert_equal(cpu.correlate_backward(dy, x, w, stride, (1, 1)), reference.correlate_backward(dy, x, w, stride, (1, 1)))


def test_torch_tensors_that_require_grad_are_detached():
    """Otherwise PyTorch would track one graph over all steps."""
    torch = pytest.importorskip("torch")
    net = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)), nn.BatchNorm(3)).to("torch")
    net.load_state_dict({name: torch.nn.Parameter(value) for name, value in net.state_dict().items()})
    y = net(torch.ones(2, 4, requires_grad=True, device=next(net.arrays()).device) * torch.arange(4.0))
    dx = net.backward(y)
    assert not any(array.requires_grad for array in (*net.arrays(), y, dx))
    assert backend.to_numpy(torch.ones(2, requires_grad=True)).sum() == 2
