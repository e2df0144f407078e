"""AdamW, Lion and Muon are the published methods: PyTorch's step by step, or the formula itself; and all resume alike."""

import math
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import backend, nn, optim
from minibn.optim import AdamStep, AdamW, Lion, LionStep, Muon, MuonStep
from minibn.optim import muon as muon_file

seeds = st.integers(0, 2**32 - 1)


def random_adam_steps(rng, length):
    return [AdamStep(10 ** rng.uniform(-4, -1), rng.uniform(0, 0.95), rng.uniform(0.5, 0.999), 10 ** rng.uniform(-12, -2),
                     10 ** rng.uniform(-4, 0)) for _ in range(length)]


def path(optimizer, gradients):
    """The weights after each step."""
    (parameter,) = optimizer.parameters
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
        yield parameter.data


def torch_path(torch, make, options, w, gradients):
    """The same for an optimizer of torch whose param group is set to `options[t]` before step t."""
    weight = torch.tensor(w, requires_grad=True)
    optimizer = make([weight])
    for numbers, gradient in zip(options, gradients, strict=True):
        optimizer.param_groups[0].update(numbers)
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        yield weight.detach().numpy().copy()


def assert_same_paths(ours, theirs):
    for t, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * np.abs(y).max(), err_msg=f"step {t}")


@settings(max_examples=10)
@given(seeds, st.booleans())
def test_adamw_is_torchs_at_every_step(seed, foreach):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    w, gradients, steps = rng.standard_normal(5), rng.standard_normal((60, 5)), random_adam_steps(rng, 60)
    options = [{"lr": s.lr, "betas": (s.beta1, s.beta2), "eps": s.eps, "weight_decay": s.weight_decay} for s in steps]
    assert_same_paths(path(AdamW([nn.Parameter(w)], steps), gradients),
                      torch_path(torch, lambda p: torch.optim.AdamW(p, foreach=foreach), options, w, gradients))


@settings(max_examples=10)
@given(seeds)
def test_lion_is_the_published_formula(seed):
    """Chen et al. (2023), Algorithm 2, entry by entry."""
    rng = np.random.default_rng(seed)
    w, gradients = rng.standard_normal(4), rng.standard_normal((40, 4))
    steps = [LionStep(10 ** rng.uniform(-4, -1), *rng.uniform(0, 0.99, 2), rng.uniform(0, 1)) for _ in range(40)]

    def published():
        theta, m = list(w), [0.0] * 4
        for s, g in zip(steps, gradients, strict=True):
            for i in range(4):
                c = s.beta1 * m[i] + (1 - s.beta1) * g[i]
                theta[i] -= s.lr * (math.copysign(1, c) + s.weight_decay * theta[i])
                m[i] = s.beta2 * m[i] + (1 - s.beta2) * g[i]
            yield np.array(theta)

    assert_same_paths(path(Lion([nn.Parameter(w)], steps), gradients), published())


def by_singular_values(u):
    """Newton-Schulz on the singular values alone: X = U diag(s) Vᵀ stays in its singular vectors."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / max(np.linalg.norm(u), 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (left * s) @ right


@settings(max_examples=10)
@given(seeds, st.sampled_from([(4, 4), (3, 7), (7, 3), (1, 5)]))
def test_muon_is_torchs_at_every_step(seed, shape):
    """In float64; torch orthogonalises in bfloat16, so that part of it is replaced by the formula on singular values."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torch.optim._muon")
    rng = np.random.default_rng(seed)
    w, gradients = rng.standard_normal(shape), rng.standard_normal((20, *shape))
    steps = [MuonStep(10 ** rng.uniform(-3, -1), rng.uniform(0, 0.98), rng.uniform(0, 1)) for _ in range(20)]
    options = [{"lr": s.lr, "momentum": s.momentum, "weight_decay": s.weight_decay} for s in steps]
    transposed = np.swapaxes(gradients, 1, 2).copy()  # torch's weights are (out, in)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "_zeropower_via_newtonschulz", lambda g, *_: torch.tensor(by_singular_values(g.numpy())))
        assert_same_paths(path(Muon([nn.Parameter(w)], steps), gradients),
                          (x.T for x in torch_path(torch, torch.optim.Muon, options, w.T.copy(), transposed)))


def test_muon_is_torchs_own_to_bfloat16():
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch without Muon")
    rng = np.random.default_rng(0)
    w, gradients = rng.standard_normal((6, 9)), rng.standard_normal((5, 6, 9))
    ours = list(path(Muon([nn.Parameter(w)], repeat(MuonStep(0.1, 0.9, 0.1))), gradients))
    numbers = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    theirs = list(torch_path(torch, torch.optim.Muon, [numbers] * 5, w.T.copy(), np.swapaxes(gradients, 1, 2).copy()))
    assert 1e-6 < np.abs(ours[-1] - theirs[-1].T).max() < 2e-2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthogonal_brings_singular_values_to_about_1(dtype):
    u = np.random.default_rng(0).standard_normal((40, 50)).astype(dtype)
    found = muon_file.orthogonal(u)
    assert found.dtype == dtype
    values = np.linalg.svd(found, compute_uv=False)
    assert 0.65 < values.min() < values.max() < 1.25
    np.testing.assert_allclose(found, by_singular_values(u.astype("float64")), atol=1e-5 if dtype == "float32" else 1e-13)
    np.testing.assert_array_equal(muon_file.orthogonal(0 * u), 0 * u)


