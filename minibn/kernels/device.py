"""The operations of `reference` for libraries other than NumPy, on a GPU or not: whole arrays, few launches."""

from minibn.kernels.reference import (
    add,
    affine,
    affine_backward,
    average_pool,
    average_pool_backward,
    correlate,
    correlate_backward,
    cross_entropy,
    global_average_pool,
    global_average_pool_backward,
    inverse_std,
    logistic,
    max_pool,
    max_pool_backward,
    moments,
    norm,
    normalise,
    normalise_backward,
    relu,
    relu_backward,
    sum_rows,
)

__all__ = ["add", "affine", "affine_backward", "average_pool", "average_pool_backward", "correlate", "correlate_backward",
           "cross_entropy", "global_average_pool", "global_average_pool_backward", "inverse_std", "logistic", "max_pool",
           "max_pool_backward", "moments", "norm", "normalise", "normalise_backward", "relu", "relu_backward", "sum_rows"]
