"""Schedules as functions of the step, as other libraries take them, and as CSV."""

import dataclasses
import io
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import equivalence, export, nn, schedules
from minibn.backend import array_namespace, to_numpy
from minibn.equivalence import exponential_equivalent, remove_weight_decay, texp
from minibn.optim import AdamStep, AdamW, LionStep, MuonStep, Step


def rates(schedule, count):
    return [s.lr for s in islice(schedule, count)]


# ---- as functions of the step ----

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


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int64"])
def test_lr_function_takes_integers_of_any_size(kind):
    torch = pytest.importorskip("torch")
    lr = export.lr_function(schedules.exponential(1.0, 2.0), 5)
    assert lr(torch.tensor([3, 9], dtype=getattr(torch, kind))).tolist() == [8, 16]
    assert lr(np.array([3, 9], dtype=kind)).tolist() == [8, 16]


def test_export_is_found_under_its_earlier_names():
    assert (schedules.lr_function, schedules.read_csv, schedules.write_csv) == (
        export.lr_function, export.read_csv, export.write_csv)


# ---- AdamW as stock Adam elsewhere ----


def adamw(length):
    """Warm-up and cosine, with betas and eps that change too; P ends near 0.1."""
    warm = schedules.warmup(20, schedules.cosine(1e-2, length))
    return [AdamStep(s.lr, 0.9 - 0.1 * (t % 3), 0.99 - 0.02 * (t % 5), 1e-8 * 10 ** (t % 4), 2.0 + t % 2)
            for t, s in zip(range(length), warm, strict=False)]


def sphere_run(length, update):
    """The direction of weights w after `length` steps `w = update(t, w, gradient)`, on ξ_t · w / |w|."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(8)
    for t in range(length):
        xi, norm = rng.standard_normal(8), np.linalg.norm(w)
        w = update(t, w, (xi - xi @ w / norm**2 * w) / norm)
    return w / np.linalg.norm(w)


def ours(steps):
    """What minibn's own AdamW makes of them."""
    parameter = nn.Parameter(np.zeros(8))
    optimizer = AdamW([parameter], steps)

    def update(t, w, gradient):
        parameter.data, parameter.grad = w, gradient
        optimizer.step()
        return parameter.data

    return sphere_run(len(steps), update)


def in_optax(functions, length):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    with jax.enable_x64(True):
        make = optax.inject_hyperparams(optax.adam)(
            functions["lr"], b1=functions["beta1"], b2=functions["beta2"], eps=functions["eps"])
        state, one = [make.init(np.zeros(8))], jax.jit(make.update)

        def update(t, w, gradient):
            change, state[0] = one(gradient, state[0], w)
            return w + np.asarray(change)

        return sphere_run(length, update)


def in_torch(functions, length):
    torch = pytest.importorskip("torch")

    class AdamSchedule(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            lr, beta1, beta2, eps = (functions[name](self.last_epoch) for name in ("lr", "beta1", "beta2", "eps"))
            for group in self.optimizer.param_groups:
                group.update(betas=(beta1, beta2), eps=eps)
            return [lr for _ in self.optimizer.param_groups]

    parameter = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter])
    scheduler = AdamSchedule(optimizer)

    def update(t, w, gradient):
        parameter.data, parameter.grad = torch.tensor(w), torch.tensor(gradient)
        optimizer.step()
        scheduler.step()
        return parameter.detach().numpy().copy()

    return sphere_run(length, update)


@pytest.mark.parametrize("elsewhere", [in_optax, in_torch])
def test_stock_adam_under_the_functions_is_adamw(elsewhere):
    steps = adamw(200)
    assert 0.05 < equivalence.scale_after(steps, 200) < 0.15
    functions = export.number_functions(equivalence.adam_without_decay(steps), 200)
    assert list(functions) == ["lr", "beta1", "beta2", "eps"]
    np.testing.assert_allclose(elsewhere(functions, 200), ours(steps), rtol=0, atol=1e-12)
    for name in functions:  # with one of them as it was, it is another run
        unchanged = {**functions, name: export.number_functions(steps, 200)[name]}
        assert np.abs(elsewhere(unchanged, 200) - ours(steps)).max() > 1e-8, name


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


# ---- as CSV ----


STEPS = st.builds(Step, st.floats(0, 1e300), st.floats(0, 1), st.floats(0, 1), st.floats(-1e300, 1e300),
                  st.integers(-300, 300).map(lambda e: 2.0**e), st.floats(-0.99, 1e3), st.floats(0, 0.99))


@pytest.mark.parametrize("kind", [AdamStep, LionStep, MuonStep])
def test_csv_of_every_optimiser_gives_every_bit_back(kind):
    rng = np.random.default_rng(0)
    steps = [kind(**dict(zip(kind.limits, rng.random(len(kind.limits)), strict=True))) for _ in range(5)]
    export.write_csv(steps, text := io.StringIO())
    assert text.getvalue().splitlines()[0] == ",".join(["step", *kind.limits])
    assert list(export.read_csv(text.getvalue().splitlines(), kind)) == steps


