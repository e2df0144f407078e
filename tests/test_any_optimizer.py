"""Theorems A, B and C: decoupled weight decay can be removed from every optimiser, exactly, in three ways.

`same_run` is the statement of Theorem A, `same_adam` that of Theorem C; hypothesis checks both over
random schedules, and the tests of broken variants check that they fail as soon as one line is
wrong.
"""

import math
from dataclasses import dataclass, replace
from itertools import count, islice, repeat
from typing import ClassVar

import numpy as np
import pytest
from common import broken
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import backend, nn, optim, schedules
from minibn.equivalence import (
    AdamFrame,
    adam,
    adam_exponential,
    adam_with_decay,
    adam_without_decay,
    any_optimizer,
    clip_global_norm,
    decayed,
    ema,
    frame_after,
    lookahead,
    remove_weight_decay,
    swa,
    transport,
    undecayed,
)
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Optimizer, Step, adamw

seeds = st.integers(0, 2**32 - 1)


def sgd_step(rng, lr, shrink):
    return Step(lr, rng.uniform(0, 0.95), shrink=shrink, lookahead=rng.choice([0.0, 0.5]), kick=rng.choice([0.0, 1e-2]),
                rescale=rng.choice([0.5, 1.0, 2.0]))


KINDS = {
    "sgd": (SGD, sgd_step),
    "adamw": (AdamW, lambda rng, lr, shrink: AdamStep(
        lr, rng.uniform(0, 0.95), rng.uniform(0.8, 0.999), 10 ** rng.uniform(-8, -2), shrink / lr)),
    "lion": (Lion, lambda rng, lr, shrink: LionStep(lr, rng.uniform(0, 0.95), rng.uniform(0.8, 0.99), shrink / lr)),
    "muon": (Muon, lambda rng, lr, shrink: MuonStep(lr, rng.uniform(0, 0.95), shrink / lr)),
}
kinds = st.sampled_from(list(KINDS))


def random_steps(kind, seed, length=600):
    """lr over 3 decades and the decay of a step over 2, all numbers new at each step; P ends below 1e-3."""
    rng, make = np.random.default_rng(seed), KINDS[kind][1]
    steps = [make(rng, 10 ** rng.uniform(-4, -1), 10 ** rng.uniform(-3, -1.2)) for _ in range(length)]
    return [replace(s, lr=0.0) if rng.random() < 0.05 else s for s in steps]


SHAPES = (8, 2), (2, 9)  # far from square: singular values of noise are far from 0, where Muon would magnify rounding


class Sphere:
    """A scale-invariant loss of two matrices together that changes at every step: `L_t(w) = ξ_t · w / |w|`."""

    def __init__(self, make, seed, move=lambda x: x):
        self.rng, self.move = np.random.default_rng(seed), move
        self.parameters = [nn.Parameter(move(self.rng.standard_normal(shape))) for shape in SHAPES]
        self.optimizer = make(self.parameters)

    def backward(self):
        norm = float(backend.norm([p.data for p in self.parameters]))
        xi = [self.move(self.rng.standard_normal(p.data.shape)) for p in self.parameters]
        along = sum(float(np.sum(backend.to_numpy(x * p.data))) for x, p in zip(xi, self.parameters, strict=True)) / norm
        for x, p in zip(xi, self.parameters, strict=True):
            p.grad = (x - along / norm * p.data) / norm

    def step(self):
        self.backward()
        return self.optimizer.step()

    def weight(self):
        """The weights as one vector."""
        return np.concatenate([backend.to_numpy(p.data).ravel() for p in self.parameters])


def direction(run):
    return run.weight() / np.linalg.norm(run.weight())


def assert_close(one, other, atol=1e-12, message=""):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol * np.linalg.norm(other), err_msg=message)


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


# ---- what is refused ----


@dataclass(frozen=True, slots=True)
class AnyStep(optim.StepNumbers):
    lr: float
    weight_decay: float = 0.0
    degree: ClassVar[int] = 0
    limits: ClassVar = {"lr": (0, math.inf), "weight_decay": (0, math.inf)}


