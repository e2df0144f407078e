"""Schedules as functions of the step, as other libraries take them."""

import math
import re
from itertools import islice

import numpy as np
import pytest

from minibn import export, schedules
from minibn.backend import array_namespace, to_numpy
from minibn.equivalence import exponential_equivalent, remove_weight_decay, texp
from minibn.optim import AdamStep, LionStep, Step


def rates(schedule, count):
    return [s.lr for s in islice(schedule, count)]


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
    for bad in (0, 2.0, math.nan, math.inf, "3"):
        with pytest.raises(ValueError, match=f"lr_function: steps must be a whole number of at least 1, got {bad!r}"):
            export.lr_function(converted(), bad)
    assert export.lr_function(converted(), np.int64(3))(1) == export.lr_function(converted(), 3)(1)
    with pytest.raises(ValueError, match="lr_function: the schedule has 2 steps, fewer than 3"):
        export.lr_function([Step(0.1), Step(0.2)], 3)
    f = export.lr_function([Step(0.1), Step(1e39)], 2)
    with pytest.raises(TypeError, match="the step must be an integer, got float64"):
        f(np.asarray(1.0))
    for bad in (1.0, "1", [1], None):
        with pytest.raises(TypeError, match=re.escape(f"lr: the step must be an integer, or an array of integers, got {bad!r}")):
            f(bad)
    assert f(1) == f(np.asarray(1)) == 1e39
    torch = pytest.importorskip("torch")
    with pytest.raises(OverflowError, match=r"lr grows to 1e\+39, beyond torch.float32"):
        f(torch.asarray(0))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int64"])
def test_lr_function_takes_integers_of_any_size(kind):
    torch = pytest.importorskip("torch")
    lr = export.lr_function(schedules.exponential(1.0, 2.0), 5)
    assert lr(torch.tensor([3, 9], dtype=getattr(torch, kind))).tolist() == [8, 16]
    assert lr(np.array([3, 9], dtype=kind)).tolist() == [8, 16]


def test_functions_of_every_number():
    steps = [LionStep(0.1, 0.5, 0.75, 0.25), LionStep(0.2, 0.5, 0.875, 0.25)]
    f = export.number_functions(steps, 2)
    assert {name: [f[name](t) for t in (-1, 0, 1, 2)] for name in f} == {
        "lr": [0.1, 0.1, 0.2, 0.2], "beta1": [0.5] * 4, "beta2": [0.75, 0.75, 0.875, 0.875], "weight_decay": [0.25] * 4}
    assert f["beta2"](np.arange(3)).tolist() == [0.75, 0.875, 0.875]
    with pytest.raises(TypeError, match="needs steps of one optimiser; step 1 is AdamStep"):
        export.number_functions([LionStep(0.1), AdamStep(0.1)], 2)
    with pytest.raises(ValueError, match="number_functions: the schedule has 2 steps, fewer than 3"):
        export.number_functions(steps, 3)
    with pytest.raises(TypeError, match="lr_function is for schedules of Step; step 0 is LionStep.*number_functions has"):
        export.lr_function(steps, 2)


def test_export_is_found_under_its_earlier_names():
    assert (schedules.lr_function, schedules.read_csv, schedules.write_csv) == (
        export.lr_function, export.read_csv, export.write_csv)
