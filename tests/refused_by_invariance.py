"""What `minibn.invariance` refuses, as calls, errors and messages in full."""

import numpy as np

from minibn import nn
from minibn.invariance import probe, symmetries


class Act(nn.ReLU):
    def forward(self, x):
        return x


def linear():
    return symmetries(nn.Sequential(nn.Linear(2, 2, rng=np.random.default_rng(0))))


INVARIANCE = [
    (lambda: probe(lambda p: 0.0, {"w": np.ones(1), "v": np.ones(1)}, ["u", "w", "a"]), ValueError,
     "no parameters named ['a', 'u']; there are ['w', 'v']"),
    (lambda: probe(lambda p: p["w"], {"w": np.ones(1)}, []), ValueError,
     "probe has nothing to scale with names=[]; give the name of a parameter"),
    (lambda: probe(lambda p: p["w"], {"w": np.ones(1)}, {"w": 0.0}), ValueError,
     "probe has nothing to scale with names={'w': 0.0}; give the name of a parameter"),
    (lambda: probe(lambda p: p["w"], {"w": np.ones(1)}, "w"), TypeError,
     "probe: names must be a list of names of parameters, or a dict of exponents, got 'w' of type str"),
    (lambda: probe(lambda p: 0.0, {"w": np.ones(1)}, scales=[1.0]), ValueError,
     "probe needs scales above 0 and other than 1, got 1.0"),
    (lambda: probe(lambda p: 0.0, {"w": np.ones(1)}, scales=[]), ValueError,
     "probe needs at least one scale to try, got none"),
    (lambda: symmetries(Act()), TypeError,
     "the network has the type Act, which has a forward of its own but inherits the degree of ReLU: that says how another "
     "function scales. Define degree(x) in Act too (if it scales in the same way, `degree = ReLU.degree`), and check "
     "it by minibn.testing.check_degree"),
    (lambda: symmetries(nn.Sequential(nn.Flatten(), act=Act())), TypeError,
     "act has the type Act, which has a forward of its own but inherits the degree of ReLU: that says how another function "
     "scales. Define degree(x) in Act too (if it scales in the same way, `degree = ReLU.degree`), and check it by "
     "minibn.testing.check_degree"),
    (lambda: linear().is_scale_invariant(["b", "a", "0.bias"]), ValueError,
     "no parameters named ['a', 'b']; there are ['0.weight', '0.bias']"),
]
