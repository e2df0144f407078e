"""Step and SGD: each does what its docstring says, and refuses what it cannot do."""

import math
import pickle
from dataclasses import FrozenInstanceError, astuple, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minibn import backend, nn, schedules
from minibn.equivalence import remove_weight_decay
from minibn.optim import SGD, Step, update
from minibn.optim.sgd import step_of


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


@given(numbers(0, 1), numbers(0, 1), numbers(0, 1), numbers(-1, 1), st.sampled_from([0.25, 1.0, 8.0]), numbers(-0.9, 2),
       numbers(0, 0.9), st.integers(0, 2**32 - 1))
def test_sgd_does_what_the_docstring_of_step_says(library, lr, momentum, decay, kick, c, lookahead, shrink, seed):
    before = w, v, g = np.random.default_rng(seed).standard_normal((3, 5))
    parameter = nn.Parameter(library.array(w))
    parameter.grad = library.array(g)
    sgd = SGD([parameter], [Step(lr, momentum, decay, kick, c, lookahead, shrink)])
    sgd.velocity = [library.array(v)]
    assert sgd.step() is sgd.last
    w, v, g = c * w, v / c, g / c
    v = v + kick * w
    v = momentum * v + g + decay * w
    w = (1 - shrink) * w - lr * (v + lookahead * (g + decay * w))
    np.testing.assert_allclose(update(sgd.last, *before), (w, v), rtol=0, atol=1e-13)
    assert library.is_home_of(parameter.data)
    np.testing.assert_allclose(backend.to_numpy(sgd.velocity[0]), v, rtol=0, atol=1e-13)
    np.testing.assert_allclose(backend.to_numpy(parameter.data), w, rtol=0, atol=1e-13)


ZERO_OR_NOT = [st.sampled_from([0.0, x]) for x in (0.3, 0.9, 5e-4, -0.2, 2.0, 0.01)]


@given(*ZERO_OR_NOT, st.sampled_from([0.25, 1.0, 8.0]), st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float64"]))
def test_sgd_is_the_four_lines_of_update_bit_for_bit(lr, momentum, decay, kick, lookahead, shrink, c, seed, dtype):
    """Whatever it leaves out because a number is 0 or 1 changes nothing."""
    w, v, g = np.random.default_rng(seed).standard_normal((3, 7)).astype(dtype)
    step = Step(lr, momentum, decay, kick, c, lookahead, shrink)
    parameter = nn.Parameter(w)
    sgd = SGD([parameter], [step])
    parameter.grad, sgd.velocity = g, [v]
    sgd.step()
    np.testing.assert_array_equal(update(step, w, v, g), (parameter.data, sgd.velocity[0]))
    assert parameter.data.dtype == dtype


@pytest.mark.parametrize("bad", [
    {"lr": -0.1}, {"lr": math.nan}, {"lr": math.inf}, {"momentum": -0.1}, {"weight_decay": -1e-4}, {"kick": math.inf},
    {"rescale": 0.0}, {"rescale": -2.0}, {"rescale": 3.0}, {"lookahead": -1.0}, {"shrink": 1.0}, {"shrink": -0.1}])
def test_steps_out_of_range(bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=f"Step needs .*{name}.*; got {name}={value}"):
        Step(**{"lr": 0.1, **bad})


numbers = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1, math.inf, -math.inf, math.nan, np.float32(0.5)]))


@pytest.mark.parametrize("place", range(6))
@given(st.tuples(*[st.sampled_from([0.0, 0.5, 0.9])] * 5), st.sampled_from([1.0, 2.0]), numbers)
@example((0.5,) * 5, 1.0, np.float32(0.5))
@example((0.5,) * 5, 1.0, 1)
def test_the_fast_way_to_a_step_gives_or_refuses_what_step_does(place, values, rescale, number):
    """All numbers that `Step` would refuse are refused, with its message; types come out as floats."""
    def made(make):
        try:
            step = make()
        except ValueError as error:
            return str(error)
        return [(type(number), repr(number)) for number in astuple(step)]

    values = [*values[:3], rescale, *values[3:]]
    values[place] = number
    lr, momentum, decay, rescale, lookahead, shrink = values
    expected = made(lambda: Step(lr, momentum, decay, rescale=rescale, lookahead=lookahead, shrink=shrink))
    assert made(lambda: step_of(*values)) == expected


