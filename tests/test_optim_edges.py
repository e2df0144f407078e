"""Optimisers at their edges: formulas without another library, what is not computed, where arrays are, what is drawn."""

import inspect
import math
from dataclasses import astuple, replace
from itertools import count, islice, repeat

import numpy as np
import pytest
from test_optimizers import KINDS, assert_same_paths, by_singular_values, path, random_adam_steps

from minibn import backend, nn
from minibn.equivalence import (
    Reframed,
    adam_exponential,
    adam_without_decay,
    add_weight_decay,
    any_optimizer,
    converted_for,
    decayed,
    exponential_equivalent,
    frame_after,
    lion_without_decay,
    remove_weight_decay,
    scale_after,
    state_transport,
    streams,
    undecayed,
)
from minibn.invariance import Probe, probe
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Step, sgd
from minibn.optim import muon as muon_file

# ---- the published formulas, in NumPy ----


def test_adamw_is_the_published_formula():
    """Loshchilov & Hutter (2019), Algorithm 2, entry by entry."""
    rng = np.random.default_rng(0)
    w, gradients, steps = rng.standard_normal(4), rng.standard_normal((30, 4)), random_adam_steps(rng, 30)

    def published():
        theta, m, v = list(w), [0.0] * 4, [0.0] * 4
        for q, (s, g) in enumerate(zip(steps, gradients, strict=True), 1):
            for i in range(4):
                m[i] += (1 - s.beta1) * (g[i] - m[i])
                v[i] += (1 - s.beta2) * (g[i] ** 2 - v[i])
                update = m[i] / (1 - s.beta1**q) / (math.sqrt(v[i] / (1 - s.beta2**q)) + s.eps)
                theta[i] -= s.lr * (update + s.weight_decay * theta[i])
            yield np.array(theta)

    assert_same_paths(path(AdamW([nn.Parameter(w)], steps), gradients), published())


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (3, 2, 2, 30)])
def test_muon_is_the_published_formula(shape):
    """Jordan et al. (2024), by singular values, with √max(1, out/in); a kernel is a matrix (kh·kw·in, out)."""
    rng = np.random.default_rng(0)
    w, gradients = rng.standard_normal(shape), rng.standard_normal((6, *shape))
    steps = [MuonStep(10 ** rng.uniform(-3, -1), rng.uniform(0, 0.98), rng.uniform(0, 1)) for _ in range(6)]

    def published():
        theta, v = w.reshape(-1, shape[-1]), 0.0
        scale = max(1.0, shape[-1] / len(theta)) ** 0.5
        for s, g in zip(steps, gradients.reshape(6, *theta.shape), strict=True):
            v = s.momentum * v + (1 - s.momentum) * g
            u = by_singular_values(s.momentum * v + (1 - s.momentum) * g)
            theta = theta - s.lr * (scale * u + s.weight_decay * theta)
            yield theta.reshape(shape)

    assert_same_paths(path(Muon([nn.Parameter(w)], steps), gradients), published())


def test_a_matrix_below_eps_is_divided_by_eps():
    u = np.random.default_rng(0).standard_normal((3, 4)) * 1e-10
    np.testing.assert_allclose(muon_file.orthogonal(u), by_singular_values(u), rtol=1e-12)
    assert np.abs(muon_file.orthogonal(u)).max() < 0.9 * np.abs(muon_file.orthogonal(1e6 * u)).max()
    np.testing.assert_allclose(muon_file.orthogonal(u, iterations=1, eps=1.0), muon_file.A * u, rtol=1e-12)


# ---- what is not computed ----


class Counted(np.ndarray):
    """An array that counts the operations that are made with it."""

    operations = 0

    def __array_ufunc__(self, function, method, *inputs, **options):
        Counted.operations += 1
        found = getattr(function, method)(*(np.asarray(x) if isinstance(x, Counted) else x for x in inputs), **options)
        return np.asarray(found).view(Counted)


@pytest.mark.parametrize(("numbers", "more"), [
    ({}, 0), ({"rescale": 2.0}, 3), ({"kick": 0.5}, 2), ({"weight_decay": 0.1}, 2), ({"lookahead": 0.5}, 2),
    ({"shrink": 0.1}, 1)])
def test_sgd_computes_only_what_its_step_needs(numbers, more):
    """γ v + g and w - η v: four operations; each number that is not 0 (of `rescale`: 1) has its own besides."""
    w, v, g = np.ones((3, 2)).view(Counted)
    Counted.operations = 0
    SGD([nn.Parameter(np.ones(2))], []).update(Step(0.1, 0.9, **numbers), w, g, v)
    assert Counted.operations == 4 + more


@pytest.mark.parametrize("numbers", [(0.0,) * 5, (1e300,) * 4 + (0.0,), (0.1, 0.9, 5e-4, -0.999, 0.999)])
def test_the_fast_way_to_a_step_checks_nothing_twice(numbers, monkeypatch):
    """Floats within the limits, at their ends too, do not go through the checks of `Step`."""
    lr, momentum, decay, lookahead, shrink = numbers
    expected = Step(lr, momentum, decay, lookahead=lookahead, shrink=shrink)
    monkeypatch.setattr(Step, "__post_init__", lambda self: pytest.fail("checked"))
    assert sgd.step_of(lr, momentum, decay, 1.0, lookahead, shrink) == expected


