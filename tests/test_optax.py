"""Theorem A in optax: the chain without weight decay trains what optax's own optimiser with it trains."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from common import broken

pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

from minibn import optax as ours
from minibn.optax import State, original_weights, without_weight_decay

STEPS = 300


@pytest.fixture(autouse=True, params=["float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


in_float32 = pytest.mark.parametrize("dtype", ["float32"], indirect=True)


def lr(peak):
    """Warm-up and cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, 30, STEPS, 0.1 * peak)


# ---- a scale-invariant loss that is new at each step ----


def sphere(make, steps=STEPS, dtype="float64", carry=None, first=0):
    """(weights, state) of a run on L_t(w) = ξ_t · w / |w|, `make` being the optimizer; from `carry`, at step `first`."""
    rng = np.random.default_rng(0)
    start, noise = rng.standard_normal((8, 3)).astype(dtype), rng.standard_normal((steps, 8, 3)).astype(dtype)

    def one(w, state, xi):
        norm = jnp.sqrt(jnp.sum(w**2))
        updates, state = make.update((xi - jnp.sum(xi * w) / norm**2 * w) / norm, state, w)
        return optax.apply_updates(w, updates), state

    one = jax.jit(one)
    w, state = carry or (jnp.asarray(start), make.init(jnp.asarray(start)))
    for xi in noise[first:]:
        w, state = one(w, state, xi)
    return w, state


CHAINS = {  # (optax's own, what it makes of gradients, lr, weight decay)
    "adamw": (optax.adamw, optax.scale_by_adam, 1e-2, 1.5),
    "lion": (optax.lion, optax.scale_by_lion, 2e-3, 7.5),
    "sgdw": (lambda lr, weight_decay: optax.chain(optax.trace(0.9), optax.add_decayed_weights(weight_decay),
                                                  optax.scale_by_learning_rate(lr)),
             lambda: optax.trace(0.9), 1e-2, 1.5),
}


def pair(name, clip=None, rate=lr, factor=1.0, **options):
    """(optax's own, ours): with a clip of the global norm first, the weight decay times `factor`."""
    own, direction, peak, decay = CHAINS[name]
    before = [optax.clip_by_global_norm(clip)] if clip else []
    return (optax.chain(*before, own(rate(peak), weight_decay=decay * factor)),
            without_weight_decay(optax.chain(*before, direction()), rate(peak), decay * factor, **options))


def gap(usual, converted, state):
    """Largest difference of the two runs' weights, relative to the norm."""
    return float(jnp.linalg.norm(original_weights(converted, state) - usual) / jnp.linalg.norm(usual))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_without_weight_decay_is_the_same_run(name, clip):
    """Warm-up and cosine, down to P = 0.1."""
    usual, converted = pair(name, clip)
    (one, _), (other, state) = sphere(usual), sphere(converted)
    assert 0.05 < float(state.scale) < 0.15
    assert int(state.steps) == STEPS
    assert gap(one, other, state) < 1e-11
    assert float(jnp.linalg.norm(other)) > 5 * float(jnp.linalg.norm(one))


@in_float32
def test_in_float32_only_rounding_differs(dtype):
    usual, converted = pair("adamw", 0.5)
    (one, _), (other, state) = sphere(usual, dtype=dtype), sphere(converted, dtype=dtype)
    assert other.dtype == state.scale.dtype == "float32"
    assert gap(one, other, state) < 1e-5


@pytest.mark.parametrize("band", [2.0, 8.0, 2.0**32])
def test_weights_stay_in_the_band_however_small_p_becomes(band):
    """P would be 1e-20. The weights are multiplied by powers of two, and the run is the same."""
    usual, converted = pair("adamw", 0.5, rate=lambda peak: peak, factor=10.0, band=band)
    (one, _), (other, state) = sphere(usual), sphere(converted)
    assert 0.85**STEPS < 1e-20
    assert 1 / band <= float(state.scale) <= 1
    assert float(jnp.linalg.norm(other)) == pytest.approx(float(jnp.linalg.norm(one) / state.scale))
    assert gap(one, other, state) < 1e-12


