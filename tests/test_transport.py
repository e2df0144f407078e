"""Theorem B: AdamW without decay trains the same network if its state and eps are multiplied as `transport` says."""

import pytest
from hypothesis import given, settings
from optimizer_runs import Sphere, assert_close, random_steps, seeds

from minibn.equivalence import transport
from minibn.optim import AdamStep, AdamW, adamw


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
