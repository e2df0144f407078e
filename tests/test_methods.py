"""The optimisers by name, and Lion's own conversion as a schedule; that of AdamW is in `test_adam_streams`."""

import math
from dataclasses import replace
from itertools import count, islice, repeat

import numpy as np
import pytest
from common import broken
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_runs import KINDS, Sphere, assert_close, direction, random_steps, seeds

from minibn import nn
from minibn.equivalence import (
    LionFrame,
    converted_for,
    lion,
    lion_with_decay,
    lion_without_decay,
    optimizer_for,
    undecayed,
)
from minibn.equivalence.methods import METHODS
from minibn.optim import Lion, LionStep, Muon, MuonStep

# ---- Lion as a schedule for stock Lion ----


def same_lion(steps, seed, convert=lion_without_decay):
    """Lion under the converted schedule has the weights w / P, and its mean as `LionFrame` says."""
    usual, converted = Sphere(lambda p: Lion(p, steps), seed), Sphere(lambda p: Lion(p, convert(steps)), seed)
    frame = LionFrame()
    for t, step in enumerate(steps):
        usual.step()
        assert converted.step().weight_decay == 0
        _, frame = lion.remove_lion_step(step, frame)
        assert_close(converted.weight() * frame.scale, usual.weight(), message=f"step {t}")
    for p, other, mean, converted_mean in zip(usual.parameters, converted.parameters, usual.optimizer.mean,
                                              converted.optimizer.mean, strict=True):
        for ours, theirs in zip(frame.remove(p.data, mean), (other.data, converted_mean), strict=True):
            assert_close(ours, theirs, 1e-11)
        for ours, theirs in zip(frame.add(other.data, converted_mean), (p.data, mean), strict=True):
            assert_close(ours, theirs, 1e-11)


@settings(max_examples=6)
@given(seeds)
def test_lion_with_decay_is_lion_under_another_schedule(seed):
    same_lion(random_steps("lion", seed), seed)


BROKEN_LION = {
    "betas unchanged": ("LionStep(lr, beta1, beta2)", "LionStep(lr, step.beta1, step.beta2)"),
    "beta1 unchanged": ("LionStep(lr, beta1, beta2)", "LionStep(lr, step.beta1, beta2)"),
    "beta2 unchanged": ("LionStep(lr, beta1, beta2)", "LionStep(lr, beta1, step.beta2)"),
    "P for P'": ("step.lr / after if", "step.lr / scale if"),
    "c of the new mean": ("share = step.beta1 * a / c", "share = step.beta1 * a / beta_without_decay(step.beta2, a, c)[0]"),
    "c forgotten": ("LionFrame(after, scale, c, t", "LionFrame(after, scale, 1.0, t"),
    "P of the wrong step": ("LionFrame(after, scale,", "LionFrame(after, after,"),
}


@pytest.mark.parametrize("name", BROKEN_LION)
def test_broken_lion_streams_are_caught(name, monkeypatch):
    monkeypatch.setattr(lion, "remove_lion_step", broken(lion, "remove_lion_step", *BROKEN_LION[name]))
    with pytest.raises(AssertionError):
        same_lion(random_steps("lion", 0, 300), 0)


@settings(max_examples=6)
@given(seeds, st.floats(0, 3))
def test_a_lion_schedule_there_and_back_and_restated(seed, other):
    """Removing then adding the same weight decay is the identity; adding another gives the same run."""
    steps = random_steps("lion", seed)
    back = list(lion_with_decay(lion_without_decay(steps), [s.weight_decay for s in steps]))
    for step, again in zip(steps, back, strict=True):
        for name in step.limits:
            assert getattr(again, name) == pytest.approx(getattr(step, name), rel=1e-9, abs=1e-13), name
    restated = list(lion_with_decay(lion_without_decay(steps), other))
    assert {s.weight_decay for s in restated} == {other}
    usual, run = Sphere(lambda p: Lion(p, steps), seed), Sphere(lambda p: Lion(p, restated), seed)
    for _ in steps:
        usual.step()
        run.step()
    assert_close(direction(run), direction(usual))


