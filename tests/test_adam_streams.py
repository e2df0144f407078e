"""Theorem C: AdamW is Adam under another schedule of lr, betas and eps, which is a stream of steps.

`same_adam` is the theorem's statement; hypothesis checks it over random schedules, and the tests of
broken streams check that it fails as soon as one line is wrong.
"""

import math
from dataclasses import replace
from itertools import count, islice, repeat

import numpy as np
import pytest
from common import broken
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_runs import Sphere, assert_close, direction, random_steps, seeds

from minibn.equivalence import AdamFrame, adam, adam_exponential, adam_with_decay, adam_without_decay
from minibn.optim import AdamStep, AdamW


def same_adam(steps, seed):
    """Adam under the converted schedule has the weights w / P, and moments as `AdamFrame` says."""
    usual, converted = Sphere(lambda p: AdamW(p, steps), seed), Sphere(lambda p: AdamW(p, adam_without_decay(steps)), seed)
    frame = AdamFrame()
    for t, step in enumerate(steps):
        usual.step()
        assert converted.step().weight_decay == 0
        _, frame = adam.remove_adam_step(step, frame)
        assert_close(converted.weight() * frame.scale, usual.weight(), message=f"step {t}")
    for i, p in enumerate(usual.parameters):
        there = frame.remove(p.data, usual.optimizer.mean[i], usual.optimizer.square[i])
        here = converted.parameters[i].data, converted.optimizer.mean[i], converted.optimizer.square[i]
        for ours, theirs, back, given_ in zip(here, there, frame.add(*here),
                                              (p.data, usual.optimizer.mean[i], usual.optimizer.square[i]), strict=True):
            assert_close(ours, theirs, 1e-11)
            assert_close(back, given_, 1e-11)


@settings(max_examples=12)
@given(seeds, st.sampled_from([1.0, 0.0]))
def test_adamw_is_adam_under_another_schedule(seed, eps):
    """Theorem C."""
    same_adam([replace(s, eps=s.eps * eps) for s in random_steps("adamw", seed)], seed)


BROKEN_C = {
    "eps not scaled": ("r * scale * step.eps", "step.eps"),
    "eps without r": ("r * scale * step.eps", "scale * step.eps"),
    "betas unchanged": ("AdamStep(lr, beta1, beta2,", "AdamStep(lr, step.beta1, step.beta2,"),
    "beta1 unchanged": ("AdamStep(lr, beta1, beta2,", "AdamStep(lr, step.beta1, beta2,"),
    "P for P'": ("step.lr / after * ratio", "step.lr / scale * ratio"),
    "second moment carried by a": ("a**2", "a"),
    "bias corrections left": ("step.lr / after * ratio", "step.lr / after"),
    "steps counted from 0": ("c, d, t + 1)\n    lr", "c, d, t + 2)\n    lr"),
    "c forgotten": ("AdamFrame(after, scale, c, d,", "AdamFrame(after, scale, 1.0, d,"),
    "P of the wrong step": ("AdamFrame(after, scale,", "AdamFrame(after, after,"),
}


@pytest.mark.parametrize("name", BROKEN_C)
def test_broken_adam_streams_are_caught(name, monkeypatch):
    monkeypatch.setattr(adam, "remove_adam_step", broken(adam, "remove_adam_step", *BROKEN_C[name]))
    with pytest.raises(AssertionError):
        same_adam(random_steps("adamw", 0, 100), 0)


@settings(max_examples=6)
@given(seeds)
def test_stock_adam_of_torch_under_the_stream_is_torchs_adamw(seed):
    torch = pytest.importorskip("torch")
    steps = random_steps("adamw", seed)
    rng = np.random.default_rng(seed)
    noise, w = torch.tensor(rng.standard_normal((600, 8))), rng.standard_normal(8)
    usual, converted = (torch.tensor(w, requires_grad=True) for _ in range(2))
    runs = [(usual, torch.optim.AdamW([usual]), iter(steps)),
            (converted, torch.optim.Adam([converted]), adam_without_decay(steps))]
    scale = 1.0
    for xi, given_ in zip(noise, steps, strict=True):
        for weight, optimizer, schedule in runs:
            s = next(schedule)
            optimizer.param_groups[0].update(lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps, weight_decay=s.weight_decay)
            optimizer.zero_grad()
            (xi @ weight / weight.norm()).backward()
            optimizer.step()
        scale *= 1 - given_.shrink
        assert_close(converted.detach().numpy() * scale, usual.detach().numpy())
    assert scale < 1e-3


@settings(max_examples=12)
@given(seeds)
def test_removing_then_adding_weight_decay_is_the_identity_for_adam(seed):
    steps = random_steps("adamw", seed)
    back = adam_with_decay(adam_without_decay(steps), [s.weight_decay for s in steps])
    for t, (old, new) in enumerate(zip(steps, back, strict=True)):
        for name in old.limits:
            assert getattr(new, name) == pytest.approx(getattr(old, name), rel=1e-12, abs=1e-12), f"step {t}: {name}"


