"""Theorem A: decoupled weight decay can be removed from every optimiser, exactly: gradients are divided by P, lr by P'.

`same_run` is the theorem's statement; hypothesis checks it over random schedules, and the tests of
broken conversions check that it fails as soon as one line is wrong. Theorem B is in
`test_transport`, Theorem C in `test_adam_streams`.
"""

import math
from itertools import repeat

import numpy as np
import pytest
from common import broken
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_runs import KINDS, Sphere, assert_close, kinds, random_steps, seeds

from minibn import backend, nn
from minibn.equivalence import any_optimizer, decayed, undecayed
from minibn.optim import AdamStep, AdamW


def same_run(kind, steps, seed, band=2.0**32, move=lambda x: x):
    """Theorem A: the run of `undecayed` has the weights w / P at every step, and no weight decay."""
    make = KINDS[kind][0]
    usual = Sphere(lambda p: make(p, steps), seed, move)
    converted = Sphere(lambda p: undecayed(make(p, steps), band=band), seed, move)
    for t in range(len(steps)):
        usual.step()
        assert converted.step().shrink == 0
        assert_close(converted.weight() * converted.optimizer.scale, usual.weight(), message=f"step {t}")
    for name, array in usual.optimizer.arrays().items():
        assert_close(backend.to_numpy(converted.optimizer.arrays()[name]), backend.to_numpy(array), 1e-11, name)