def test_what_is_elementwise_is_updated_as_one_list_and_muon_is_not():
    assert [make.elementwise for make, _ in KINDS.values()] == [True, True, True, False]


# ---- state ----


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_set_to_zero(kind):
    make, step = KINDS[kind]
    weights = [nn.Parameter(np.ones((2, 3), dtype)) for dtype in ("float32", "float64")]
    optimizer = make(weights, [step])
    for w in weights:
        w.grad = np.full((2, 3), 7.0, w.data.dtype)
    optimizer.zero_grad()
    for w in weights:
        np.testing.assert_array_equal(w.grad, np.zeros((2, 3)))
        assert w.grad.dtype == w.data.dtype
    assert weights[0].grad is not weights[1].grad


@pytest.fixture
def elsewhere():
    """NumPy's arrays moved to a second library, on its second device."""
    xp = pytest.importorskip("array_api_strict", reason="the standard's own library: pip install -e '.[test]'")
    return lambda x: xp.asarray(x, device=xp.Device("device1"))


def test_a_state_that_was_left_in_another_library_is_noticed(elsewhere):
    weights = [nn.Parameter(np.ones(2)) for _ in range(2)]
    adam = AdamW(weights, [])
    assert adam.is_where_its_parameters_are()
    weights[1].data = elsewhere(weights[1].data)
    assert not adam.is_where_its_parameters_are()
    assert not undecayed(adam).is_where_its_parameters_are()
    adam.mean[1] = elsewhere(np.zeros(2))
    assert not adam.is_where_its_parameters_are()
    adam.square[1] = elsewhere(np.zeros(2))
    assert adam.is_where_its_parameters_are()
    assert undecayed(adam).is_where_its_parameters_are()


def test_a_state_is_loaded_from_arrays_of_another_library_and_dtype(elsewhere):
    """They become arrays of the parameters' library and dtype, and copies."""
    state = {"steps": np.int64(2), "velocity": [elsewhere(np.full(2, 5.0))]}
    one = SGD([nn.Parameter(np.ones(2, "float32"))], repeat(Step(0.1)))
    one.load_state_dict(state)
    assert (type(one.velocity[0]), one.velocity[0].dtype, one.steps) == (np.ndarray, np.float32, 2)
    saved = one.state_dict()
    assert saved.keys() == {"steps", "velocity/0"}
    saved["velocity/0"][:] = 0
    np.testing.assert_array_equal(one.velocity[0], [5, 5])


def test_a_loaded_state_draws_the_steps_that_it_has_taken_and_no_more():
    drawn = []
    endless = (drawn.append(t) or Step(0.1) for t in count())
    one = SGD([nn.Parameter(np.ones(2))], endless)
    one.load_state_dict({"steps": 3, "velocity/0": np.zeros(2)})
    assert drawn == [0, 1, 2]
    assert one.as_taken([1, 2]) == [1, 2]


# ---- converted optimisers ----


def test_the_scale_after_some_steps_reads_no_others():
    drawn = []
    endless = (drawn.append(t) or LionStep(0.5, weight_decay=0.5) for t in count())
    assert scale_after(endless, 2) == 0.75**2
    assert drawn == [0, 1]
    assert scale_after([], 0) == 1.0


@pytest.mark.parametrize("convert", [undecayed, lambda optimizer, **band: decayed(optimizer, 0.25, **band)])
def test_steps_are_numbered_in_errors_from_where_training_stands(convert):
    schedule = [LionStep(0.1), LionStep(0.1), LionStep(1.0, weight_decay=1.0)]
    run = convert(Lion([nn.Parameter(np.ones(2))], schedule))
    run.step(), run.step()
    with pytest.raises(ValueError, match="^step 2 cannot"):
        run.step()
    with pytest.raises(ValueError, match="^step 2 cannot"):
        list(run.as_taken(schedule))


def test_a_converted_optimiser_is_where_the_given_one_stood():
    given = Lion([nn.Parameter(np.ones(2))], repeat(LionStep(0.1, weight_decay=0.5)))
    given.step()
    run = undecayed(given)
    assert (run.steps, run.last, run.scale, run.band) == (1, None, 1.0, 2.0**32)
    assert run.parameters is given.parameters
    step = run.step()
    assert (run.steps, given.steps, run.last) == (2, 2, step)
    run.schedule = iter([LionStep(0.25)])
    assert run.schedule is given.schedule
    assert run.step().lr == 0.25 / run.scale
    assert decayed(given, 0.5).band == 2.0**32
    assert backend.dtype_name(run.arrays()["mean/0"]) == "float64"
    assert list(islice(run.as_taken([LionStep(0.5, weight_decay=0.5)]), 1)) == [LionStep(0.5 / 0.75)]