def test_constant_lion_comes_to_rest_at_betas_that_stay():
    """β2 a, as Adam's β1 a, and lr grows by 1/a per step."""
    step = LionStep(1e-2, 0.9, 0.98, 0.5)
    late = list(islice(lion_without_decay(repeat(step)), 2000))[-2:]
    a = 1 - step.shrink
    assert late[1].lr / late[0].lr == pytest.approx(1 / a)
    assert late[1].beta2 == pytest.approx(0.98 * a)
    share = 0.9 * a * (1 - 0.98) / (1 - 0.98 * a)
    assert late[1].beta1 == pytest.approx(share / (share + 0.1))


def test_errors_of_the_lion_streams():
    with pytest.raises(ValueError, match=r"step 1 cannot be converted: .* lr \* weight_decay must be below 1"):
        list(lion_without_decay([LionStep(0.1), LionStep(1.0, weight_decay=1.0)]))
    with pytest.raises(ValueError, match="step 0 already has weight_decay=1.0: apply lion_without_decay first"):
        list(lion_with_decay([LionStep(0.1, weight_decay=1.0)], 0.5))
    with pytest.raises(OverflowError, match=r"step \d+: .* left float range .* equivalence.undecayed"):
        for _ in lion_without_decay(repeat(LionStep(0.5, weight_decay=1.9))):
            pass


# ---- the table of methods ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_steps_says_which_optimiser(kind):
    make, steps = KINDS[kind][0], random_steps(kind, 0, 30)
    assert METHODS[kind].optimizer is make
    usual = Sphere(lambda p: optimizer_for(p, iter(steps)), 0)
    assert type(usual.optimizer) is make
    converted = Sphere(lambda p: converted_for(p, iter(steps), band=2.0), 0)
    for _ in steps:
        usual.step()
        assert converted.step().shrink == 0
    assert_close(direction(converted), direction(usual))
    assert METHODS[kind].numbers == tuple(name for name in METHODS[kind].step.limits
                                          if name not in ("kick", "rescale", "lookahead", "shrink"))
    plain = [replace(s, kick=0.0, rescale=1.0) for s in steps] if kind == "sgd" else steps
    assert METHODS[kind].scale_after(plain, 30) == pytest.approx(math.prod(1 - s.shrink for s in steps), rel=1e-12)
    with pytest.raises(ValueError, match="the schedule has 30 steps"):
        METHODS[kind].scale_after(plain, 31)


def test_a_schedule_of_nothing_or_of_something_else():
    w = [nn.Parameter(np.ones(2))]
    with pytest.raises(ValueError, match="the schedule has no steps"):
        optimizer_for(w, [])
    with pytest.raises(TypeError, match=r"step objects \(Step, AdamStep, LionStep, MuonStep\); this one has 0.1"):
        converted_for(w, [0.1])


def test_muon_as_a_schedule_is_refused_with_the_reason_and_the_remedy():
    for refused in (lambda: METHODS["muon"].remove([MuonStep(0.1)]), lambda: METHODS["muon"].add([MuonStep(0.1)], 0.1)):
        with pytest.raises(ValueError, match=r"two different numbers. Convert the optimiser instead: equivalence.undecayed\("):
            refused()


def test_no_schedule_of_muon_is_the_converted_one():
    """The reason of that refusal: with the momentum that its average needs, or with the given one, the run is another."""
    step, a = MuonStep(0.01, 0.9, 5.0), 0.95
    c = (1 - 0.9 * a) / (1 - 0.9)
    for momentum in (0.9, 1 - c * (1 - 0.9)):
        usual = Sphere(lambda p: Muon(p, repeat(step)), 0)
        grown = (MuonStep(0.01 / a ** (t + 1), momentum) for t in count())
        other = Sphere(lambda p, grown=grown: Muon(p, grown), 0)
        for _ in range(60):
            usual.step()
            other.step()
        assert np.linalg.norm(direction(other) - direction(usual)) > 1e-3


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("band", [None, 2.0])
def test_the_steps_that_a_converted_optimiser_will_have_taken(kind, band):
    steps = random_steps(kind, 0, 100)
    run = Sphere(lambda p: undecayed(KINDS[kind][0](p, steps), band=band), 0)
    assert list(run.optimizer.as_taken(steps)) == [run.step() for _ in steps]
    assert run.optimizer.is_where_its_parameters_are()