def test_csv_of_another_optimiser_is_refused():
    for columns, kind, fitting in (("lr,beta1,beta2,eps", Step, "AdamStep"), ("lr,momentum,kick", AdamStep, "Step"),
                                   ("step,lr,beta1,beta2", MuonStep, "AdamStep")):
        with pytest.raises(ValueError, match=f"another optimiser's steps, not of a {kind.__name__}: read it as {fitting};"):
            export.read_csv([columns + "\n", "1,2,3,4\n"], kind)
    for column, field in (("b1", "beta1"), ("beta", "beta1"), ("epsilon", "eps"), ("wd", "weight_decay")):
        with pytest.raises(ValueError, match=f"{column!r} must be called {field!r}"):
            export.read_csv([f"lr,{column}\n"], AdamStep)
    with pytest.raises(TypeError, match="write_csv needs steps of one optimiser; step 1 is Step"):
        export.write_csv([AdamStep(0.1), Step(0.1)], io.StringIO())


@given(st.lists(STEPS, max_size=5))
def test_csv_gives_every_bit_back(steps):
    file = io.StringIO()
    export.write_csv(steps, file)
    file.seek(0)
    assert [dataclasses.astuple(s) for s in export.read_csv(file)] == [dataclasses.astuple(s) for s in steps]


@pytest.mark.parametrize(("text", "message"), [
    ("", "must name its columns"),
    ("step,momentum\n0,0.9\n", "must name its columns"), ("lr,momentun\n", "'momentun' must be called 'momentum'"),
    ("lr,lr\n", "must name its columns"), ("lr,momentum\n0.1\n", "line 2 of the schedule, '0.1', has 1"),
    ("lr\n0.1\nfast\n", "line 3 of the schedule, 'fast'"), ("lr\nnan\n", "line 2 .*; got lr=nan"), ("lr\n-1\n", "lr=-1.0"),
])
def test_bad_csv(text, message):
    with pytest.raises(ValueError, match=message):
        list(export.read_csv(text.splitlines()))


@pytest.mark.parametrize("text", [
    "\ufefflr,momentum\r\n0.1,0.9\r\n", "lr,momentum\n0.1,0.9\n\n\n", "\nlr,momentum\n\n0.1,0.9", "lr,momentum,,\n0.1,0.9,,\n",
    ",lr,momentum\n0,0.1,0.9\n", "Unnamed: 0,lr,momentum\n0,0.1,0.9\n",
    "momentum, lr\n .9, 1e-1\n", '"lr","momentum"\n"0.1","0.9"\n',
    "step,lr,momentum\r0,0.1,0.9\r", "\ufefflr;momentum\r\n0,1;0,9\r\n", "lr;momentum\n.1;0.9\n", "lr\tmomentum\n0.1\t0.9\n",
    "\ufeff\nlr,momentum\n0.1,0.9\n"])
def test_csv_of_spreadsheets_and_pandas(text):
    assert list(export.read_csv(io.StringIO(text, newline=""))) == [Step(0.1, 0.9)]


@pytest.mark.parametrize("text", ["lr;momentum\n1.000,5;0\n", "lr\tmomentum\n0,1\t0\n", "lr\n0,1\n"])
def test_a_comma_that_may_mean_thousands_is_not_guessed(text):
    with pytest.raises(ValueError, match="line 2 of the schedule, .*(is not a number|has 2 numbers for 1)"):
        list(export.read_csv(text.splitlines()))


@pytest.mark.parametrize("given", ["schedule.csv", Path("schedule.csv")])
def test_a_path_is_not_the_lines_of_a_file(given):
    with pytest.raises(TypeError, match="the schedule must be an open text file or a list of lines, got .*; give open"):
        export.read_csv(given)
    with pytest.raises(TypeError, match="the schedule must have lines of text, got bytes; open the file in text mode"):
        export.read_csv(io.BytesIO(b"lr\n0.1\n"))


def test_another_column_is_passed_over_with_a_warning():
    with pytest.warns(UserWarning, match=r"the columns \['note'\] of the schedule are ignored"):
        steps = list(export.read_csv(["lr,note\n", '0.1,"start, slowly"\n']))
    assert steps == [Step(0.1)]


@pytest.mark.parametrize(("line", "message"), [
    ("1_000", "'1_000' is not a number"), ("\u0661", "is not a number"),
    ("1" * 200_000, "line 2 of the schedule is not CSV: field"),
    ('"0.1', "line 2 of the schedule is not CSV"), ("0.1,0.9", "has 2 numbers for 1 columns"), ("0x10", "is not a number")])
def test_lines_that_are_mistakes(line, message):
    with pytest.raises(ValueError, match=message) as error:
        list(export.read_csv(["lr\n", line + "\n"]))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("name", "field"), [("weight_decy", "weight_decay"), ("Momentum", "momentum"), ("wd", "weight_decay"),
                                             ("weight decay", "weight_decay"), ("re-scale", "rescale")])
def test_a_column_that_is_almost_a_field_is_refused_and_not_passed_over(name, field):
    with pytest.raises(ValueError, match=f"{name!r} must be called {field!r}"):
        export.read_csv([f"lr,{name}\n", "0.1,0.9\n"])
