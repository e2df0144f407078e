"""What `minibn.pytorch.report` costs: passes through the network, time and memory, against the number of tensors.

    python benchmarks/report.py            some minutes
    python benchmarks/report.py --write    and renew the table in benchmarks/README.md

Each model is measured in a process of its own, on images of 32 x 32, batch 4.
"""

import json
import resource
import subprocess
import sys
import time

import bench
import torch
from torch import nn
from torch.nn import functional as F

from minibn.pytorch import report
from minibn.pytorch.loss import Loss


class Bottleneck(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))
        self.shortcut = nn.Identity() if inside == 4 * width else nn.Sequential(
            nn.Conv2d(inside, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


def resnet(blocks, width):
    """ResNet-50 is `resnet([3, 4, 6, 3], 64)`."""
    layers = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(inside, width * 2**stage, 2 if stage and not block else 1))
            inside = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))


def vgg16_bn(width):
    """VGG-16 with BatchNorm is `vgg16_bn(64)`."""
    layers, inside = [], 3
    for factor, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inside, factor * width, 3, padding=1), nn.BatchNorm2d(factor * width), nn.ReLU()]
            inside = factor * width
        layers.append(nn.MaxPool2d(2))
    hidden = 64 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(49 * inside, hidden), nn.ReLU(), nn.Dropout(),
                         nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 1000))


MODELS = {"ResNet-14, width 16": lambda: resnet([1, 1, 1, 1], 16), "ResNet-26, width 16": lambda: resnet([2, 2, 2, 2], 16),
          "ResNet-50, width 16": lambda: resnet([3, 4, 6, 3], 16), "ResNet-101, width 16": lambda: resnet([3, 4, 23, 3], 16),
          "VGG-16-BN, width 8": lambda: vgg16_bn(8), "ResNet-50": lambda: resnet([3, 4, 6, 3], 64),
          "VGG-16-BN": lambda: vgg16_bn(64)}
QUICK = ("ResNet-14, width 16", "VGG-16-BN, width 8")


def main():
    options = bench.flags(__doc__, model=str)
    if options.model:
        print(json.dumps(measured(options.model)))
        return
    rows = []
    for name in QUICK if options.quick else MODELS:
        command = [sys.executable, __file__, "--model", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append([name, *json.loads(done.stdout)])
    header = ["model", "parameters", "tensors", "forward passes", "backward passes", "seconds", "CPU-seconds",
              "memory, in sizes of the float64 model"]
    bench.report("report", bench.table(header, rows), options)


def measured(name):
    passes = {"value": 0, "gradients": 0}

    def counted(method):
        function = getattr(Loss, method)

        def call(*arguments):
            passes[method] += 1
            return function(*arguments)
        setattr(Loss, method, call)

    for method in passes:
        counted(method)
    torch.manual_seed(0)
    model, images, labels = MODELS[name](), torch.randn(4, 3, 32, 32), torch.randint(1000, (4,))
    numbers = sum(p.numel() for p in model.parameters())
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    report(model, lambda model: F.cross_entropy(model(images), labels))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return [f"{numbers:,}", len(list(model.parameters())), passes["value"], passes["gradients"], f"{wall:.1f}",
            f"{cpu:.1f}", f"{(peak() - before) / (8 * numbers):.2f}"]


def peak():
    """Bytes of main memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
