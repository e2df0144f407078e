"""Scale invariance (the paper's section 2 and lemma 1.3) of whole networks, with normalisation of eps = 0.

For L(c θ) = L(θ), c > 0, with θ all weights before a normalisation:
f(c θ) = f(θ),   <∇L(θ), θ> = 0,   ∇L(c θ) = ∇L(θ) / c.
"""

import numpy as np
import pytest
from common import NETWORKS, NORMS, PAIRS
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import nn
from minibn.invariance import symmetries

networks = st.sampled_from(PAIRS)


class Loss:
    """Logits, loss and gradients of a random network on a random batch."""

    def __init__(self, network, norm, affine, eps, seed):
        rng = np.random.default_rng(seed)
        self.net = NETWORKS[network](norm=NORMS[norm], affine=affine, eps=eps, rng=rng, dtype="float64")
        self.names = symmetries(self.net).weights
        self.x, self.y = rng.standard_normal((4, 8, 8, 1)), rng.integers(10, size=4)
        for name, p in self.net.named_parameters():
            if affine and p.data.ndim == 1 and not name.startswith("head"):
                p.data = rng.uniform(0.5, 1.5, p.data.shape) if name.endswith("weight") else rng.standard_normal(p.data.shape)

    @property
    def theta(self):
        """The weights of every conv and linear layer but the last."""
        parameters = dict(self.net.named_parameters())
        return [parameters[name] for name in self.names]

    def __call__(self):
        self.net.zero_grad()
        loss = nn.CrossEntropy()
        logits = self.net(self.x)
        value = loss(logits, self.y)
        self.net.backward(loss.backward())
        return logits, value, [p.grad for p in self.theta]


@settings(max_examples=60)
@given(networks, st.booleans(), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_scale_invariance(network, affine, c, seed):
    loss = Loss(*network, affine, 0.0, seed)
    logits, value, gradients = loss()
    inner = sum(np.sum(g * p.data) for g, p in zip(gradients, loss.theta, strict=True))
    size = sum(np.linalg.norm(g) * np.linalg.norm(p.data) for g, p in zip(gradients, loss.theta, strict=True))
    assert abs(inner) < 1e-10 * size
    for p in loss.theta:
        p.data = p.data * c
    scaled_logits, scaled_value, scaled_gradients = loss()
    tolerance = 1e-9 * np.abs(logits).max()
    np.testing.assert_allclose(scaled_logits, logits, rtol=0, atol=tolerance)
    assert scaled_value == pytest.approx(value, rel=1e-9)
    for g, scaled in zip(gradients, scaled_gradients, strict=True):
        np.testing.assert_allclose(scaled * c, g, rtol=0, atol=1e-8 * max(np.linalg.norm(g) for g in gradients))


@settings(max_examples=30)
@given(networks, st.integers(-20, 20), st.integers(0, 2**32 - 1))
def test_a_power_of_two_changes_no_bit(network, exponent, seed):
    loss = Loss(*network, True, 0.0, seed)
    logits, value, gradients = loss()
    for p in loss.theta:
        p.data = p.data * 2.0**exponent
    scaled_logits, scaled_value, scaled_gradients = loss()
    np.testing.assert_array_equal(scaled_logits, logits)
    assert scaled_value == value
    for g, scaled in zip(gradients, scaled_gradients, strict=True):
        np.testing.assert_array_equal(scaled * 2.0**exponent, g)


@settings(max_examples=20)
@given(st.sampled_from(["resnet", "vgg", "mlp"]), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_where_a_norm_follows_each_weight_each_is_invariant_alone(network, c, seed):
    loss = Loss(network, "batch", True, 0.0, seed)
    logits, _, gradients = loss()
    i = seed % len(loss.theta)
    assert abs(np.sum(gradients[i] * loss.theta[i].data)) < 1e-10 * max(np.linalg.norm(g) for g in gradients)
    loss.theta[i].data = loss.theta[i].data * c
    np.testing.assert_allclose(loss()[0], logits, rtol=0, atol=1e-9 * np.abs(logits).max())


def test_eps_breaks_it():
    """With eps = 1e-5 small weights are no longer equivalent: a test that the tests above can fail."""
    loss = Loss("resnet", "batch", True, 1e-5, 0)
    logits, _, _ = loss()
    for p in loss.theta:
        p.data = p.data * 1e-3
    assert np.abs(loss()[0] - logits).max() > 1e-3


def test_a_preresnet_is_not_invariant_weight_by_weight():
    """Convs that add into one residual stream are invariant together only."""
    loss = Loss("preresnet", "batch", True, 0.0, 0)
    logits, _, _ = loss()
    loss.theta[0].data = loss.theta[0].data * 2
    assert np.abs(loss()[0] - logits).max() > 1e-3
