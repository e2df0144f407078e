"""The operations of `reference` for NumPy: in chunks that stay in the cache, on the threads of `kernels.threads`.

Each function computes what the function of the same name in `reference` says, to the same bits for
any number of threads. Functions that are missing here are fast enough in `reference`.
"""

from minibn.kernels.cpu.convolution import correlate, correlate_backward
from minibn.kernels.cpu.elementwise import (
    add,
    average_pool,
    average_pool_backward,
    cross_entropy,
    logistic,
    max_pool,
    max_pool_backward,
    relu,
    relu_backward,
)
from minibn.kernels.cpu.normalisation import moments, normalise, normalise_backward
from minibn.kernels.cpu.sequences import (
    causal_attention,
    causal_attention_backward,
    embed_backward,
    gelu,
    gelu_backward,
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
from minibn.kernels.cpu.sums import affine_backward, sum_rows
from minibn.kernels.reference import (
    affine,
    each,
    embed,
    global_average_pool,
    global_average_pool_backward,
    inverse_std,
    joined,
    norm,
    zeros_like,
)

__all__ = ["add", "affine", "affine_backward", "average_pool", "average_pool_backward", "causal_attention",
           "causal_attention_backward", "correlate", "correlate_backward", "cross_entropy", "each", "embed", "embed_backward",
           "gelu", "gelu_backward", "global_average_pool", "global_average_pool_backward", "inverse_std", "joined", "logistic",
           "max_pool", "max_pool_backward", "moments", "norm", "normalise", "normalise_backward", "relu", "relu_backward",
           "rms_normalise", "rms_normalise_backward", "rotate", "rotate_backward", "silu", "silu_backward", "square",
           "square_backward", "sum_rows", "swiglu", "swiglu_backward", "zeros_like"]
