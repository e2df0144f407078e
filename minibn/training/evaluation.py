"""A model on data outside training: its outputs, loss and accuracy, and BatchNorm's statistics."""

from contextlib import contextmanager
from threading import RLock

from minibn import arguments, backend, data, kernels, nn
from minibn.backend import Array, array_namespace
from minibn.data.batching import check_finite

_LOCK = RLock()


def evaluate(model: nn.Module, x: Array, y: Array, *, loss: nn.Loss | None = None, batch_size: int = 256,
             threads: int | None = None) -> tuple[float, float]:
    """(loss, accuracy) of `model` in evaluation mode on all of (x, y).

    Args:
        model: an `nn.Module`.
        x, y: inputs (N, …) and labels (N,).
        loss: `nn.CrossEntropy()` if None.
        batch_size: inputs per forward pass.
        threads: as in `minibn.threads`.

    Returns:
        two floats.

    Raises:
        TypeError, ValueError: as in `data.check_examples`; or a batch size below 1.
    """
    data.check_examples(x, y)
    outputs = predict(model, x, batch_size=batch_size, threads=threads)
    y = backend.move(y, outputs)
    value, right = backend.read([(loss or nn.CrossEntropy())(outputs, y), accuracy(outputs, y)])
    return value, right


def predict(model: nn.Module, x: Array, *, batch_size: int = 256, threads: int | None = None) -> Array:
    """Outputs (N, …) of `model` in evaluation mode. Afterwards the model is in its earlier mode.

    Several threads may call this, `evaluate` and `update_bn`; each waits for the one before it. They
    may not while another thread trains the model.

    Each batch of x is moved to the model's device, and the outputs are moved to the device of x.

    Raises:
        TypeError: the model is no `nn.Module`; x is not an array, or has a mask.
        ValueError: there are no examples, or a batch size below 1.
    """
    arguments.of_kind("the model", model, nn.Module, "an nn.Module")
    data.check_array("x", x)
    batch_size = data.check_batch_size(batch_size)
    where = next(model.arrays(), None)
    with _mode(model, train=False), kernels.threads(threads):
        parts = [model(_part(x, i, batch_size, where)) for i in range(0, x.shape[0], batch_size)]
    return backend.move(array_namespace(parts[0]).concat(parts, axis=0), x)


def update_bn(model: nn.Module, x: Array, *, batch_size: int = 256, threads: int | None = None) -> None:
    """Recompute the running statistics of every BatchNorm, as plain averages over the batches of x.

    Like `torch.optim.swa_utils.update_bn`: it does not matter what they were, NaN included. The
    running averages of training lag behind the weights. If the weights grow exponentially, as they
    do without weight decay, the averages belong to smaller weights, and evaluation is no longer
    scale-invariant. With recomputed statistics it is, so two equivalent runs agree in evaluation,
    too.

    Args:
        model: an `nn.Module`.
        x: inputs (N, …). Only whole batches count, unless N is below `batch_size`.
        batch_size: inputs per batch.
        threads: as in `minibn.threads`.

    Raises:
        TypeError: the model is no `nn.Module`; x is not an array, or has a mask.
        ValueError: there are no examples, a number that is not finite, or a batch size below 1.
    """
    arguments.of_kind("the model", model, nn.Module, "an nn.Module")
    data.check_array("x", x)
    check_finite("x", x)  # or the statistics would never be finite again
    batch_size = data.check_batch_size(batch_size)
    norms, where = [module for _, module in model.named_modules() if isinstance(module, nn.BatchNorm)], next(model.arrays(), None)
    with _mode(model, train=True), kernels.threads(threads):
        before = [(norm.momentum, norm.running_mean, norm.running_var) for norm in norms]
        try:
            for norm in norms:  # or a NaN would stay: 0 times NaN is NaN
                norm.running_mean, norm.running_var = (array_namespace(old).zeros_like(old)
                                                       for old in (norm.running_mean, norm.running_var))
            for count, i in enumerate(range(0, max(x.shape[0] - batch_size, 0) + 1, batch_size), 1):
                for norm in norms:
                    norm.momentum = 1 / count  # which makes the running average the mean of `count` batches
                model(_part(x, i, batch_size, where))
        except BaseException:
            for norm, (_, mean, var) in zip(norms, before, strict=True):
                norm.running_mean, norm.running_var = mean, var
            raise
        finally:
            for norm, (momentum, *_) in zip(norms, before, strict=True):
                norm.momentum = momentum


def accuracy(outputs: Array, y: Array) -> Array:
    """Fraction of examples that are classified correctly; a 0-d array on the device of `outputs`.

    Args:
        outputs: logits (N, …, K), of which the largest counts, or scores (N,), whose sign counts.
        y: labels (N, …): 0 … K-1, or -1 and +1.
    """
    xp = array_namespace(outputs)
    right = xp.argmax(outputs, axis=-1) == y if outputs.ndim > 1 else (outputs > 0) == (y > 0)
    return xp.mean(xp.astype(right, outputs.dtype))


def _part(x, start, size, where):
    """The next `size` rows of x, or as many as are left, moved to the device of the array `where`."""
    return backend.move(x[start : min(start + size, x.shape[0]), ...], where)


@contextmanager
def _mode(model, *, train):
    """The whole model in training or evaluation mode; afterwards each module is in its earlier one.

    One thread after the other, since the mode belongs to the model, not to the thread. Two models
    may share a module, so all wait for one lock.
    """
    with _LOCK:
        before = [(module, module.training) for _, module in model.named_modules()]
        model.train(train)
        try:
            yield
        finally:
            for module, mode in before:
                module.training = mode