@settings(max_examples=6)
@given(seeds, st.floats(0, 3))
def test_an_adam_schedule_restated_at_any_weight_decay(seed, weight_decay):
    steps = random_steps("adamw", seed, 300)
    restated = list(adam_with_decay(adam_without_decay(steps), weight_decay))
    assert {s.weight_decay for s in restated} == {weight_decay}
    usual, other = (Sphere(lambda p, s=s: AdamW(p, s), seed) for s in (steps, restated))
    for _ in steps:
        usual.step()
        other.step()
    assert_close(direction(other), direction(usual))


@settings(max_examples=8)
@given(seeds, st.integers(0, 100), st.booleans())
def test_adam_can_change_its_form_at_any_step(seed, at, to_adam):
    steps = random_steps("adamw", seed, 100)
    whole = Sphere(lambda p: AdamW(p, steps), seed)
    run = Sphere(lambda p: AdamW(p, steps if to_adam else adam_without_decay(steps)), seed)
    for _ in steps:
        whole.step()
    for _ in range(at):
        run.step()
    frame = AdamFrame()
    for step in steps[:at]:
        _, frame = adam.remove_adam_step(step, frame)
    first = run.optimizer
    run.optimizer = AdamW(run.parameters, islice(adam_without_decay(steps[at:], frame=frame) if to_adam else steps[at:], 100))
    run.optimizer.steps = at
    for i, p in enumerate(run.parameters):
        carry = frame.remove if to_adam else frame.add
        p.data, run.optimizer.mean[i], run.optimizer.square[i] = carry(p.data, first.mean[i], first.square[i])
    for _ in range(at, 100):
        run.step()
    assert_close(direction(run), direction(whole))


@settings(max_examples=8)
@given(seeds, st.floats(1e-3, 0.3), st.floats(0, 0.3), st.floats(0, 0.95), st.floats(0.8, 0.999), st.sampled_from([0.0, 1e-3]))
def test_constant_adamw_is_adam_with_an_exponential_lr(seed, lr, shrink, beta1, beta2, eps):
    """The closed form: constant betas, lr grows by 1/a per step."""
    step, a = AdamStep(lr, beta1, beta2, eps, shrink / lr), 1 - shrink / lr * lr
    length = 150
    usual = Sphere(lambda p: AdamW(p, repeat(step)), seed)
    converted = Sphere(lambda p: AdamW(p, adam_exponential(lr, step.weight_decay, beta1, beta2, eps)), seed)
    for t in range(1, length + 1):
        usual.step()
        found = converted.step()
        assert (found.beta1, found.beta2) == (pytest.approx(beta1 * a), pytest.approx(beta2 * a**2))
        assert_close(converted.weight() * a**t, usual.weight(), 1e-11)


def test_the_stream_comes_to_rest_at_the_closed_form():
    constant, closed = repeat(AdamStep(1e-3, 0.9, 0.95, 1e-8, 10.0)), adam_exponential(1e-3, 10.0, 0.9, 0.95, 1e-8)
    stream, exponential = (list(islice(s, 600)) for s in (adam_without_decay(constant), closed))
    for name in AdamStep.limits:
        assert getattr(stream[-1], name) == pytest.approx(getattr(exponential[-1], name), rel=1e-9)


def test_what_plain_adam_misses():
    """With the converted betas, lr / P' is a constant factor of the lr needed: 0.914 at β2 = .999, .999 at β2 = .95."""
    for beta2, factor in ((0.999, 0.914), (0.95, 0.999)):
        a = 1 - 1e-3 * 0.1
        assert (1 - 0.9 * a) / 0.1 * math.sqrt((1 - beta2) / (1 - beta2 * a**2)) == pytest.approx(factor, abs=5e-4)
        *_, last = islice(adam_exponential(1e-3, 0.1, 0.9, beta2), 20_000)
        assert last.lr * a**20_000 / 1e-3 == pytest.approx(1 / factor, rel=5e-4)


def test_errors_of_the_adam_streams():
    with pytest.raises(ValueError, match="step 1 cannot be converted: .*lr \\* weight_decay must be below 1"):
        list(adam_without_decay([AdamStep(0.1), AdamStep(2.0, weight_decay=0.5)]))
    with pytest.raises(ValueError, match="step 0 cannot be converted"):
        adam_exponential(2.0, 0.5)
    with pytest.raises(ValueError, match="step 0 already has weight_decay=0.1: apply adam_without_decay first"):
        next(adam_with_decay([AdamStep(0.1, weight_decay=0.1)], 0.1))
    for endless in (adam_without_decay(repeat(AdamStep(1.0, weight_decay=0.5))), adam_exponential(1.0, 0.5)):
        with pytest.raises(OverflowError, match="left float range.*undecayed"):
            list(islice(endless, 5000))


def test_the_adam_stream_is_a_stream():
    drawn = []
    endless = (drawn.append(t) or AdamStep(0.1, weight_decay=0.1) for t in count())
    converted = adam_with_decay(adam_without_decay(endless), 0.1)
    assert drawn == []
    next(converted), next(converted)
    assert drawn == [0, 1]
