"""Averages of converted weights, and Lookahead, are those of the run with weight decay."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from optimizer_runs import KINDS, Sphere, assert_close, kinds, random_steps, seeds

from minibn.equivalence import ema, lookahead, swa, undecayed


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
