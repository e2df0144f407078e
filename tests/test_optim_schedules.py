"""Step, SGD and the schedules: each does what its docstring says, and refuses what it cannot do."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import backend, export, nn, schedules
from minibn.backend import array_namespace, to_numpy
from minibn.equivalence import exponential_equivalent, remove_weight_decay, texp
from minibn.optim import SGD, Step


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


@given(numbers(0, 1), numbers(0, 1), numbers(0, 1), numbers(-1, 1), st.sampled_from([0.25, 1.0, 8.0]), numbers(-0.9, 2),
       numbers(0, 0.9), st.integers(0, 2**32 - 1))
def test_sgd_does_what_the_docstring_of_step_says(library, lr, momentum, decay, kick, c, lookahead, shrink, seed):
    w, v, g = np.random.default_rng(seed).standard_normal((3, 5))
    parameter = nn.Parameter(library.array(w))
    parameter.grad = library.array(g)
    sgd = SGD([parameter], [Step(lr, momentum, decay, kick, c, lookahead, shrink)])
    sgd.velocity = [library.array(v)]
    assert sgd.step() is sgd.last
    w, v, g = c * w, v / c, g / c
    v = v + kick * w
    v = momentum * v + g + decay * w
    w = (1 - shrink) * w - lr * (v + lookahead * (g + decay * w))
    assert library.is_home_of(parameter.data)
    np.testing.assert_allclose(backend.to_numpy(sgd.velocity[0]), v, rtol=0, atol=1e-13)
    np.testing.assert_allclose(backend.to_numpy(parameter.data), w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bad", [
    {"lr": -0.1}, {"lr": math.nan}, {"lr": math.inf}, {"momentum": -0.1}, {"weight_decay": -1e-4}, {"kick": math.inf},
    {"rescale": 0.0}, {"rescale": -2.0}, {"rescale": 3.0}, {"lookahead": -1.0}, {"shrink": 1.0}, {"shrink": -0.1}])
def test_steps_out_of_range(bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=f"a Step needs .*{name}={value}"):
        Step(**{"lr": 0.1, **bad})


def test_sgd_errors():
    with pytest.raises(ValueError, match="at least one parameter"):
        SGD([], schedules.constant(0.1))
    sgd = SGD([nn.Parameter(np.ones(2))], [Step(0.1)])
    sgd.step()
    with pytest.raises(RuntimeError, match="the schedule ended after 1 steps"):
        sgd.step()
    state = sgd.state_dict()
    with pytest.raises(RuntimeError, match="needs a fresh SGD .* has taken 1 steps"):
        sgd.load_state_dict(state)
    with pytest.raises(ValueError, match=r"shapes \[\(2,\)\] do not fit parameters of shapes \[\(3,\)\]"):
        SGD([nn.Parameter(np.ones(3))], schedules.constant(0.1)).load_state_dict(state)
    with pytest.raises(ValueError, match="the schedule has 0 steps, but the state was saved after 1"):
        SGD([nn.Parameter(np.ones(2))], []).load_state_dict(state)


@given(st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_sgd_goes_on_from_its_state_bit_for_bit(stop, seed):
    def schedule():
        return schedules.warmup(5, schedules.cosine(0.3, 25, momentum=0.9, weight_decay=0.01))

    gradients = np.random.default_rng(seed).standard_normal((30, 4))

    def run(sgd, steps):
        for t in steps:
            sgd.parameters[0].grad = gradients[t]
            sgd.step()

    whole = SGD([nn.Parameter(np.ones(4))], schedule())
    run(whole, range(30))
    first = SGD([nn.Parameter(np.ones(4))], schedule())
    run(first, range(stop))
    second = SGD([nn.Parameter(first.parameters[0].data.copy())], schedule())
    second.load_state_dict(first.state_dict())
    run(second, range(stop, 30))
    np.testing.assert_array_equal(second.parameters[0].data, whole.parameters[0].data)
    np.testing.assert_array_equal(second.velocity[0], whole.velocity[0])


def rates(schedule, count):
    return [s.lr for s in islice(schedule, count)]


def test_schedules_by_hand():
    assert rates(schedules.constant(0.3), 3) == [0.3] * 3
    np.testing.assert_allclose(rates(schedules.step_decay(1, [0, 2], 0.5), 4), [0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(rates(schedules.cosine(1, 2, 0.5), 4), [1, 0.75, 0.5, 0.5])
    np.testing.assert_allclose(rates(schedules.exponential(0.1, 2), 3), [0.1, 0.2, 0.4])
    np.testing.assert_allclose(rates(schedules.warmup(1, schedules.constant(1)), 3), [0.5, 1, 1])
    for schedule in (schedules.constant(0.1, momentum=0.9, weight_decay=0.5),
                     schedules.step_decay(0.1, [3], momentum=0.9, weight_decay=0.5),
                     schedules.cosine(0.1, 3, momentum=0.9, weight_decay=0.5),
                     schedules.exponential(0.1, 2, momentum=0.9, weight_decay=0.5),
                     schedules.warmup(3, schedules.constant(0.1, momentum=0.9, weight_decay=0.5))):
        assert {(s.momentum, s.weight_decay) for s in islice(schedule, 5)} == {(0.9, 0.5)}


@given(st.sampled_from(schedules.NAMES), numbers(0, 1), st.integers(1, 20), numbers(0, 0.9), numbers(0, 1))
def test_a_schedule_by_name_is_the_function_of_that_name(name, lr, steps, momentum, weight_decay):
    usual = {"momentum": momentum, "weight_decay": weight_decay}
    direct = {"constant": lambda: schedules.constant(lr, **usual),
              "step": lambda: schedules.step_decay(lr, [3, 5], 0.3, **usual),
              "cosine": lambda: schedules.cosine(lr, steps, 0.01, **usual),
              "exponential": lambda: schedules.exponential(lr, 1.1, **usual)}
    named = schedules.by_name(name, lr, steps=steps, milestones=[3, 5], factor=0.3, final=0.01, growth=1.1, **usual)
    assert list(islice(named, 25)) == list(islice(direct[name](), 25))


def test_export_is_found_under_its_earlier_names():
    assert (schedules.lr_function, schedules.read_csv, schedules.write_csv) == (
        export.lr_function, export.read_csv, export.write_csv)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: schedules.constant(-0.1), "lr=-0.1"),
    (lambda: schedules.constant(0.1, momentum=1), "momentum must lie between 0 and below 1, got 1"),
    (lambda: schedules.constant(0.1, weight_decay=-1), "weight_decay=-1"),
    (lambda: schedules.step_decay(0.1, [5, 3]), r"increasing step numbers of at least 0, got \[5, 3\]"),
    (lambda: schedules.step_decay(0.1, [5], -1), "factor must be a finite number of at least 0, got -1"),
    (lambda: schedules.cosine(0.1, 0), "cosine: steps must be a finite number of at least 1, got 0"),
    (lambda: schedules.cosine(0.1, 5, math.nan), "final must be a finite number of at least 0, got nan"),
    (lambda: schedules.exponential(0.1, math.inf), "growth must be a finite number of at least 0, got inf"),
    (lambda: schedules.warmup(-1, []), "warmup: steps must be a finite number of at least 0, got -1"),
    *((lambda bad=bad: schedules.warmup(bad, []), f"warmup: steps must be a finite number of at least 0, got {bad}")
      for bad in (math.nan, math.inf)),
    *((lambda bad=bad: schedules.cosine(0.1, bad), f"cosine: steps must be a finite number of at least 1, got {bad}")
      for bad in (math.nan, math.inf)),
    *((lambda bad=bad: schedules.step_decay(0.1, [3, bad]), rf"increasing step numbers of at least 0, got \[3, {bad}\]")
      for bad in (math.nan, math.inf)),
    (lambda: schedules.step_decay(0.1, [math.nan]), r"increasing step numbers of at least 0, got \[nan\]"),
    (lambda: schedules.by_name("linear", 0.1), r"one of \['constant', 'step', 'cosine', 'exponential'\], got 'linear'"),
    (lambda: schedules.by_name("cosine", 0.1), "the schedule 'cosine' needs steps"),
    (lambda: next(schedules.nesterov(schedules.nesterov(schedules.constant(0.1, momentum=0.9)))), "step 0 already has"),
    (lambda: next(schedules.decoupled(schedules.decoupled(schedules.constant(0.1, weight_decay=0.1)))), "already has shrink"),
    (lambda: next(schedules.decoupled(schedules.constant(2, weight_decay=1))), "0 <= shrink < 1; got .*shrink=2"),
])
def test_bad_arguments_are_refused_at_the_call(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_exponential_says_when_it_overflows():
    with pytest.raises(OverflowError, match=r"2 \*\* 1024 is beyond float range; .*band"):
        rates(schedules.exponential(1, 2), 1100)


# ---- schedules as functions of the step ----

LIBRARIES = ["numpy", "array_api_strict", "torch"]


def converted(schedule=schedules.cosine, **options):
    return remove_weight_decay(schedule(0.1, 20, momentum=0.9, weight_decay=5e-3), **{"band": None, **options})


def test_a_schedule_as_a_function_of_the_step():
    expected = rates(converted(), 20)
    f = export.lr_function(converted(), 20)
    assert [f(t) for t in range(20)] == expected
    assert f(-1) == expected[0]
    assert f(20) == f(10**9) == expected[19]
    assert type(f(np.int32(3))) is float


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_of_an_array_it_is_an_array_of_the_same_library(library, shape, dtype):
    xp = pytest.importorskip(library)
    f = export.lr_function(converted(), 20)
    steps = np.array([3, 25, 7, -1])[: math.prod(shape)].reshape(shape)
    found = f(xp.asarray(steps.tolist(), dtype=getattr(xp, dtype)))
    assert array_namespace(found) is array_namespace(xp.asarray(0.0))
    assert found.dtype == xp.asarray(0.5).dtype
    np.testing.assert_allclose(to_numpy(found), np.vectorize(f)(steps), rtol=1e-7)
    assert found.shape == shape


def test_of_an_array_it_is_on_the_same_device():
    xp = pytest.importorskip("array_api_strict")
    t = xp.asarray([1, 2], device=xp.Device("device1"))
    assert export.lr_function(converted(), 20)(t).device == t.device


def test_torch_schedulers_take_the_function():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, export.lr_function(converted(), 20))
    for expected in rates(converted(), 20):
        assert optimizer.param_groups[0]["lr"] == expected
        optimizer.step()
        scheduler.step()


def nesterov(lr, steps, **options):
    return schedules.nesterov(schedules.cosine(lr, steps, **options))


def decoupled(lr, steps, **options):
    return schedules.decoupled(schedules.cosine(lr, steps, **options))


@pytest.mark.parametrize(("schedule", "step"), [
    (lambda: converted(band=1.001), 2),  # rescales
    (lambda: converted(nesterov), 0),  # lookahead
    (lambda: converted(decoupled), 1),  # momentum changes
    (lambda: decoupled(0.1, 20, weight_decay=0.1), 0),  # shrink
    (lambda: exponential_equivalent(0.1, 0.9, 5e-3), 0),  # kick
    (lambda: [Step(0.1), Step(0.1, weight_decay=0.1)], 1)])
def test_what_no_function_of_the_step_can_say_is_refused(schedule, step):
    with pytest.raises(ValueError, match=rf"step {step} is more than a learning rate: .*schedule, band=None"):
        export.lr_function(schedule(), 2 if step < 2 else 20)


def test_lr_functions_of_the_paper_are_plain():
    phases = [(5, 0.1), (math.inf, 0.01)]
    f = export.lr_function(texp(phases, momentum=0.9, weight_decay=5e-3), 9)
    assert [f(t) for t in range(9)] == rates(texp(phases, momentum=0.9, weight_decay=5e-3), 9)


def test_lr_function_errors():
    with pytest.raises(ValueError, match="lr_function: steps must be a finite number of at least 1, got 0"):
        export.lr_function(converted(), 0)
    with pytest.raises(ValueError, match="lr_function: steps must be a finite number of at least 1, got nan"):
        export.lr_function(converted(), math.nan)
    with pytest.raises(ValueError, match="lr_function: the schedule has 2 steps, fewer than 3"):
        export.lr_function([Step(0.1), Step(0.2)], 3)
    f = export.lr_function([Step(0.1), Step(1e39)], 2)
    with pytest.raises(TypeError, match="the step must be an integer, got float64"):
        f(np.asarray(1.0))
    assert f(1) == f(np.asarray(1)) == 1e39
    torch = pytest.importorskip("torch")
    with pytest.raises(OverflowError, match=r"lr grows to 1e\+39, beyond torch.float32"):
        f(torch.asarray(0))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.asarray])
def test_the_precision_of_a_steps_numbers_is_not_that_of_schedules_or_weights(kind):
    step = Step(kind(0.1), kind(0.9), kind(5e-4))
    assert {type(value) for value in (step.lr, step.momentum, step.weight_decay)} == {float}
    w = nn.Parameter(np.ones(3, dtype="float32"))
    SGD([w], [step]).step()
    assert w.data.dtype == np.float32
    exact = Step(float(kind(0.1)), float(kind(0.9)), float(kind(5e-4)))
    assert list(remove_weight_decay([step] * 100)) == list(remove_weight_decay([exact] * 100))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int64"])
def test_lr_function_takes_integers_of_any_size(kind):
    torch = pytest.importorskip("torch")
    lr = export.lr_function(schedules.exponential(1.0, 2.0), 5)
    assert lr(torch.tensor([3, 9], dtype=getattr(torch, kind))).tolist() == [8, 16]
    assert lr(np.array([3, 9], dtype=kind)).tolist() == [8, 16]
