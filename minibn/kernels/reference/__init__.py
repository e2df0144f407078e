"""Every operation in its plainest form: whole arrays, no chunks, no threads; the equation is the code.

These are the files to read, and to step through inside `minibn.plain()`. The other implementations
compute the same numbers faster and are tested against them. They use names of the array API
standard only, so they run on every library.

`f_backward` is given dy, the gradient of the loss with respect to the output of `f`, and returns
the gradients with respect to the inputs of `f`. Arrays are channels last; sizes that come in pairs
are (height, width). One file per topic:

    | linear        | products, sums and norms                     |
    | convolution   | convolutions                                 |
    | normalisation | BatchNorm and its like, RMSNorm              |
    | activation    | ReLU, GELU, SiLU, SwiGLU, squares            |
    | pooling       | means and maxima of windows                  |
    | embedding     | rows of a table, chosen by integers          |
    | attention     | causal attention, rotary positions           |
    | loss          | cross-entropy, logistic loss                 |
    | lists         | lists of arrays, such as all weights         |
"""

from minibn.kernels.reference.activation import (
    gelu,
    gelu_backward,
    relu,
    relu_backward,
    silu,
    silu_backward,
    square,
    square_backward,
    swiglu,
    swiglu_backward,
)
from minibn.kernels.reference.attention import causal_attention, causal_attention_backward, rotate, rotate_backward
from minibn.kernels.reference.convolution import Pair, correlate, correlate_backward, output_size, pad, seen, taps
from minibn.kernels.reference.embedding import embed, embed_backward
from minibn.kernels.reference.linear import add, affine, affine_backward, norm, sum_rows
from minibn.kernels.reference.lists import each, joined, zeros_like
from minibn.kernels.reference.loss import cross_entropy, logistic
from minibn.kernels.reference.normalisation import (
    inverse_std,
    moments,
    normalise,
    normalise_backward,
    rms_normalise,
    rms_normalise_backward,
)
from minibn.kernels.reference.pooling import (
    average_pool,
    average_pool_backward,
    global_average_pool,
    global_average_pool_backward,
    max_pool,
    max_pool_backward,
    window,
)

__all__ = ["Pair", "add", "affine", "affine_backward", "average_pool", "average_pool_backward", "causal_attention",
           "causal_attention_backward", "correlate", "correlate_backward", "cross_entropy", "each", "embed", "embed_backward",
           "gelu", "gelu_backward", "global_average_pool", "global_average_pool_backward", "inverse_std", "joined", "logistic",
           "max_pool", "max_pool_backward", "moments", "norm", "normalise", "normalise_backward", "output_size", "pad", "relu",
           "relu_backward", "rms_normalise", "rms_normalise_backward", "rotate", "rotate_backward", "seen", "silu",
           "silu_backward", "square", "square_backward", "sum_rows", "swiglu", "swiglu_backward", "taps", "window", "zeros_like"]
