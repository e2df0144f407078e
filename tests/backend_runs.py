"""Small networks and training runs on any array library, and the comparison of their numbers as NumPy's."""

import numpy as np
from common import NETWORKS, NORMS

from minibn import backend, data, schedules
from minibn.training import convert, fit


def network(name="vgg", norm="batch", dtype="float64", eps=0.0):
    return NETWORKS[name](norm=NORMS[norm], eps=eps, rng=np.random.default_rng(0), dtype=dtype)


def arrays(module):
    """Parameters, buffers and gradients of a module, as NumPy."""
    grads = {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    return {name: backend.to_numpy(x) for name, x in {**module.state_dict(), **grads}.items()}


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


class Run:
    """A small training run of two groups, on host data; the model is at `library`, or stays NumPy's."""

    def __init__(self, library=None, lr=0.1, **options):
        self.x, self.y = data.synthetic(50, rng=np.random.default_rng(5), dtype="float64")
        self.net = network("vgg")
        if library:
            self.net.to(library.xp, device=library.device)
        self.optimizers = convert(self.net, schedules.warmup(3, schedules.constant(lr, momentum=0.9, weight_decay=5e-3)),
                                  band=1.01).optimizers
        self.options = {"epochs": 2, "batch_size": 16, "progress": False, "drop_last": False, **options}  # 8 steps

    def fit(self, x=None, y=None, **options):
        rng = np.random.default_rng(1)
        return fit(self.net, self.optimizers, self.x if x is None else x, self.y if y is None else y, rng=rng,
                   **{**self.options, **options})