@in_float32
def test_the_smallest_decay_is_not_lost_in_float32(dtype):
    """10,000 steps of δ = 2e-8: 1 - δ is 1 in float32."""
    zero, shrink = jnp.zeros(()), jnp.asarray(2e-8)
    scale, lost = jax.lax.fori_loop(0, 10_000, lambda _, pair: ours._shrunk(*pair, shrink), (jnp.ones(()), zero))
    assert scale.dtype == dtype
    assert float(scale) == pytest.approx(1 - 2e-4, abs=2e-7)
    assert float(jnp.ones(()) - shrink) == 1.0


def test_it_is_a_function_of_the_weights_of_the_ordinary_run():
    """An inner chain that looks at the weights sees those: here L2 decay before Adam, which nothing could remove."""
    inside = [optax.add_decayed_weights(0.3), optax.scale_by_adam()]
    usual = optax.chain(*inside, optax.add_decayed_weights(1.5), optax.scale_by_learning_rate(1e-2))
    (one, _), (other, state) = sphere(usual), sphere(without_weight_decay(optax.chain(*inside), 1e-2, 1.5))
    assert gap(one, other, state) < 1e-11


BROKEN = {
    "gradients as they are": ("_times(1 / state.scale, updates)", "updates"),
    "P for P'": ("(lr / after)", "(lr / state.scale)"),
    "no P": ("(lr / after)", "lr"),
    "the band does not reach P": ("State(after / factor,", "State(after,"),
    "the band does not reach the weights": ("(factor - 1) * w - factor", "0 * w - factor"),
    "the band forgets the update": ("(factor - 1) * w - factor * (", "(factor - 1) * w - ("),
    "weights as they are": ("inner.update(gradients, state.inner, weights,", "inner.update(gradients, state.inner, params,"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_variants_are_caught(name):
    wrong_variant = broken(ours, "without_weight_decay", *BROKEN[name])
    inside = [optax.add_decayed_weights(0.3), optax.clip_by_global_norm(0.5), optax.scale_by_adam(eps=1e-3)]
    usual = optax.chain(*inside, optax.add_decayed_weights(5.0), optax.scale_by_learning_rate(1e-2))
    (one, _), *others = (sphere(make, steps=60) for make in (
        usual, *(f(optax.chain(*inside), 1e-2, 5.0, band=4.0) for f in (without_weight_decay, wrong_variant))))
    right, wrong = (gap(one, *other) for other in others)
    assert right < 1e-12
    assert not wrong < 1e-3


# ---- with the rest of optax and JAX ----


def loss(params, data):
    """The normalisation without eps cancels the scale of the matrix; the gain and the bias are not scale-invariant."""
    x, y = data
    x = x @ params["matrix"]
    x = (x - jnp.mean(x, axis=0)) / jnp.std(x, axis=0)
    return jnp.mean((jnp.tanh(x) * params["gain"] + params["bias"] - y) ** 2)


def train(invariant, steps=STEPS):
    """(losses, parameters, state) of a network: the matrix under `invariant`, the others under Adam, by `optax.partition`."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((64, 6)), rng.standard_normal((64, 4))
    params = {"matrix": jnp.asarray(rng.standard_normal((6, 4))), "gain": jnp.ones(4), "bias": jnp.zeros(4)}
    make = optax.partition({"invariant": invariant, "rest": optax.adam(1e-2)},
                           {"matrix": "invariant", "gain": "rest", "bias": "rest"})

    def one(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, data)
        updates, state = make.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jax.jit(lambda carry: jax.lax.scan(one, carry, length=steps))((params, make.init(params)))
    return losses, params, state


def test_a_network_under_partition_has_the_same_losses():
    (one, params, _), (other, grown, state) = (train(make) for make in pair("adamw", 0.05))
    assert float(jnp.max(jnp.abs(one - other))) < 1e-11
    assert one[-1] < one[0]
    back = original_weights(grown["matrix"], state)
    np.testing.assert_allclose(back, params["matrix"], rtol=0, atol=1e-9)
    assert float(jnp.linalg.norm(grown["matrix"])) > 5 * float(jnp.linalg.norm(params["matrix"]))


def test_hyperparameters_can_be_injected():
    direction = optax.scale_by_adam()
    injected = optax.inject_hyperparams(without_weight_decay)(direction, lr(1e-2), weight_decay=1.5)
    one, (other, state) = sphere(without_weight_decay(direction, lr(1e-2), 1.5), steps=50)[0], sphere(injected, steps=50)
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert state.hyperparams["weight_decay"] == 1.5


def test_under_vmap_each_run_is_its_own():
    make = without_weight_decay(optax.scale_by_adam(), 1e-2, 5.0)
    w, g = np.random.default_rng(0).standard_normal((2, 3, 5))
    state = jax.vmap(make.init)(w)
    updates, state = jax.vmap(make.update)(g, state, w)
    for i in range(3):
        alone, after = make.update(g[i], make.init(w[i]), w[i])
        np.testing.assert_allclose(updates[i], alone, rtol=1e-14)
        assert float(state.scale[i]) == float(after.scale)


def test_a_run_goes_on_from_its_saved_state_bit_for_bit():
    make = pair("adamw", 0.5, factor=3.0, band=4.0)[1]
    whole, _ = sphere(make, steps=40)
    leaves, tree = jax.tree.flatten(sphere(make, steps=25))
    np.savez(file := io.BytesIO(), *map(np.asarray, leaves))
    file.seek(0)
    saved = np.load(file)
    carry = jax.tree.unflatten(tree, [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(leaves))])
    resumed, _ = sphere(make, steps=40, carry=carry, first=25)
    np.testing.assert_array_equal(whole, resumed)


# ---- what is refused ----


def test_decay_through_zero_is_refused_and_nan_inside_jit():
    w = jnp.ones(3)
    for rate, decay in ((0.5, 2.0), (0.5, -0.1), (lambda step: 0.5 + step, lambda step: 2.0)):
        make = without_weight_decay(optax.scale_by_adam(), rate, decay)
        with pytest.raises(ValueError, match="lr \\* weight_decay must be from 0 to below 1, got"):
            make.update(w, make.init(w), w)
    updates, state = jax.jit(make.update)(w, make.init(w), w)
    assert np.isnan(updates).all()
    assert np.isnan(state.scale)


@pytest.mark.parametrize("band", [1.0, 0.5, float("nan"), float("inf")])
def test_bad_bands(band):
    with pytest.raises(ValueError, match="band must be a finite number above 1"):
        without_weight_decay(optax.scale_by_adam(), 0.1, 0.1, band=band)


def test_update_needs_the_parameters():
    make, w = without_weight_decay(optax.scale_by_adam(), 0.1, 0.1), jnp.ones(3)
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(gradients, state, params\)"):
        make.update(w, make.init(w))


def test_original_weights_need_one_state():
    make, w = without_weight_decay(optax.scale_by_adam(), 0.1, 0.1), jnp.ones(3)
    one = make.init(w)
    assert isinstance(one, State)
    for state, count in ((optax.adam(0.1).init(w), 0), ((one, one), 2)):
        with pytest.raises(ValueError, match=f"this one has {count}"):
            original_weights(w, state)


def test_without_optax_the_error_says_what_to_install():
    code = "import minibn, sys; assert 'optax' not in sys.modules; sys.modules['optax'] = None; import minibn.optax"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, env=dict(os.environ),
                          capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "ImportError: minibn.optax needs optax, which brings JAX: pip install optax"
