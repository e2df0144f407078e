"""Schedules: each is its formula, and refuses what it cannot do at the call."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import schedules


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


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
