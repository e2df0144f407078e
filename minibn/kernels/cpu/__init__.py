"""The operations of `reference` for NumPy: in chunks that stay in the cache, on the threads of `kernels.threads`.

Each function computes what the function of the same name in `reference` says, to the same bits for any number of
threads. What is not here is fast enough as it stands there.
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
from minibn.kernels.cpu.sums import affine_backward, sum_rows
from minibn.kernels.reference import (
    affine,
    each,
    global_average_pool,
    global_average_pool_backward,
    inverse_std,
    joined,
    norm,
    zeros_like,
)

__all__ = ["add", "affine", "affine_backward", "average_pool", "average_pool_backward", "correlate", "correlate_backward",
           "cross_entropy", "each", "global_average_pool", "global_average_pool_backward", "inverse_std", "joined", "logistic",
           "max_pool", "max_pool_backward", "moments", "norm", "normalise", "normalise_backward", "relu", "relu_backward",
           "sum_rows", "zeros_like"]