@pytest.mark.parametrize("band", [2.0, None])
@pytest.mark.parametrize("kind", KINDS)
def test_the_band_reaches_the_converted_optimiser(kind, band):
    make, step = KINDS[kind]
    schedule = repeat(replace(step, **{"shrink" if kind == "sgd" else "weight_decay": 0.9}))
    run = converted_for([nn.Parameter(np.ones((2, 2)))], schedule, band=band)
    if kind != "sgd":
        assert (type(run), run.band, type(run.optimizer)) == (Reframed, band, make)
    else:
        assert any(run.draw().rescale != 1 for _ in range(4)) == (band is not None)


@pytest.mark.parametrize(("scale", "rescale"), [(2.0, 1.0), (0.5, 1.0), (2.1, 2.0), (0.4, 0.25)])
def test_at_the_edge_of_the_band_nothing_is_rescaled(scale, rescale):
    step, frame = streams.remove_step(Step(0.1), streams.Frame(scale), 2.0)
    assert (step.rescale, frame.scale) == (rescale, scale / rescale)
    run = undecayed(Lion([nn.Parameter(np.ones(2))], [LionStep(0.1)]), band=2.0)
    run.scale = scale
    run.step()
    assert run.scale == scale / rescale


def test_the_update_is_tried_once_and_only_where_there_is_decay(monkeypatch):
    tried = []
    monkeypatch.setattr(any_optimizer, "_check_decoupled", lambda optimizer, step: tried.append(step))
    steps = [LionStep(0.1), LionStep(0.1, weight_decay=0.5), LionStep(0.1, weight_decay=0.25)]
    run = undecayed(Lion([nn.Parameter(np.ones(2))], steps))
    for _ in steps:
        run.step()
    assert tried == steps[1:2]


U, ONE = np.random.default_rng(0).standard_normal((3, 4)), LionStep(0.1, weight_decay=0.5)
DEFAULTS = [  # a function, its arguments, and what of its result is compared
    (muon_file.orthogonal, (1e-7 * U,), np.ndarray.tolist),
    (adam_exponential, (1e-3, 0.1), lambda steps: list(islice(steps, 3))),
    (undecayed, (Lion([nn.Parameter(np.ones(2))], []),), lambda run: run.band),
    (decayed, (Lion([nn.Parameter(np.ones(2))], []), 0.5), lambda run: run.band),
    (any_optimizer.reframe, (ONE, 0.5), None),
    (streams.remove_step, (Step(0.1, weight_decay=0.5), streams.Frame(1e-30)), None),
    (streams.add_step, (Step(0.1), streams.Frame(0.5), 0.5), None),
    (remove_weight_decay, (repeat(Step(1.0, weight_decay=0.9)),), lambda steps: [s.rescale for s in islice(steps, 30)]),
    (frame_after, ([Step(1.0, weight_decay=0.9)] * 30, 30), None),
    (add_weight_decay, ([Step(0.1)], 0.5), list),
    (probe, (lambda p: (p["a"] * p["b"], {"a": p["b"], "b": p["a"]}), {"a": np.ones(()), "b": 2 * np.ones(())}), None),
    (Probe(0.0, 0.0, 1.0000001e-6).is_scale_invariant, (), None), (Probe(1e-6, 1e-6, 1e-6).is_scale_invariant, (), None),
]


@pytest.mark.parametrize(("function", "arguments", "seen"), DEFAULTS)
def test_what_is_left_out_is_what_the_signature_says(function, arguments, seen):
    given = {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}
    assert given
    without, with_all = (function(*arguments, **options) for options in ({}, given))
    assert (seen or (lambda x: x))(without) == (seen or (lambda x: x))(with_all)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_a_step_that_are_left_out(kind):
    published = {"sgd": (0.1, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0), "adamw": (0.1, 0.9, 0.999, 1e-8, 0.0), "lion": (0.1, 0.9, 0.99, 0.0),
                 "muon": (0.1, 0.95, 0.0)}
    assert astuple(type(KINDS[kind][1])(0.1)) == published[kind]


def test_constants_of_any_degree_are_transported():
    """An eps under the root has degree 2, SAM's radius -1; lr = η / (P^k P')."""
    constants = {"under": 2, "radius": -1, "none": 0}
    found = state_transport.transport({"m": 1, "v": 2}, constants, -1, previous=0.5, scale=0.25, after=0.125)
    assert found == ({"m": 0.5, "v": 0.25}, {"under": 0.0625, "radius": 4.0, "none": 1.0}, 2.0)


@pytest.mark.parametrize("schedule", [
    lambda: adam_exponential(1e-300, 5e299), lambda: exponential_equivalent(1e-300, 0.0, 5e299),
    lambda: adam_without_decay(repeat(AdamStep(1e-300, weight_decay=5e299))),
    lambda: lion_without_decay(repeat(LionStep(1e-300, weight_decay=5e299))),
    lambda: remove_weight_decay(repeat(Step(1e-300, weight_decay=5e299)), band=None)])
def test_a_scale_that_is_0_is_out_of_range_though_lr_is_not(schedule):
    """lr * weight_decay = 0.5: P is 0 after 1,075 steps, when lr / P would still be a number."""
    with pytest.raises(OverflowError, match="left float range"):
        list(islice(schedule(), 2000))