def test_a_convolution_is_a_matrix_to_muon():
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((2, 3, 3, 2, 5))
    conv, _ = muon_file.update(MuonStep(0.1, 0.9, 0.1), w, 0 * w, g)
    matrix, _ = muon_file.update(MuonStep(0.1, 0.9, 0.1), w.reshape(18, 5), np.zeros((18, 5)), g.reshape(18, 5))
    np.testing.assert_array_equal(conv, matrix.reshape(w.shape))


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match=r"parameter 1 is Parameter\(shape=\(3,\).* Give biases, gains .*to an AdamW"):
        Muon([nn.Parameter(np.ones((2, 3))), nn.Parameter(np.ones(3))], [])


KINDS = {"sgd": (optim.SGD, optim.Step(0.1, 0.9, shrink=0.01, lookahead=0.5)), "adamw": (AdamW, AdamStep(0.1, weight_decay=0.1)),
         "lion": (Lion, LionStep(0.1, weight_decay=0.1)), "muon": (Muon, MuonStep(0.1, weight_decay=0.1))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimiser_runs_on_every_library(library, kind):
    make, step = KINDS[kind]
    rng = np.random.default_rng(0)
    w, gradients = rng.standard_normal((3, 4)), rng.standard_normal((5, 3, 4))
    here = list(path(make([nn.Parameter(w)], repeat(step)), gradients))
    for dtype in ("float64", "float32"):
        there = make([nn.Parameter(library.array(w.astype(dtype)))], repeat(step))
        for x, y in zip(here, path(there, [library.array(g.astype(dtype)) for g in gradients]), strict=True):
            assert library.is_home_of(y)
            assert backend.dtype_name(y) == dtype
            np.testing.assert_allclose(backend.to_numpy(y), x, rtol=0, atol=1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 3])
def test_every_optimiser_goes_on_from_its_state_bit_for_bit(kind, stop):
    make, step = KINDS[kind]
    gradients = np.random.default_rng(0).standard_normal((6, 3, 4))
    whole, first = (make([nn.Parameter(np.ones((3, 4)))], repeat(step, 6)) for _ in range(2))
    *_, end = path(whole, gradients)
    list(path(first, gradients[:stop]))
    second = make([nn.Parameter(first.parameters[0].data)], repeat(step, 6))
    second.load_state_dict(first.state_dict())
    *_, continued = path(second, gradients[stop:])
    np.testing.assert_array_equal(continued, end)
    assert second.steps == 6
    state = second.state_dict()
    assert set(state) == {"steps"} | {f"{entry}/0" for entry in make.entries}
    assert all(state[name] is not array for name, array in second.arrays().items())


@pytest.mark.parametrize(("make", "name"), [
    (lambda: AdamStep(-1.0), "lr"), (lambda: AdamStep(0.1, 1.0), "beta1"), (lambda: AdamStep(0.1, beta2=-0.1), "beta2"),
    (lambda: AdamStep(0.1, eps=math.nan), "eps"), (lambda: AdamStep(0.1, weight_decay=math.inf), "weight_decay"),
    (lambda: LionStep(0.1, beta2=1.0), "beta2"), (lambda: MuonStep(0.1, momentum=1.0), "momentum")])
def test_numbers_out_of_range_name_their_field(make, name):
    with pytest.raises(ValueError, match=f"Step needs 0 <= {name} < .*; got {name}="):
        make()


def test_numbers_of_numpy_do_not_change_the_dtype_of_weights():
    for make, step in KINDS.values():
        numbers = {name: np.float64(getattr(step, name)) for name in step.limits}
        same = type(step)(**numbers)
        assert same == step
        assert {type(getattr(same, name)) for name in same.limits} == {float}
        w = nn.Parameter(np.ones((2, 2), "float32"))
        make([w], [same]).step()
        assert w.data.dtype == "float32"


def test_steps_of_another_optimiser_are_refused():
    with pytest.raises(TypeError, match="AdamW needs a schedule of AdamStep; step 0 is LionStep"):
        AdamW([nn.Parameter(np.ones(2))], [LionStep(0.1)]).step()


def test_lion_does_not_move_a_weight_without_a_gradient():
    """The sign of 0 is 0."""
    parameter = nn.Parameter(np.array([1.0, -2.0]))
    Lion([parameter], [LionStep(0.1)]).step()
    np.testing.assert_array_equal(parameter.data, [1.0, -2.0])
