"""Conv2d: convolution as a matrix product of patches, in chunks of images that stay in the cache."""

from minibn.backend import array_namespace, device, map_chunks, sum_rows
from minibn.nn.linear import kaiming_normal
from minibn.nn.module import Module, Parameter

PATCH_BYTES = 2**21  # patches of one chunk: enough for a fast matrix product, few enough for the cache


class Conv2d(Module):
    """Convolution (as everywhere in deep learning: cross-correlation) of channels-last images.

    `y[n, i, j, o] = b[o] + Σ_{u, v, c} x[n, i·s + u - p, j·s + v - p, c] W[u, v, c, o]`, x being 0 outside.

    Shapes: x (N, H, W, C_in), W (kh, kw, C_in, C_out), b (C_out,), y (N, OH, OW, C_out) with
    `OH = (H + 2p - kh) // s + 1`. PyTorch has x as (N, C, H, W) and W as (C_out, C_in, kh, kw).

    Forward: each output pixel's patch of x is a row, and y is `patches(x) @ W`.
    Backward: an input pixel is seen by every output whose patch holds it, so the *same* patches of dy (spread out by
    the stride, padded by k - 1 - p) give both gradients, W̄ being W turned by 180° with its channels exchanged:
        dx = patches(dy) @ W̄        dW̄ = xᵀ patches(dy)        db = Σ_{n, i, j} dy

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size, stride, padding: a number, or a pair for (height, width).
        bias: whether to add b, which starts at zero.
        rng: numpy.random.Generator for the weight (`kaiming_normal`).
        dtype: "float32" or "float64".

    Raises:
        ValueError: the input is not (N, H, W, C_in) or smaller than the kernel, or a size is out of range.
        TypeError: the input's dtype is not the weight's.
        RuntimeError: backward before forward.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=False, *, rng,
                 dtype="float32"):
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = _pair(kernel_size), _pair(stride), _pair(padding)
        if min(in_channels, out_channels, *self.kernel_size, *self.stride) < 1 or min(self.padding) < 0:
            raise ValueError(f"{self}: channels, kernel_size and stride must be at least 1, padding at least 0")
        kh, kw = self.kernel_size
        self.weight = Parameter(kaiming_normal(rng, (kh, kw, in_channels, out_channels), kh * kw * in_channels, dtype))
        self.bias = Parameter(self.weight.data[0, 0, 0] * 0) if bias else None

    def forward(self, x):
        """(N, H, W, C_in) -> (N, OH, OW, C_out)."""
        w = self.weight.data
        self._check_input(x, ("N", "H", "W", self.in_channels), w)
        xp = array_namespace(x)
        (ph, pw), shape = self.padding, self._output_shape(x)
        matrix = xp.reshape(w, (-1, self.out_channels))
        y = xp.empty((x.shape[0], *shape, self.out_channels), dtype=x.dtype, device=device(x))

        def convolve(s):
            rows = patches(pad(x[s, ...], (ph, ph), (pw, pw)), self.kernel_size, self.stride, shape) @ matrix
            y[s, ...] = xp.reshape(rows, y[s, ...].shape)

        map_chunks(convolve, x, shape[0] * shape[1] * matrix.shape[0], PATCH_BYTES)
        self._keep(x)
        return y if self.bias is None else y + self.bias.data

    def backward(self, dy):
        """(N, OH, OW, C_out) -> (N, H, W, C_in)."""
        x = self._kept and self._kept[0]
        self._take(dy, self._kept and (x.shape[0], *self._output_shape(x), self.out_channels))
        xp = array_namespace(dy)
        w = self.weight.data
        (kh, kw), (ph, pw), (height, width) = self.kernel_size, self.padding, x.shape[1:3]
        turned = xp.permute_dims(xp.flip(w, axis=(0, 1)), (0, 1, 3, 2))  # W̄: (kh, kw, C_out, C_in)
        matrix = xp.reshape(turned, (-1, self.in_channels))
        dx = xp.empty(x.shape, dtype=dy.dtype, device=device(dy))

        def differentiate(s):
            spread = dilate(dy[s, ...], self.stride)
            top, left = kh - 1 - ph, kw - 1 - pw
            spread = pad(spread, (top, height + kh - 1 - top - spread.shape[1]),
                         (left, width + kw - 1 - left - spread.shape[2]))
            rows = patches(spread, self.kernel_size, (1, 1), (height, width))
            dx[s, ...] = xp.reshape(rows @ matrix, dx[s, ...].shape)
            return xp.reshape(x[s, ...], (-1, self.in_channels)).T @ rows

        chunks = map_chunks(differentiate, x, height * width * matrix.shape[0], PATCH_BYTES)
        dw = sum(chunks[1:], start=chunks[0])  # (C_in, kh·kw·C_out)
        dw = xp.permute_dims(xp.reshape(dw, (self.in_channels, kh, kw, self.out_channels)), (1, 2, 0, 3))
        self.weight.grad += xp.flip(dw, axis=(0, 1))
        if self.bias is not None:
            self.bias.grad += sum_rows(xp.reshape(dy, (-1, self.out_channels)))
        return dx

    def degree(self, x):
        """Degree d -> d + a_W; padding makes what was one number a channel differ at the border."""
        return (x.settled(self) if max(self.padding) else x).times(self.weight).plus(self.bias)

    def _output_shape(self, x):
        shape = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in
                      zip(x.shape[1:3], self.padding, self.kernel_size, self.stride, strict=True))
        if min(shape) < 1:
            raise ValueError(f"{self} needs images of at least its kernel's size, padding counted; got {x.shape}")
        return shape

    def __repr__(self):
        return (f"Conv2d({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}, padding={self.padding})")


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def pad(x, rows, columns):
    """Add (before, after) zero `rows` and `columns` to images (N, H, W, C); a negative number takes some away."""
    if rows == columns == (0, 0):
        return x
    xp = array_namespace(x)
    n, height, width, channels = x.shape
    y = xp.zeros((n, height + sum(rows), width + sum(columns), channels), dtype=x.dtype, device=device(x))
    (top, bottom), (left, right) = rows, columns
    inner = x[:, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0), :]
    top, left = max(top, 0), max(left, 0)
    y[:, top : top + inner.shape[1], left : left + inner.shape[2], :] = inner
    return y


def dilate(x, stride):
    """Put `stride - 1` zeros between neighbouring pixels of images (N, H, W, C)."""
    if stride == (1, 1):
        return x
    xp = array_namespace(x)
    (sh, sw), (n, height, width, channels) = stride, x.shape
    y = xp.zeros((n, (height - 1) * sh + 1, (width - 1) * sw + 1, channels), dtype=x.dtype, device=device(x))
    y[:, ::sh, ::sw, :] = x
    return y


def patches(x, kernel_size, stride, shape):
    """What a kernel sees at each of `shape` positions of padded images: (N, H, W, C) -> (N·OH·OW, kh·kw·C)."""
    xp = array_namespace(x)
    (kh, kw), (sh, sw), (oh, ow), channels = kernel_size, stride, shape, x.shape[-1]
    shifted = [x[:, i : i + sh * (oh - 1) + 1 : sh, j : j + sw * (ow - 1) + 1 : sw, :]
               for i in range(kh) for j in range(kw)]
    return xp.reshape(xp.concat(shifted, axis=-1), (-1, kh * kw * channels))