class Own(Optimizer[AnyStep]):
    step_type, entries = AnyStep, ("mean",)


class Decoupled(Own):
    def update(self, step, weight, gradient, *state):
        mean = 0.9 * state[0] + gradient
        return (1 - step.shrink) * weight - step.lr * np.tanh(mean), mean


class CoupledAdam(Own):
    def update(self, step, weight, gradient, *state):
        mean = 0.9 * state[0] + gradient + step.weight_decay * weight
        return weight - step.lr * np.sign(mean), mean


class CoupledSign(Own):
    """Its averages are free of decay, its direction is not."""

    def update(self, step, weight, gradient, *state):
        return weight - step.lr * np.sign(gradient + step.weight_decay * weight), state[0]


class InsideRatio(Own):
    def update(self, step, weight, gradient, *state):
        u = gradient + step.weight_decay * weight
        return weight - step.lr * np.linalg.norm(weight) / np.linalg.norm(u) * u, state[0]


class OutsideRatio(Own):
    def update(self, step, weight, gradient, *state):
        u = gradient / np.linalg.norm(gradient)
        return (1 - step.shrink) * weight - step.lr * np.linalg.norm(weight) * u, state[0]


class Cautious(Own):
    def update(self, step, weight, gradient, *state):
        return weight * (1 - step.shrink * (gradient * weight > 0)) - step.lr * gradient, state[0]


def test_an_optimiser_of_ones_own_is_converted_too():
    steps = [AnyStep(0.1, 0.1 + 0.01 * t) for t in range(100)]
    usual, converted = Sphere(lambda p: Decoupled(p, steps), 0), Sphere(lambda p: undecayed(Decoupled(p, steps)), 0)
    for _ in steps:
        usual.step()
        converted.step()
    assert_close(converted.weight() * converted.optimizer.scale, usual.weight())


@pytest.mark.parametrize(("make", "message"), [
    (CoupledAdam, r"CoupledAdam adds weight decay to its gradients \(L2\): .*cannot be removed. Use decoupled"),
    (CoupledSign, "weight decay of CoupledSign does not multiply all weights by .*cannot be removed. Use decoupled decay"),
    (InsideRatio, "the update of InsideRatio depends on the weights, .*inside the ratio cannot be removed"),
    (OutsideRatio, r"the update of OutsideRatio depends .*Decay outside it can: train .* lr / \(1 - lr \* weight_decay\)"),
    (Cautious, "weight decay of Cautious does not multiply all weights .*of some entries alone, cannot be removed")])
def test_decay_that_is_not_decoupled_is_refused(make, message):
    run = Sphere(lambda p: undecayed(make(p, [AnyStep(0.1), AnyStep(0.1, 0.1)])), 0)
    run.step()  # without decay there is nothing to refuse
    before = run.weight()
    with pytest.raises(ValueError, match=message):
        run.step()
    np.testing.assert_array_equal(run.weight(), before)


