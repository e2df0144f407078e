"""A model as a function of its parameters, as `probe` takes it."""

from collections.abc import Callable, Mapping

import numpy as np

from minibn import arguments, nn
from minibn.backend import Array, to_numpy


def loss_function(model: nn.Module, x: Array, y: Array,
                  loss: nn.Loss | None = None) -> Callable[[Mapping[str, Array]], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The model as {name: array} -> (logits, gradients of the loss), in training mode.

    Args:
        model: an `nn.Module`. Each call of the function replaces its parameters, so copy
            `{name: p.data}` first if you need them.
        x, y: a batch: inputs (N, …) and labels (N,).
        loss: `nn.CrossEntropy()` if None.

    Returns:
        function of {name: array} that returns (array of logits, {name: gradient}), in NumPy.

    Example:
        >>> from minibn import data, models
        >>> from minibn.invariance import probe
        >>> net = models.mlp((8,), eps=0.0, rng=np.random.default_rng(0), dtype="float64")
        >>> digits = data.digits("float64")
        >>> f = loss_function(net, digits.x_train[:32], digits.y_train[:32])
        >>> probe(f, {name: p.data for name, p in net.named_parameters()}, ["linear1.weight"]).value_gap < 1e-12
        True
    """
    arguments.of_kind("the model", model, nn.Module, "an nn.Module")
    loss = loss or nn.CrossEntropy()
    named = dict(model.named_parameters())

    def f(parameters):
        model.train()
        for name, value in parameters.items():
            named[name].data = value
        model.zero_grad()
        logits = model(x)
        loss(logits, y)
        model.backward(loss.backward())
        return to_numpy(logits), {name: to_numpy(p.grad) for name, p in named.items()}

    return f
