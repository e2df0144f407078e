"""Layers with hand-written backward passes; names as in PyTorch, images (N, H, W, C) and sequences (N, T, C) channels last.

The base is in `module`. Maps: `linear` and `conv`. Normalisations: `norm` and `rms_norm`. Then
`activation`, `pooling`, `container` and `loss`; for sequences `embedding`, `attention` and
`gated_mlp`.
"""

from minibn.nn.activation import GELU, ReLU, SiLU, Square
from minibn.nn.attention import CausalSelfAttention
from minibn.nn.container import Residual, Sequential
from minibn.nn.conv import Conv2d
from minibn.nn.embedding import Embedding, Positions, Unembedding
from minibn.nn.gated_mlp import GatedMLP
from minibn.nn.linear import Linear
from minibn.nn.loss import CrossEntropy, Logistic, Loss
from minibn.nn.module import Module, Parameter
from minibn.nn.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from minibn.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool, MaxPool2d
from minibn.nn.rms_norm import RMSNorm

__all__ = ["AvgPool2d", "BatchNorm", "CausalSelfAttention", "Conv2d", "CrossEntropy", "Embedding", "Flatten", "GELU", "GatedMLP",
           "GlobalAvgPool", "GroupNorm", "InstanceNorm", "LayerNorm", "Linear", "Logistic", "Loss", "MaxPool2d", "Module",
           "Parameter", "Positions", "RMSNorm", "ReLU", "Residual", "Sequential", "SiLU", "Square", "Unembedding"]
