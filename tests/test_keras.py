"""Keras keeps the learning rate inside the velocity: the closed form is exact there with another, constant momentum."""

from importlib.util import find_spec
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import export, schedules
from minibn.equivalence import fixed_point, remove_weight_decay, texp

LR, MOMENTUM, DECAY, START = 0.1, 0.9, 0.01, np.array([0.8, -0.5, 0.3])


def gradient(w):
    """Of a scale-invariant loss, u_1³ + u_1 u_2 of the direction u."""
    length = np.linalg.norm(w)
    u = w / length
    g = np.array([3 * u[0] ** 2 + u[1], u[0], 0.0])
    return (g - (g @ u) * u) / length


def pytorch_sgd(w, v, lr, momentum, decay, steps):
    """`v <- γ v + g + λ w; w <- w - η v`: the weights after each step."""
    weights = []
    for _ in range(steps):
        v = momentum * v + gradient(w) + decay * w
        w = w - lr * v
        weights.append(w)
    return np.array(weights)


def keras_sgd(w, u, rates, momentum):
    """Keras's documented update, `u <- μ u - η g; w <- w + u`, with one μ per step."""
    weights = []
    for lr, mu in zip(rates, np.broadcast_to(momentum, len(rates)), strict=True):
        u = mu * u - lr * gradient(w)
        w = w + u
        weights.append(w)
    return np.array(weights)


def gap(one, other):
    """The largest difference between the directions of two runs' weights, at any step."""
    one, other = (w / np.linalg.norm(w, axis=1, keepdims=True) for w in (one, other))
    return np.abs(one - other).max()


def growing(lr, momentum, decay, steps):
    return [step.lr for step in texp([(steps, lr)], momentum=momentum, weight_decay=decay)]


@given(st.floats(0.01, 0.1), st.floats(0, 0.95), st.floats(0, 1))
def test_the_closed_form_is_exact_in_keras_with_momentum_gamma_over_alpha_squared(lr, momentum, part):
    decay = part * min(0.99 * (1 - momentum**0.5) ** 2, 0.03) / lr  # up to Theorem 1.1's limit; more magnifies rounding
    alpha, kappa = fixed_point(lr, momentum, decay)
    mu, rates = momentum / alpha**2, growing(lr, momentum, decay, 40)
    assert 0 <= mu < 1
    at_rest = pytorch_sgd(START, kappa * START, lr, momentum, decay, 40)
    assert gap(at_rest, keras_sgd(START, np.zeros(3), rates, mu)) < 1e-9
    from_zero = pytorch_sgd(START, np.zeros(3), lr, momentum, decay, 40)
    assert gap(from_zero, keras_sgd(START, lr * alpha * kappa * START, rates, mu)) < 1e-9


def test_it_is_not_exact_with_the_momentum_of_pytorch():
    """The control: γ in place of γ / α²."""
    alpha, kappa = fixed_point(LR, MOMENTUM, DECAY)
    usual, rates = pytorch_sgd(START, kappa * START, LR, MOMENTUM, DECAY, 200), growing(LR, MOMENTUM, DECAY, 200)
    assert gap(usual, keras_sgd(START, np.zeros(3), rates, MOMENTUM / alpha**2)) < 1e-12
    assert gap(usual, keras_sgd(START, np.zeros(3), rates, MOMENTUM)) > 1e-2


def test_any_schedule_is_exact_with_a_momentum_that_changes():
    """μ_t = γ η_t / η_{t-1}."""
    usual = list(islice(schedules.cosine(LR, 100, momentum=MOMENTUM, weight_decay=DECAY), 80))
    w, v, weights = START, np.zeros(3), []
    for step in usual:
        v = step.momentum * v + gradient(w) + step.weight_decay * w
        w = w - step.lr * v
        weights.append(w)
    rates = np.array([step.lr for step in remove_weight_decay(usual, band=None)])
    changing = MOMENTUM * rates / np.concatenate([rates[:1], rates[:-1]])
    assert gap(np.array(weights), keras_sgd(START, np.zeros(3), rates, changing)) < 1e-12
    assert gap(np.array(weights), keras_sgd(START, np.zeros(3), rates, MOMENTUM)) > 1e-3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras on JAX
def test_kerass_own_optimizer(monkeypatch):
    """The same with `keras.optimizers.SGD`; its learning rate is float32."""
    monkeypatch.setenv("KERAS_BACKEND", "jax" if find_spec("jax") else "torch")
    keras = pytest.importorskip("keras")
    alpha, kappa = fixed_point(LR, MOMENTUM, DECAY)
    function = export.lr_function(texp([(60, LR)], momentum=MOMENTUM, weight_decay=DECAY), 60)

    class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return function(keras.ops.convert_to_tensor(step))

    def run(momentum):
        w = keras.Variable(START, dtype="float32")
        optimizer = keras.optimizers.SGD(LearningRate(), momentum=momentum)
        weights = []
        for _ in range(60):
            now = keras.ops.convert_to_numpy(w)
            optimizer.apply([keras.ops.convert_to_tensor(gradient(now.astype(float)), dtype="float32")], [w])
            weights.append(keras.ops.convert_to_numpy(w))
        return np.array(weights, dtype=float)

    usual = pytorch_sgd(START, kappa * START, LR, MOMENTUM, DECAY, 60)
    assert gap(usual, run(MOMENTUM / alpha**2)) < 1e-5
    assert gap(usual, run(MOMENTUM)) > 1e-3
