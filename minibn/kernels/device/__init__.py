"""The operations of `reference` for libraries other than NumPy, on a GPU or not: whole arrays, few launches.

A GPU takes its work in launches. Each launch costs the CPU some 10 µs, whatever its size, and a
small network has little work per launch. So the time depends first on the number of launches, and
then on how often each array is read and written. CuPy runs a chain of elementwise operations as one
launch (`fusion`); the other libraries run it operation by operation.
"""

from minibn.kernels.device.convolution import correlate, correlate_backward
from minibn.kernels.device.elementwise import relu, relu_backward
from minibn.kernels.device.lists import each, joined, norm, zeros_like
from minibn.kernels.device.normalisation import inverse_std, moments, normalise, normalise_backward
from minibn.kernels.device.sums import affine_backward, sum_rows
from minibn.kernels.reference import (
    add,
    affine,
    average_pool,
    average_pool_backward,
    causal_attention,
    causal_attention_backward,
    cross_entropy,
    embed,
    embed_backward,
    gelu,
    gelu_backward,
    global_average_pool,
    global_average_pool_backward,
    logistic,
    max_pool,
    max_pool_backward,
    rms_normalise,
    rms_normalise_backward,
    rotate,
    rotate_backward,
    silu,
    silu_backward,
    square,
    square_backward,
    swiglu,
    swiglu_backward,
)

__all__ = ["add", "affine", "affine_backward", "average_pool", "average_pool_backward", "causal_attention",
           "causal_attention_backward", "correlate", "correlate_backward", "cross_entropy", "each", "embed", "embed_backward",
           "gelu", "gelu_backward", "global_average_pool", "global_average_pool_backward", "inverse_std", "joined", "logistic",
           "max_pool", "max_pool_backward", "moments", "norm", "normalise", "normalise_backward", "relu", "relu_backward",
           "rms_normalise", "rms_normalise_backward", "rotate", "rotate_backward", "silu", "silu_backward", "square",
           "square_backward", "sum_rows", "swiglu", "swiglu_backward", "zeros_like"]