@settings(max_examples=12)
@given(kinds, seeds)
def test_without_its_weight_decay_every_optimiser_trains_the_same_network(kind, seed):
    """Theorem A."""
    steps = random_steps(kind, seed)
    assert math.prod(1 - s.shrink for s in steps) < 1e-3
    same_run(kind, steps, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_run_on_every_library(library, kind):
    same_run(kind, random_steps(kind, 0, 40), 0, move=library.array)


@settings(max_examples=8)
@given(kinds, seeds, st.sampled_from([1.0001, 2.0, 2.0**32]))
def test_the_band_does_not_change_a_bit(kind, seed, band):
    steps, make = random_steps(kind, seed, 400), KINDS[kind][0]
    plain, banded = (Sphere(lambda p, b=b: undecayed(make(p, steps), band=b), seed) for b in (None, band))
    for _ in steps:
        plain.step()
        banded.step()
        assert 1 / banded.optimizer.band <= banded.optimizer.scale <= banded.optimizer.band or band < 2
        np.testing.assert_array_equal(banded.weight() * banded.optimizer.scale, plain.weight() * plain.optimizer.scale)
    rescale = plain.optimizer.scale / banded.optimizer.scale
    assert math.frexp(rescale)[0] == 0.5


@settings(max_examples=8)
@given(kinds, seeds, st.lists(st.integers(0, 60), min_size=1, max_size=4))
def test_the_form_can_change_at_any_step(kind, seed, lengths):
    """Convert, train, go back, train, convert again, …: the same network as without any of it."""
    steps, make = random_steps(kind, seed, 4 * 60 + 1), KINDS[kind][0]
    usual, changing = (Sphere(lambda p: make(p, steps), seed) for _ in range(2))
    for i, length in enumerate(lengths):
        given_ = changing.optimizer
        changing.optimizer = given_.add() if i % 2 else undecayed(given_)
        for _ in range(length):
            usual.step()
            changing.step()
        assert_close(changing.weight() * changing.optimizer.scale, usual.weight())
    last = changing.optimizer.add() if len(lengths) % 2 else changing.optimizer
    assert type(last) is make
    assert last.steps == sum(lengths)
    assert_close(changing.weight(), usual.weight())


@settings(max_examples=8)
@given(kinds, seeds, st.integers(0, 100))
def test_the_converted_run_resumes_bit_for_bit(kind, seed, stop):
    steps, make = random_steps(kind, seed, 100), KINDS[kind][0]
    whole, first, second = (Sphere(lambda p: undecayed(make(p, steps), band=2.0), seed) for _ in range(3))
    for _ in range(100):
        whole.step()
    for _ in range(stop):
        first.step()
    state = first.optimizer.state_dict()
    assert set(state) == {"steps", "scale", *first.optimizer.arrays()}
    assert all(isinstance(value, (int, float, np.ndarray)) for value in state.values())
    for mine, saved in zip(second.parameters, first.parameters, strict=True):
        mine.data = saved.data.copy()
    second.rng = first.rng
    second.optimizer.load_state_dict(state)
    assert second.optimizer.steps == stop
    for _ in range(stop, 100):
        second.step()
    np.testing.assert_array_equal(second.weight(), whole.weight())
    assert second.optimizer.scale == whole.optimizer.scale


def test_the_state_of_an_ordinary_run_can_be_converted_and_not_the_other_way():
    steps = random_steps("adamw", 0, 20)
    usual, converted = Sphere(lambda p: AdamW(p, steps), 0), Sphere(lambda p: undecayed(AdamW(p, steps)), 0)
    for _ in range(10):
        usual.step()
        converted.step()
    fresh = undecayed(AdamW([nn.Parameter(p.data) for p in usual.parameters], steps))
    fresh.load_state_dict(usual.optimizer.state_dict())
    assert (fresh.scale, fresh.steps) == (1.0, 10)
    with pytest.raises(ValueError, match="the state has .*scale.*; AdamW with 2 parameters needs"):
        AdamW([nn.Parameter(p.data) for p in usual.parameters], steps).load_state_dict(converted.optimizer.state_dict())


@settings(max_examples=8)
@given(kinds, seeds, st.floats(0, 5))
def test_any_optimiser_restated_at_any_weight_decay(kind, seed, weight_decay):
    steps, make = random_steps(kind, seed, 300), KINDS[kind][0]
    usual, restated = Sphere(lambda p: make(p, steps), seed), Sphere(lambda p: decayed(make(p, steps), weight_decay), seed)
    for _ in steps:
        usual.step()
        step = restated.step()
        assert step.shrink == pytest.approx(step.lr * weight_decay)
        assert_close(restated.weight() * restated.optimizer.scale, usual.weight())


@given(kinds, seeds, st.floats(1e-3, 1e3))
def test_removing_then_adding_is_the_identity(kind, seed, scale):
    for step in random_steps(kind, seed, 10):
        removed, after = any_optimizer.reframe(step, scale)
        back, one = any_optimizer.reframe(removed, 1 / scale, step.shrink / step.lr if step.lr else 0.0)
        for name in step.limits:
            if step.lr:
                assert getattr(back, name) == pytest.approx(getattr(step, name), rel=1e-12), name
        if not step.lr:
            continue  # then there is no weight decay whose product with lr is `shrink`
        assert one * after == pytest.approx(1.0, rel=1e-12)


BROKEN_A = {
    "P for P'": ("reframe", "step.lr / (scale * keep)", "step.lr / scale"),
    "P' squared": ("reframe", "step.lr / (scale * keep)", "step.lr / (scale * keep)**2"),
    "P does not shrink": ("reframe", "after = scale * keep /", "after = scale /"),
    "weight decay stays": ("reframe", "weight_decay=weight_decay), after", "weight_decay=step.weight_decay), after"),
    "gradients as they are": ("Reframed", "parameter.grad / self.scale", "parameter.grad"),
}


@pytest.mark.parametrize("name", BROKEN_A)
def test_broken_conversions_are_caught(name, monkeypatch):
    what = BROKEN_A[name][0]
    monkeypatch.setattr(any_optimizer, what, broken(any_optimizer, *BROKEN_A[name]))
    for kind in ("adamw", "lion", "muon"):
        with pytest.raises(AssertionError):
            same_run(kind, random_steps(kind, 0, 50), 0)


def test_thirty_thousand_steps_in_float32():
    """P would be 10^-131 at the end, far below float32."""
    rng = np.random.default_rng(0)
    w = nn.Parameter(rng.standard_normal(4).astype("float32"))
    adam_run, exponent = undecayed(AdamW([w], repeat(AdamStep(0.1, weight_decay=0.1)))), 0.0
    noise = rng.standard_normal((1000, 4)).astype("float32")
    for t in range(30_000):
        square = w.data @ w.data
        w.grad = (noise[t % 1000] - (noise[t % 1000] @ w.data / square) * w.data) / square**0.5
        before = adam_run.scale
        adam_run.step()
        exponent += math.log10(0.99) if adam_run.scale < before else 0.0
    assert exponent < -130
    assert np.all(np.isfinite(w.data))
    assert w.data.dtype == np.float32
