"""Layers of one's own say how they scale, and a degree that was written for another forward is not believed."""

import numpy as np
import pytest
from common import conv

from minibn import nn
from minibn.invariance import symmetries


def test_a_layer_of_ones_own():
    class Scale(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(np.ones(()))

        def degree(self, x):
            return x.times(self.weight)

    class Silent(nn.Module):
        pass

    rng = np.random.default_rng(0)
    assert symmetries(nn.Sequential(conv(rng), Scale(), nn.BatchNorm(4, affine=False))).groups == [("0.weight",), ("1.weight",)]
    with pytest.raises(TypeError, match=r"Silent must define degree\(x\)"):
        symmetries(nn.Sequential(Silent()))


class Tanh(nn.ReLU):
    """An activation that is not homogeneous, written over one that is."""

    def forward(self, x):
        return self.keep(np.tanh(x), np.tanh(x))


class CallOnly(nn.ReLU):
    def __call__(self, x):
        return np.tanh(x)


class Mixed(type("Squash", (), {"forward": Tanh.forward}), nn.ReLU):
    pass


class BelowThePool(nn.AvgPool2d):
    """`degree` is that of the base class of all pooling, `forward` neither its nor AvgPool2d's."""

    def forward(self, x):
        return super().forward(x**2)


@pytest.mark.parametrize("layer", [Tanh(), CallOnly(), Mixed(), BelowThePool(2)], ids=lambda layer: type(layer).__name__)
def test_a_degree_that_was_written_for_another_forward_is_refused(layer):
    name = type(layer).__name__
    net = nn.Sequential(conv(np.random.default_rng(0)), act=nn.Sequential(layer), norm=nn.BatchNorm(4, affine=False))
    with pytest.raises(TypeError, match=rf"act.0 has the type {name}, which has a forward of its own but inherits the degree of "
                                        rf".*Define degree\(x\) in {name} too .*check_degree"):
        symmetries(net)


def test_a_forward_put_on_one_object_is_refused_too():
    relu = nn.ReLU()
    relu.forward = np.tanh
    with pytest.raises(TypeError, match="0 has the type ReLU, which has a forward of its own"):
        symmetries(nn.Sequential(relu))


def test_a_degree_defined_next_to_the_forward_is_believed():
    class Leaky(nn.ReLU):
        def forward(self, x):
            return np.where(x > 0, x, 0.1 * x)

        degree = nn.ReLU.degree

    class Named(Leaky):
        """Changes neither."""

    class Refined(nn.BatchNorm):
        def degree(self, x):
            return super().degree(x)

    rng = np.random.default_rng(0)
    net = nn.Sequential(conv(rng), Leaky(), Named(), nn.AvgPool2d(2), Refined(4, affine=False))
    assert symmetries(net).groups == [("0.weight",)]
