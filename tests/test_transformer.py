"""Layers of a transformer: each is the derivative of itself, PyTorch's numbers, and scales as theory says."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import models, nn
from minibn.invariance import loss_function, probe, symmetries
from minibn.testing import check_gradient, check_layer, distinct

seeds = st.integers(0, 2**32 - 1)
KW = {"dtype": "float64"}
LAYERS = {
    "rms": lambda rng: nn.RMSNorm(4, eps=0.0, **KW),
    "rms without gain": lambda rng: nn.RMSNorm(4, eps=0.1, affine=False, **KW),
    "layer norm per position": lambda rng: nn.LayerNorm(4, eps=0.0, each_position=True, **KW),
    "gated mlp": lambda rng: nn.GatedMLP(4, 3, rng=rng, **KW),
    "positions": lambda rng: nn.Positions(5, 4, rng=rng, **KW),
    "linear": lambda rng: nn.Linear(4, 3, rng=rng, **KW),
    "gelu": lambda rng: nn.GELU(), "silu": lambda rng: nn.SiLU(), "square": lambda rng: nn.Square(),
}
ATTENTION = {
    "plain": {}, "grouped": {"num_kv_heads": 1}, "rope": {"rope": 100.0},
    "qk-norm": {"qk_norm": lambda size: nn.RMSNorm(size, eps=0.0, **KW)},
    "all": {"num_kv_heads": 1, "rope": 100.0, "qk_norm": lambda size: nn.RMSNorm(size, eps=0.0, affine=False, **KW)},
}


def attention(name, rng):
    return nn.CausalSelfAttention(4, 2, rng=rng, **ATTENTION[name], **KW)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=5)
@given(seed=seeds)
def test_layers_of_sequences(name, seed, arithmetic):
    rng = np.random.default_rng(seed)
    check_layer(LAYERS[name](rng), distinct(rng, (2, 3, 4)), rng=rng)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, arithmetic):
    rng = np.random.default_rng(0)
    check_layer(attention(name, rng), distinct(rng, (2, 3, 4)), rng=rng)


def test_embedding(arithmetic):
    rng = np.random.default_rng(0)
    check_layer(nn.Embedding(5, 3, rng=rng, **KW), rng.integers(5, size=(2, 4)), rng=rng)


def test_attention_sees_no_later_position():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 4))
    layer = attention("all", rng)
    before = layer(x)
    x[0, 3:] += 1
    after = layer(x)
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    assert np.abs(before[0, 3:] - after[0, 3:]).max() > 1e-3


def test_pytorch_computes_the_same():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 8))
    t = torch.tensor(x, requires_grad=True)
    layer = nn.CausalSelfAttention(8, 4, 2, rng=rng, **KW)
    q, k, v = ((t @ torch.tensor(linear.weight.data)).reshape(2, 5, -1, 2).transpose(1, 2)
               for linear in (layer.q, layer.k, layer.v))
    k, v = (one.repeat_interleave(2, dim=1) for one in (k, v))  # two neighbouring query heads share one
    theirs = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 8)
    pairs = [(layer, theirs @ torch.tensor(layer.out.weight.data)),
             (nn.RMSNorm(8, eps=0.1, **KW), functional.rms_norm(t, (8,), eps=0.1)),
             (nn.LayerNorm(8, eps=0.1, each_position=True, **KW), functional.layer_norm(t, (8,), eps=0.1)),
             (nn.SiLU(), functional.silu(t)), (nn.Square(), t * t)]
    pairs += [(nn.GELU(), min((functional.gelu(t, approximate=how) for how in ("none", "tanh")),
                              key=lambda y: np.abs(y.detach().numpy() - nn.GELU()(x)).max()))]
    for ours, expected in pairs:
        y = ours(x)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-10, err_msg=str(ours))
        dy = rng.standard_normal(y.shape)
        (gradient,) = torch.autograd.grad(expected, t, torch.tensor(dy), retain_graph=True)
        np.testing.assert_allclose(ours.backward(dy), gradient.numpy(), rtol=0, atol=1e-10, err_msg=str(ours))


# ---- which weights of a transformer may be rescaled ----


def gpt(width=8, **options):
    rng = np.random.default_rng(0)
    return models.gpt(7, length=6, width=width, depth=1, heads=2, eps=0.0, rng=rng, dtype="float64", **options)


STREAM = ("embedding.weight", "block1.mix.branch.attention.out.weight", "block1.feed.branch.mlp.down.weight")
Q, K, V, OUT = (f"block1.mix.branch.attention.{name}.weight" for name in ("q", "k", "v", "out"))
GATE, UP, DOWN = (f"block1.feed.branch.mlp.{name}.weight" for name in ("gate", "up", "down"))
PLAIN = {"affine": False}
GROUPS = {  # what writes into the residual stream scales together; a norm right after a matrix frees it
    "pre-norm": (PLAIN, [STREAM]),
    "gains": ({}, [STREAM]),
    "qk-norm": ({**PLAIN, "qk_norm": True}, [STREAM, (Q,), (K,)]),
    "tied": ({**PLAIN, "tied": True}, []),
    "peri-norm and qk-norm": ({**PLAIN, "norm_after": True, "qk_norm": True}, [(Q,), (K,), (V,), (OUT,), (UP,), (DOWN,)]),
    "relu": ({**PLAIN, "mlp": "relu"}, [STREAM]),
    "relu squared": ({**PLAIN, "mlp": "relu2"}, [STREAM]),
    "gelu, learned positions": ({**PLAIN, "mlp": "gelu", "positions": "learned"}, [(*STREAM, "positions.weight")]),
    "norm after the embedding": ({**PLAIN, "norm_embedding": True}, [("embedding.weight",)]),
}
OTHERS = {  # a symmetry that is no common scale
    "pre-norm": [{Q: 1, K: -1}, {V: 1, OUT: -1}, {UP: 1, DOWN: -1}],
    "qk-norm": [{V: 1, OUT: -1}, {UP: 1, DOWN: -1}],
    "relu": [{UP: 1, DOWN: -1}],
    "relu squared": [{UP: 1, DOWN: -2}],
}
NOT = {"relu squared": [{UP: 1, DOWN: -1}], "gelu, learned positions": [{UP: 1, DOWN: -1}], "pre-norm": [{GATE: 1, DOWN: -1}]}


def solves(found, exponents):
    return all(equation.holds(exponents) for equation in found.equations)


@pytest.mark.parametrize("name", GROUPS)
def test_the_scale_invariant_sets_of_a_transformer(name):
    options, groups = GROUPS[name]
    found = symmetries(gpt(**options))
    assert {frozenset(group) for group in found.groups} == {frozenset(group) for group in groups}
    assert all(solves(found, exponents) for exponents in OTHERS.get(name, []))
    assert not any(solves(found, exponents) for exponents in NOT.get(name, []))


@pytest.mark.parametrize("name", GROUPS)
def test_measurement_agrees(name):
    """Loss and gradient, at weights c times as large: exact for what was found, and off for one weight too few."""
    options, _ = GROUPS[name]
    net, rng = gpt(**options), np.random.default_rng(1)
    found = symmetries(net)
    f = loss_function(net, rng.integers(7, size=(3, 6)), rng.integers(7, size=(3, 6)))
    parameters = {key: p.data for key, p in net.named_parameters()}
    for exponents in [*(dict.fromkeys(group, 1) for group in found.groups), *OTHERS.get(name, [])]:
        assert probe(f, parameters, exponents).value_gap < 1e-10, exponents
    for exponents in [*NOT.get(name, []), *(dict.fromkeys(group[1:], 1) for group in found.groups if len(group) > 1)]:
        assert probe(f, parameters, exponents).value_gap > 1e-6, exponents


@pytest.mark.parametrize("name", ["pre-norm", "gains", "peri-norm and qk-norm", "tied", "gelu, learned positions"])
def test_a_whole_transformer_s_gradient(name):
    rng = np.random.default_rng(0)
    check_gradient(gpt(4, **GROUPS[name][0]), rng.integers(7, size=(2, 5)), rng=rng)


def test_norms_that_mix_positions_are_refused():
    for norm in (nn.BatchNorm, nn.InstanceNorm, partial(nn.GroupNorm, 2)):
        with pytest.raises(ValueError, match="norm of each position by itself"):
            gpt(norm=norm)
    assert symmetries(gpt(norm=partial(nn.LayerNorm, each_position=True))).groups
    with pytest.raises(ValueError, match="mlp must be one of .*got 'tanh'"):
        gpt(mlp="tanh")
