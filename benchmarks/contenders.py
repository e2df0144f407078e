"""A training step of the same PreResNet in minibn, PyTorch and MyGrad: forward, loss, backward, SGD with momentum.

Each contender is a function that makes the network and returns the step, a function without
arguments. `tests/test_benchmarks.py` checks that PyTorch's network, `torch_preresnet`, computes
what minibn's does.
"""

import numpy as np

from minibn import models, nn, schedules
from minibn.kernels.threads import empty, map_chunks
from minibn.optim import SGD

USUAL = {"momentum": 0.9, "weight_decay": 5e-4}


def images(batch, size=32, dtype="float32"):
    """Random (images (N, H, W, 3), labels (N,))."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, size, size, 3)).astype(dtype), rng.integers(10, size=batch)


def minibn(depth=32, width=16, batch=128, dtype="float32", net=None):
    """minibn's step; inside `minibn.threads`, as `training.fit` runs it."""
    net = net or models.preresnet(depth, width=width, rng=np.random.default_rng(0), dtype=dtype)
    sgd, loss, (x, y) = SGD(net.parameters(), schedules.constant(0.1, **USUAL)), nn.CrossEntropy(), images(batch, dtype=dtype)

    def step():
        net.zero_grad()
        loss(net(x), y)
        net.backward(loss.backward())
        sgd.step()

    return step


def pytorch(channels_last=False):
    """A maker of PyTorch's step, eager, in its default layout (NCHW) or channels last."""

    def make(depth=32, width=16, batch=128, dtype="float32"):
        import torch

        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = torch_preresnet(depth, width).to(getattr(torch, dtype)).to(memory_format=layout)
        sgd = torch.optim.SGD(net.parameters(), 0.1, **USUAL)
        x, y = (torch.tensor(array) for array in images(batch, dtype=dtype))
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=layout)

        def step():
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            sgd.step()

        return step

    return make


def torch_preresnet(depth, width):
    """He et al. (2016), the network of `models.preresnet`."""
    from torch import nn as tnn

    class Add(tnn.Module):
        def __init__(self, branch, shortcut=None):
            super().__init__()
            self.branch, self.shortcut = branch, shortcut

        def forward(self, x):
            return self.branch(x) + (x if self.shortcut is None else self.shortcut(x))

    def conv(inside, outside, kernel=3, stride=1):
        return tnn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)

    def activate(channels):
        return [tnn.BatchNorm2d(channels), tnn.ReLU()]

    layers, inside = [conv(3, width)], width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            outside, stride = width * 2**stage, 2 if stage and block == 0 else 1
            branch = [conv(inside, outside, 3, stride), *activate(outside), conv(outside, outside)]
            if stride == 1:
                layers.append(Add(tnn.Sequential(*activate(inside), *branch)))
            else:
                layers += [*activate(inside), Add(tnn.Sequential(*branch), conv(inside, outside, 1, stride))]
            inside = outside
    return tnn.Sequential(*layers, *activate(inside), tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Linear(inside, 10))


def mygrad(depth=32, width=16, batch=128, dtype="float32"):
    """MyGrad's step (`pip install mygrad`), NCHW."""
    import mygrad as mg
    from mygrad.nnet.activations import relu
    from mygrad.nnet.layers import batchnorm, conv_nd
    from mygrad.nnet.losses import softmax_crossentropy

    rng, parameters = np.random.default_rng(0), []

    def parameter(array):
        parameters.append(mg.tensor(array.astype(dtype)))
        return parameters[-1]

    def conv(inside, outside, kernel=3, stride=1):
        w = parameter(rng.standard_normal((outside, inside, kernel, kernel)) * np.sqrt(2 / inside) / kernel)
        crop = slice(None, -1 if stride == 2 else None)  # MyGrad wants kernel and stride to fit without a remainder
        return lambda x: conv_nd(x[:, :, crop, crop], w, stride=stride, padding=kernel // 2)

    def activate(channels):
        gamma, beta = parameter(np.ones(channels)), parameter(np.zeros(channels))
        return lambda x: relu(batchnorm(x, gamma=gamma, beta=beta, eps=1e-5))

    def chain(*functions):
        def run(x):
            for function in functions:
                x = function(x)
            return x

        return run

    def add(branch, shortcut=lambda x: x):
        return lambda x: branch(x) + shortcut(x)

    layers, inside = [conv(3, width)], width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            outside, stride = width * 2**stage, 2 if stage and block == 0 else 1
            branch = chain(conv(inside, outside, 3, stride), activate(outside), conv(outside, outside))
            if stride == 1:
                layers.append(add(chain(activate(inside), branch)))
            else:
                layers += [activate(inside), add(branch, conv(inside, outside, 1, stride))]
            inside = outside
    layers += [activate(inside), lambda x: x.mean(axis=(2, 3))]
    head, bias = parameter(rng.standard_normal((inside, 10)) * 0.1), parameter(np.zeros(10))
    net = chain(*layers)
    x, y = images(batch, dtype=dtype)
    x, velocity = x.transpose(0, 3, 1, 2).copy(), [0.0 for _ in parameters]

    def step():
        softmax_crossentropy(net(x) @ head + bias, y).backward()
        for i, p in enumerate(parameters):
            velocity[i] = USUAL["momentum"] * velocity[i] + p.grad + USUAL["weight_decay"] * p.data
            p.data -= (0.1 * velocity[i]).astype(dtype)
            p.null_grad()

    return step


def products(net, x):
    """The bare matrix products of a step: for each Conv2d and Linear, the shapes (M, K, N) of `patches @ W`.

    Backward has two more products of the same size, `dy @ Wᵀ` and `patchesᵀ @ dy`.
    """
    shapes, restore = [], []
    for _, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            def forward(x, module=module, original=module.forward):
                y = original(x)
                shapes.append((y.size // y.shape[-1], module.weight.data.size // y.shape[-1], y.shape[-1]))
                return y

            restore.append((module, module.forward))
            module.forward = forward
    net(x)
    for module, _ in restore:
        del module.forward
    return shapes


def bare_products(shapes, dtype="float32", places=256):
    """A function that computes every product of a step, in chunks on all threads: the floor for a step of NumPy.

    As stacks of matrices of about `places` rows, in one call per chunk and product, into memory
    that is there already: the fastest way that was found.
    """
    def make(m, k, n):
        rows = min(m, places)
        stack = max(1, min(m // rows, 2**20 // (rows * k * np.dtype(dtype).itemsize)))
        a, dy = empty((stack, rows, k), np.ones(1, dtype)), empty((stack, rows, n), np.ones(1, dtype))
        w = np.ones((k, n), dtype)
        a[...], dy[...] = 1, 1
        chunks = max(1, m // (rows * stack))

        def chunk(s):
            y, dx, dw = np.empty_like(dy), np.empty_like(a), np.empty((stack, k, n), dtype)  # each thread its own
            for _ in range(s.start, s.stop):
                np.matmul(a, w, out=y)
                np.matmul(dy, w.T, out=dx)
                np.matmul(a.swapaxes(1, 2), dy, out=dw)

        return lambda: map_chunks(chunk, chunks, 2**20)

    functions = [make(*shape) for shape in shapes]
    return lambda: [function() for function in functions]
