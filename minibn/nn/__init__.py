"""Layers with hand-written backward passes; names as in PyTorch, images channels last."""

from minibn.nn.activation import ReLU
from minibn.nn.container import Residual, Sequential
from minibn.nn.conv import Conv2d
from minibn.nn.linear import Linear
from minibn.nn.loss import CrossEntropy, Logistic, Loss
from minibn.nn.module import Module, Parameter
from minibn.nn.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from minibn.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool, MaxPool2d

__all__ = ["AvgPool2d", "BatchNorm", "Conv2d", "CrossEntropy", "Flatten", "GlobalAvgPool", "GroupNorm",
           "InstanceNorm", "LayerNorm", "Linear", "Logistic", "Loss", "MaxPool2d", "Module", "Parameter", "ReLU",
           "Residual", "Sequential"]
