"""`testing.check_layer` passes every good layer (tests/test_layers.py) and fails each of these bad ones, for its own reason."""

import numpy as np
import pytest

from minibn import models, nn
from minibn.backend import array_namespace
from minibn.testing import check_degree, check_layer, check_libraries, distinct

RNG = np.random.default_rng(0)


class Scale(nn.Module):
    """y = a x + b; what the subclasses below break is one method each."""

    def __init__(self):
        self.weight, self.bias = nn.Parameter(np.array([0.5, 1.0, 2.0])), nn.Parameter(np.zeros(3))

    def forward(self, x):
        return self.keep(x * self.weight.data + self.bias.data, x)

    def backward(self, dy):
        (x,) = self.kept(dy)
        xp = array_namespace(x)
        self.weight.grad += xp.sum(dy * x, axis=(0, 1, 2))
        self.bias.grad += xp.sum(dy, axis=(0, 1, 2))
        return dy * self.weight.data

    def degree(self, x):
        return x.times(self.weight).plus(self.bias)


class WrongInputGradient(Scale):
    def backward(self, dy):
        return super().backward(dy) * 1.001


class WrongWeightGradient(Scale):
    def backward(self, dy):
        self.weight.grad = self.weight.grad + 0.01
        return super().backward(dy)


class ReplacedGradient(Scale):
    def backward(self, dy):
        self.bias.zero_grad()
        return super().backward(dy)


class WeightForgotten(Scale):
    def degree(self, x):
        return x.plus(self.bias)


class WeightTwice(Scale):
    def degree(self, x):
        return x.times(self.weight).times(self.weight).plus(self.bias)


class BiasForgotten(Scale):
    def degree(self, x):
        return x.times(self.weight)


class BiasBeforeWeight(Scale):
    def degree(self, x):
        return x.plus(self.bias).times(self.weight)


class SettledForNothing(Scale):
    def degree(self, x):
        return x.settled(self).times(self.weight).plus(self.bias)


class NotHomogeneous(nn.ReLU):
    """max(x, 1), which scales like x near most points, but not everywhere."""

    def forward(self, x):
        return super().forward(x - 1) + 1


class NotSettled(nn.ReLU):
    def degree(self, x):
        return x


class PaddingForgotten(nn.Conv2d):
    def degree(self, x):
        return x.times(self.weight).plus(self.bias)


class MeanOfAll(nn.LayerNorm):
    def degree(self, x):
        return x.normalised(self, mean=True).times(self.weight).plus(self.bias)


class MeanKept(nn.BatchNorm):
    def degree(self, x):
        return x.normalised(self, mean=False).times(self.weight).plus(self.bias)


class DegreeMissing(Scale):
    degree = nn.Module.degree


class NumpyOnly(Scale):
    def forward(self, x):
        return np.tanh(0 * x) + super().forward(x)


class OnTheDefaultDevice(Scale):
    def forward(self, x):
        xp = array_namespace(x)
        return super().forward(x) + xp.zeros(x.shape, dtype=x.dtype)


class BufferNotNamed(Scale):
    def __init__(self):
        super().__init__()
        self.zeros = np.zeros(3)

    def forward(self, x):
        return super().forward(x) + self.zeros


class OtherNumbers(Scale):
    def forward(self, x):
        y = super().forward(x)
        return y if isinstance(x, np.ndarray) else y * (1 + 1e-9)


class OtherGradients(Scale):
    def backward(self, dy):
        self.bias.grad = self.bias.grad + (0 if isinstance(dy, np.ndarray) else 1e-7)
        return super().backward(dy)


WRONG, LITTLE = r"degree is wrong: it claims that scaling .* by c\^", "degree claims too little: "
BAD = {
    WrongInputGradient: (AssertionError, "backward's gradient in the input is off by 1.0e-03"),
    WrongWeightGradient: (AssertionError, "backward's gradient in weight is off by"),
    ReplacedGradient: (AssertionError, "backward must add to bias.grad, not replace it"),
    WeightForgotten: (AssertionError, WRONG), WeightTwice: (AssertionError, WRONG), BiasForgotten: (AssertionError, WRONG),
    BiasBeforeWeight: (AssertionError, WRONG), NotHomogeneous: (AssertionError, WRONG), NotSettled: (AssertionError, WRONG),
    SettledForNothing: (AssertionError, LITTLE), DegreeMissing: (TypeError, r"DegreeMissing must define degree\(x\)"),
    NumpyOnly: (AssertionError, "NumpyOnly.. does not run on array_api_strict: "),
    OnTheDefaultDevice: (AssertionError, "does not run on array_api_strict: ValueError: .*device"),
    BufferNotNamed: (AssertionError, "does not run on array_api_strict: "),
    OtherNumbers: (AssertionError, "output on array_api_strict is not that of NumPy; the largest gap is 1.0e-09"),
    OtherGradients: (AssertionError, "bias.grad on array_api_strict is not that of NumPy"),
    PaddingForgotten: (AssertionError, WRONG), MeanOfAll: (AssertionError, WRONG), MeanKept: (AssertionError, LITTLE),
}
ARGUMENTS = {PaddingForgotten: lambda: ((3, 2, 3), {"padding": 1, "bias": True, "rng": RNG, "dtype": "float64"}),
             MeanOfAll: lambda: ((3,), {"dtype": "float64"}), MeanKept: lambda: ((3,), {"dtype": "float64"})}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", BAD, ids=lambda layer: layer.__name__)
def test_bad_layers(layer, seed):
    pytest.importorskip("array_api_strict")
    rng = np.random.default_rng(seed)
    arguments, keywords = ARGUMENTS.get(layer, lambda: ((), {}))()
    error, message = BAD[layer]
    with pytest.raises(error, match=message):
        check_layer(layer(*arguments, **keywords), distinct(rng, (3, 4, 4, 3)), rng=rng)


def test_a_good_layer_and_what_is_left_as_it_was():
    layer, x = Scale(), distinct(np.random.default_rng(0), (3, 4, 4, 3))
    before, input_before = layer.state_dict(), x.copy()
    assert 0 < check_layer(layer, x, rng=np.random.default_rng(0)) < 1e-9
    np.testing.assert_array_equal(x, input_before)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_whole_networks_are_layers_too(eps):
    """And eps stays what it was."""
    rng = np.random.default_rng(0)
    net = models.preresnet(8, width=4, in_channels=1, eps=eps, rng=rng, dtype="float64")
    x = rng.standard_normal((4, 8, 8, 1))
    check_degree(net, x, rng=rng)
    check_libraries(net, x, rng=rng)
    assert net["norm"].eps == eps