def test_what_has_no_conversion():
    def first_step(kind, step, **options):
        return Sphere(lambda p: undecayed(KINDS[kind][0](p, [step]), **options), 0).step()

    with pytest.raises(ValueError, match=r"step 0 cannot be converted: .* by 0.*lr \* weight_decay must be below 1"):
        first_step("adamw", AdamStep(2.0, weight_decay=0.5))
    with pytest.raises(ValueError, match="weight_decay=0.1.* that is L2 decay.*remove_weight_decay.*schedules.decoupled"):
        first_step("sgd", Step(0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="band must be a finite number above 1"):
        first_step("lion", LionStep(0.1), band=1.0)
    with pytest.raises(TypeError, match=r"converted already: use its add\(\)"):
        undecayed(undecayed(Lion([nn.Parameter(np.ones(2))], [])))
    with pytest.raises(ValueError, match="weight_decay=-1"):
        decayed(Lion([nn.Parameter(np.ones(2))], []), -1)
    run = Sphere(lambda p: undecayed(Lion(p, repeat(LionStep(1.0, weight_decay=0.9))), band=None), 0)

    def long_run():
        for _ in range(400):
            run.step()
            for p in run.parameters:
                p.data = np.ones_like(p.data)  # they would overflow too

    with pytest.raises(OverflowError, match=r"left float range; use band=2.0\*\*32"):
        long_run()
    with pytest.raises(RuntimeError, match="the schedule ended after 0 steps"):
        undecayed(Lion([nn.Parameter(np.ones(2))], [])).step()


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


# ---- Theorem B ----


def transported(steps, seed, transport=transport):
    """AdamW without decay on the gradients as they are, its state and eps multiplied as `transport` says; yields (w̃, P)."""
    run = Sphere(lambda p: AdamW(p, []), seed)
    states = [(p.data * 0, p.data * 0) for p in run.parameters]
    scale = previous = 1.0
    for q, step in enumerate(steps, 1):
        run.backward()
        after = (1 - step.shrink) * scale
        factors = transport({"mean": 1, "square": 2}, {"eps": 1}, 0, previous=previous, scale=scale, after=after)
        converted = AdamStep(step.lr * factors.lr, step.beta1, step.beta2, step.eps * factors.constants["eps"])
        for i, (p, (m, v)) in enumerate(zip(run.parameters, states, strict=True)):
            m, v = factors.state["mean"] * m, factors.state["square"] * v
            p.data, *states[i] = adamw.update(converted, q, p.data, m, v, p.grad)
        scale, previous = after, scale
        yield run.weight(), scale


def same_transported(steps, seed, **options):
    usual = Sphere(lambda p: AdamW(p, steps), seed)
    for w, scale in transported(steps, seed, **options):
        usual.step()
        assert_close(w * scale, usual.weight())


@settings(max_examples=8)
@given(seeds)
def test_transported_state_trains_the_same_network(seed):
    """Theorem B."""
    same_transported(random_steps("adamw", seed), seed)


@pytest.mark.parametrize(("state", "constants", "degree"), [
    ({"mean": 0, "square": 2}, {"eps": 1}, 0), ({"mean": 1, "square": 1}, {"eps": 1}, 0),
    ({"mean": 1, "square": 2}, {"eps": 0}, 0), ({"mean": 1, "square": 2}, {"eps": 1}, 1)])
def test_wrong_degrees_are_caught(state, constants, degree):
    with pytest.raises(AssertionError):
        same_transported(random_steps("adamw", 0, 50), 0,
                         transport=lambda *_, **scales: transport(state, constants, degree, **scales))


# ---- Theorem C ----


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


# ---- averages and clipping ----


def pair(kind, seed, length):
    steps, make = random_steps(kind, seed, length), KINDS[kind][0]
    if kind == "sgd":
        steps = [replace(s, kick=0.0, rescale=1.0) for s in steps]
    return Sphere(lambda p: make(p, steps), seed), Sphere(lambda p: undecayed(make(p, steps), band=2.0), seed)


@settings(max_examples=6)
@given(kinds, seeds)
def test_averages_of_the_converted_run_are_those_of_the_run_with_decay(kind, seed):
    usual, converted = pair(kind, seed, 200)
    exponential, plain = usual.weight(), 0.0
    ours, naive = (converted.weight(), 1.0), converted.weight()
    mean = 0.0, 1.0
    for n in range(1, 201):
        usual.step()
        converted.step()
        w, scale = converted.weight(), converted.optimizer.scale
        exponential, plain = 0.98 * exponential + 0.02 * usual.weight(), plain + usual.weight() / 200
        ours, mean, naive = ema(0.98, *ours, w, scale), swa(n, *mean, w, scale), 0.98 * naive + 0.02 * w
    assert_close(ours[0] * ours[1], exponential)
    assert_close(mean[0] * mean[1], plain)
    assert np.linalg.norm(naive / np.linalg.norm(naive) - exponential / np.linalg.norm(exponential)) > 1e-4


@settings(max_examples=6)
@given(kinds, seeds)
def test_lookahead_of_the_converted_run(kind, seed):
    usual, converted = pair(kind, seed, 60)
    slow, ours = usual.weight(), (converted.weight(), 1.0)

    def put(run, vector):
        first = run.parameters[0].data.size
        for p, part in zip(run.parameters, (vector[:first], vector[first:]), strict=True):
            p.data = part.reshape(p.data.shape)

    for t in range(60):
        usual.step()
        converted.step()
        if t % 5 == 4:
            slow = 0.5 * slow + 0.5 * usual.weight()
            put(usual, slow)
            ours = lookahead(0.5, *ours, converted.weight(), converted.optimizer.scale)
            put(converted, ours[0])
            converted.optimizer.scale = ours[1]
        assert_close(converted.weight() * converted.optimizer.scale, usual.weight())


def test_bad_weights_of_averages():
    with pytest.raises(ValueError, match="mu must lie between 0 and 1, got 1.5"):
        ema(1.5, 0.0, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        swa(0, 0.0, 1.0, 0.0, 1.0)


class WithHead(Sphere):
    """A scale-invariant layer and a head that is not: L = ξ · (1 + b) w / |w| + |b|² / 2."""

    def __init__(self, make, head, seed):
        super().__init__(make, seed)
        self.b = nn.Parameter(np.full(SHAPES[1], 0.1))
        self.head = head([self.b])

    def clipped(self, clip):
        norm = float(backend.norm([p.data for p in self.parameters]))
        self.backward()
        factor = 1 + self.b.data.sum()
        for p in self.parameters:
            p.grad = factor * p.grad
        self.b.grad = self.b.data + np.sum(self.parameters[1].data) / norm
        clip([self.optimizer, self.head])
        self.optimizer.step()
        self.head.step()


@settings(max_examples=6)
@given(kinds, seeds)
def test_clipping_by_the_norm_of_converted_and_other_gradients(kind, seed):
    steps, make = random_steps(kind, seed, 100), KINDS[kind][0]

    def head(p):
        return AdamW(p, repeat(AdamStep(1e-2, weight_decay=0.1)))

    usual, converted, naive = (WithHead(lambda p, f=f: f(make(p, steps)), head, seed)
                               for f in (lambda o: o, undecayed, undecayed))
    for _ in steps:
        usual.clipped(lambda optimizers: clip_global_norm(optimizers, 0.3))
        converted.clipped(lambda optimizers: clip_global_norm(optimizers, 0.3))
        naive.clipped(lambda optimizers: clip_global_norm(optimizers, 0.3, scales=[1.0, 1.0]))
        assert_close(converted.weight() * converted.optimizer.scale, usual.weight(), 1e-11)
        np.testing.assert_allclose(converted.b.data, usual.b.data, rtol=0, atol=1e-11)  # it begins with 0.1, and passes 0
    assert np.linalg.norm(naive.b.data - usual.b.data) > 1e-6


def test_clipping_with_a_converted_schedule_of_sgd():
    steps = [Step(0.1, 0.9, 0.02)] * 50
    usual, converted = (Sphere(lambda p, s=s: SGD(p, s), 0) for s in (steps, remove_weight_decay(steps)))
    for t in range(50):
        for run, scale in ((usual, 1.0), (converted, frame_after(steps, t).scale)):
            run.backward()
            clip_global_norm([run.optimizer], 0.5, scales=[scale])
            run.optimizer.step()
    assert_close(direction(converted), direction(usual))


def test_clipping_is_torchs(library):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal((3, 2)), rng.standard_normal(4)]
    for max_norm in (0.5, 100.0):
        ours = [nn.Parameter(library.array(0 * g)) for g in gradients]
        theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in gradients]
        for p, q, g in zip(ours, theirs, gradients, strict=True):
            p.grad, q.grad = library.array(g), torch.tensor(g)
        norm = clip_global_norm([SGD(ours[:1], schedules.constant(0.1)), SGD(ours[1:], schedules.constant(0.1))], max_norm)
        total = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        assert float(norm) == pytest.approx(float(total), rel=1e-14)
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(backend.to_numpy(p.grad), q.grad.numpy(), rtol=5e-6)  # torch adds 1e-6 to the norm
    with pytest.raises(ValueError, match="max_norm above 0, got 0"):
        clip_global_norm([SGD(ours, [])], 0)
