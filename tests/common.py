"""What several test files use: every normalisation, every network of `minibn.models`, small, a convolution, broken code."""

import inspect

from minibn import models, nn

NORMS = {
    "batch": nn.BatchNorm,
    "layer": nn.LayerNorm,
    "instance": nn.InstanceNorm,
    "group": lambda channels, **kw: nn.GroupNorm(2 if channels % 2 == 0 else 1, channels, **kw),
}

# Each is called as NETWORKS[name](norm=…, eps=…, rng=…, dtype=…), for images
# (N, 8, 8, in_channels).
NETWORKS = {
    "mlp": lambda in_channels=1, **kw: models.mlp((6, 8), in_features=64 * in_channels, **kw),
    "vgg": lambda in_channels=1, **kw: models.vgg((4, "M", 6), in_channels=in_channels, **kw),
    "resnet": lambda in_channels=1, **kw: models.resnet(8, width=4, in_channels=in_channels, **kw),
    "preresnet": lambda in_channels=1, **kw: models.preresnet(8, width=4, in_channels=in_channels, **kw),
}

# An MLP's rows have one number per channel: InstanceNorm would normalise each of them alone.
PAIRS = [(network, norm) for network in NETWORKS for norm in NORMS if (network, norm) != ("mlp", "instance")]


def conv(rng, inside=4, outside=4, bias=False, padding=0):
    return nn.Conv2d(inside, outside, 1 + 2 * padding, padding=padding, bias=bias, rng=rng, dtype="float64")


def broken(module, name, old, new):
    """The function or class `name` of a module with `old`, which stands once in its source, replaced by `new`."""
    source = inspect.getsource(getattr(module, name))
    assert source.count(old) == 1
    exec(source.replace(old, new), vars(module), scope := {})
    return scope[name]
