"""Conversions are streams: endless and within float32, of arguments of any kind; what has no conversion is refused."""

import math
from itertools import count, islice, repeat

import numpy as np
import pytest
from sgd_runs import PHASES, SETTING

from minibn import nn, schedules
from minibn.equivalence import add_weight_decay, frame_after, remove_weight_decay, texp
from minibn.optim import SGD, Step


def test_two_hundred_thousand_steps_in_float32():
    """lr 0.1, weight decay 5e-3: the plain schedule would reach 10^8,700; with `rescale` nothing leaves float32."""
    rng = np.random.default_rng(0)
    parameter = nn.Parameter(rng.standard_normal(4).astype("float32"))
    sgd = SGD([parameter], remove_weight_decay(schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)))
    noise = rng.standard_normal((1000, 4)).astype("float32")
    exponent, low, high = 0, math.inf, 0.0
    for t in range(200_000):
        w, xi = parameter.data, noise[t % 1000]
        square = w @ w
        parameter.grad = (xi - (xi @ w / square) * w) / square**0.5
        step = sgd.step()
        if step.rescale != 1:
            exponent += math.frexp(step.rescale)[1] - 1
        low, high = min(low, step.lr), max(high, step.lr)
    assert np.all(np.isfinite(parameter.data))
    assert parameter.data.dtype == np.float32
    assert -2 * exponent * math.log10(2) > 800
    assert 0 < low < high < 2.0**70


def test_overflow_without_a_band():
    schedule = remove_weight_decay(schedules.constant(0.5, weight_decay=0.5), band=None)
    with pytest.raises(OverflowError, match=r"left float range .* use band=2.0\*\*32"):
        list(islice(schedule, 5000))
    banded = list(islice(remove_weight_decay(schedules.constant(0.5, weight_decay=0.5)), 5000))
    assert all(math.isfinite(s.lr) for s in banded)


def test_conversion_is_a_stream():
    """Nothing is read before it is asked for, and an endless schedule is fine."""
    drawn = []
    endless = (drawn.append(t) or Step(0.1, 0.9, 1e-3) for t in count())
    converted = add_weight_decay(remove_weight_decay(endless), 1e-4)
    assert drawn == []
    next(converted), next(converted)
    assert drawn == [0, 1]


def test_arguments_of_any_kind():
    """Weight decay as any real number or a stream, phases from any iterable, schedules without steps."""
    expected = list(add_weight_decay([Step(0.1, 0.9)] * 3, 0.5))
    assert list(add_weight_decay([Step(0.1, 0.9)] * 3, np.float32(0.5))) == expected
    assert list(add_weight_decay([Step(0.1, 0.9)] * 3, repeat(0.5))) == expected
    assert list(texp(iter(PHASES), **SETTING)) == list(texp(PHASES, **SETTING))
    assert list(remove_weight_decay([])) == list(add_weight_decay([], 0.1)) == []


def test_errors_of_removing():
    with pytest.raises(ValueError, match=r"step 3 cannot be converted: .*alpha=0, .*lr=2.0, .*weight_decay=0.5"):
        list(remove_weight_decay([Step(0.1)] * 3 + [Step(2.0, 0.0, 0.5)]))
    with pytest.raises(ValueError, match="band must be a finite number above 1, or None .*got 1"):
        remove_weight_decay([], band=1)
    with pytest.raises(ValueError, match="the schedule has 3 steps, there is no frame after 4"):
        frame_after([Step(0.1)] * 3, 4)


def test_errors_of_adding():
    with pytest.raises(ValueError, match="step 1 already has weight_decay=0.1, .*remove_weight_decay first"):
        list(add_weight_decay([Step(0.1), Step(0.1, weight_decay=0.1)], 0.1))
    with pytest.raises(ValueError, match="weight_decay=-0.1"):
        add_weight_decay([Step(0.1)], -0.1)
    with pytest.raises(ValueError, match="step 1 .*has no equal with weight_decay=0.0, shrink=0.0"):
        # a kick of -200 of the weights would have to be undone by a weight decay, which is far too
        # small
        list(add_weight_decay([Step(0.1, 0.9), Step(0.1, 0.9, kick=200.0)], repeat(0)))
