"""A PyTorch training script as anybody writes it, for `14_pytorch.py`: one line of it is the conversion.

Run as it is, with the variables that `torchrun` sets, it trains under DistributedDataParallel
(`python torch_script.py FILE EPOCHS`).
"""

import datetime
import os
import sys

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional as F

from minibn import data
from minibn.pytorch import effective_lr, remove_weight_decay, report


class Block(nn.Module):
    """`relu(x + norm conv relu norm conv x)`, with a 1x1 conv and norm on the shortcut where the shape changes."""

    def __init__(self, inside, outside, stride, eps):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside, eps)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside, eps)
        self.shortcut = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside, eps))

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet(width=8, eps=1e-5):
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width, eps), nn.ReLU()]
    blocks = [Block(width, width, 1, eps), Block(width, 2 * width, 2, eps), Block(2 * width, 4 * width, 2, eps)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def images(dtype=torch.float64):
    """The digits as tensors, channels first."""
    split = data.digits("float64")
    x, x_test = (torch.tensor(a.transpose(0, 3, 1, 2).copy(), dtype=dtype) for a in (split.x_train, split.x_test))
    return x, torch.tensor(split.y_train), x_test, torch.tensor(split.y_test)


def train(converted, epochs, eps=1e-5, batch_size=64, adamw=False, found=None):
    """Returns {"loss", "norm", "effective_lr": one number per step, "validation": one per epoch}, the model and its report.

    The first three are of the weights as they are held; gradients are clipped by their norm.
    `found`: the report of a model of the same kind, in place of a new one.
    """
    ranks, rank = (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
    x, y, x_test, y_test = images()
    torch.manual_seed(0)
    model = resnet(eps=eps).double()
    whole = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    if adamw:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3, nesterov=True)
    steps = epochs * (len(y) // batch_size)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=steps // 10),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - steps // 10)], [steps // 10])
    found = found.of(model) if found else report(model, lambda model: F.cross_entropy(model(x[:32]), y[:32]))
    if converted:
        remove_weight_decay(optimizer, found)  # the one line
    log = {"loss": [], "norm": [], "effective_lr": [], "validation": []}
    for epoch in range(epochs):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(y) - batch_size + 1, batch_size):
            batch = order[start + rank : start + batch_size : ranks]  # each rank has its part
            optimizer.zero_grad()
            loss = F.cross_entropy(whole(x[batch]), y[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            log["effective_lr"].append(effective_lr(optimizer, found)[0])
            optimizer.step()
            scheduler.step()
            log["loss"].append(loss.item())
            log["norm"].append(model[0].weight.detach().norm().item())
        model.eval()
        with torch.no_grad():
            log["validation"].append(F.cross_entropy(model(x_test), y_test).item())
        model.train()
    return {name: np.array(values) for name, values in log.items()}, model, found


def run_rank(file, rank, ranks, epochs):
    """Train with and without the line as process `rank` of `ranks` under DDP; its losses and a weight go to FILE-RANK.npz."""
    distributed.init_process_group("gloo", init_method=f"file://{file}.store", rank=rank, world_size=ranks,
                                   timeout=datetime.timedelta(seconds=60))
    converted = train(True, epochs, eps=1e-30)
    usual = train(False, epochs, eps=1e-30, found=converted[2])
    np.savez(f"{file}-{rank}.npz", usual=usual[0]["loss"], converted=converted[0]["loss"],
             weight=converted[1][0].weight.detach().numpy())
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), epochs=int(sys.argv[2]))