def test_a_step_made_the_fast_way_is_a_step_that_cannot_be_changed():
    step = step_of(0.1, 0.9, 0.0, 1.0, 0.0, 0.0)
    assert (type(step), step, hash(step)) == (Step, Step(0.1, 0.9), hash(Step(0.1, 0.9)))
    with pytest.raises(FrozenInstanceError):
        step.lr = 0.2
    assert replace(step, lr=0.2) == Step(0.2, 0.9)
    assert pickle.loads(pickle.dumps(step)) == step


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
    with pytest.raises(ValueError, match=r"velocity/0 has the shape \(2,\); SGD needs \(3,\)"):
        SGD([nn.Parameter(np.ones(3))], schedules.constant(0.1)).load_state_dict(state)
    with pytest.raises(ValueError, match="the schedule has 0 steps, but the state was saved after 1"):
        SGD([nn.Parameter(np.ones(2))], []).load_state_dict(state)


def test_what_cannot_be_trained_is_refused():
    w = nn.Parameter(np.ones(3, "float32"))
    with pytest.raises(ValueError, match=r"parameters 0 and 2 are the same Parameter\(shape=\(3,\).*Give each parameter once"):
        SGD([w, nn.Parameter(np.ones(3)), w], [])
    with pytest.raises(TypeError, match="trains floating-point weights; parameter 0 is .*int64.* Convert its data"):
        SGD([nn.Parameter(np.ones(3, "int64"))], [])
    sgd = SGD([nn.Parameter(np.ones(2, "float32")), w], schedules.constant(0.1))
    w.grad = np.ones(3)
    with pytest.raises(TypeError, match="the gradient of parameter 1 is float64, its weights are float32. Compute"):
        sgd.step()
    w.grad = np.ones(1, "float32")
    with pytest.raises(ValueError, match=r"gradient of parameter 1 has the shape \(1,\), its weights have \(3,\)"):
        sgd.step()
    with pytest.raises(TypeError, match="SGD needs a schedule of Step; step 0 is 0.1"):
        SGD([w], [0.1]).step()


def test_states_of_another_optimiser_are_refused():
    fresh = SGD([nn.Parameter(np.ones(2))], schedules.constant(0.1))
    with pytest.raises(ValueError, match="the state has mean/0, steps; SGD with 1 parameters needs steps, velocity/0"):
        fresh.load_state_dict({"steps": 1, "mean/0": np.ones(2)})
    fresh.load_state_dict({"steps": 3, "velocity": [np.full(2, 5.0)]})  # as earlier versions saved it
    assert fresh.steps == 3
    np.testing.assert_array_equal(fresh.velocity[0], [5, 5])


@given(st.integers(0, 30), st.integers(0, 2**32 - 1))
@example(stop=7, seed=0)
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
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.steps == state["steps"] == stop
    assert all(isinstance(value, int) or value is not first.velocity[0] for value in state.values())
    run(second, range(stop, 30))
    assert second.steps == 30
    np.testing.assert_array_equal(second.parameters[0].data, whole.parameters[0].data)
    np.testing.assert_array_equal(second.velocity[0], whole.velocity[0])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.asarray])
def test_the_precision_of_a_steps_numbers_is_not_that_of_schedules_or_weights(kind):
    step = Step(kind(0.1), kind(0.9), kind(5e-4))
    assert {type(value) for value in (step.lr, step.momentum, step.weight_decay)} == {float}
    w = nn.Parameter(np.ones(3, dtype="float32"))
    SGD([w], [step]).step()
    assert w.data.dtype == np.float32
    exact = Step(float(kind(0.1)), float(kind(0.9)), float(kind(5e-4)))
    assert list(remove_weight_decay([step] * 100)) == list(remove_weight_decay([exact] * 100))
