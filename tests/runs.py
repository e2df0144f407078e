"""A small training run that several test files use, and the comparison of two runs to the last bit."""

import numpy as np

from minibn import data, models, schedules
from minibn.equivalence import remove_weight_decay
from minibn.invariance import symmetries
from minibn.training import fit, split


class Run:
    """A small VGG on 50 synthetic images; its convolutions have a converted schedule, which grows without end."""

    def __init__(self, dtype="float32", lr=0.1):
        self.x, self.y = data.synthetic(50, size=4, rng=np.random.default_rng(5), dtype=dtype)
        self.net = models.vgg((4, "M", 4), in_channels=1, rng=np.random.default_rng(0), dtype=dtype)
        self.rng = np.random.default_rng(1)

        def schedule():
            return schedules.warmup(7, schedules.cosine(lr, 30, momentum=0.9, weight_decay=5e-3))

        self.conversion = split(self.net, remove_weight_decay(schedule(), band=1.1), schedule(), symmetries(self.net).weights)
        self.optimizers = self.conversion.optimizers

    def fit(self, **options):
        options = {"epochs": 4, "batch_size": 16, "drop_last": False, "progress": False} | options  # 16 steps
        return fit(self.net, self.optimizers, self.x, self.y, rng=self.rng, **options)

    def everything(self, history):
        return {**self.net.state_dict(), **{f"{k}/{i}": v for k, s in self.optimizers.items() for i, v in enumerate(s.velocity)},
                **{name: history[name] for name in history.columns}, "generator": str(self.rng.bit_generator.state)}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
