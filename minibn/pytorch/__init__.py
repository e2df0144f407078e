"""The theorem for PyTorch: one line in a training script, which keeps its own loop, scheduler and checkpoints.

    from minibn.pytorch import remove_weight_decay, report

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    remove_weight_decay(optimizer, report(model, lambda model: loss(model(x), y)))  # (x, y): any batch

The one line is in `hooks`. `reporting` finds the weights. The handle that is returned is a
`conversion`, and its `check` tries it on copies.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError('minibn.pytorch needs PyTorch; install it with: pip install torch, or from '
                      "https://pytorch.org/get-started/locally") from error

from minibn.pytorch.check import Check
from minibn.pytorch.hooks import Conversion, add_weight_decay, effective_lr, remove_weight_decay
from minibn.pytorch.reporting import Report, report

__all__ = ["Check", "Conversion", "Report", "add_weight_decay", "effective_lr", "remove_weight_decay", "report"]
