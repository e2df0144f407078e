"""Networks, each a few lines of composition: mlp, vgg, resnet, preresnet for images, gpt for sequences.

The networks for images have these keywords in common: `num_classes`; `in_channels` of the
channels-last images; `norm`, the normalisation class, called as
`norm(channels, eps=eps, affine=affine, dtype=dtype)` (for groups,
`functools.partial(nn.GroupNorm, 4)`); `rng`, the numpy.random.Generator of the Kaiming-normal
weights; `dtype`. Convolutions have no bias, since a normalisation follows each on its way to the
logits; the last layer, `head`, has one. Only `head` and the norms' γ and β keep the networks from
being scale-invariant in all their weights together.

An argument that is out of range raises ValueError, one of the wrong kind TypeError or ValueError.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from numpy.random import Generator

from minibn import arguments, nn

Norm: TypeAlias = Callable[..., nn.Module]  # a normalisation class, or a partial of one


def mlp(hidden: Sequence[int] = (128, 128), *, num_classes: int = 10, in_features: int = 64, norm: Norm = nn.BatchNorm,
        eps: float = 1e-5, affine: bool = True, rng: Generator, dtype: str = "float32") -> nn.Sequential:
    """Multi-layer perceptron: flatten, then linear-norm-ReLU for each of the `hidden` widths, then the head.

    Input (N, …) with `in_features` numbers an example, output logits (N, num_classes).
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    width, num_classes = _checked("mlp", norm, in_features=in_features, num_classes=num_classes)
    for i, wider in enumerate(arguments.iterable("mlp: hidden", hidden, "a list of widths"), 1):
        wider = arguments.whole("mlp: a width in hidden", wider, 1)
        layers[f"linear{i}"] = nn.Linear(width, wider, bias=False, rng=rng, dtype=dtype)
        layers[f"norm{i}"] = norm(wider, eps=eps, affine=affine, dtype=dtype)
        layers[f"relu{i}"] = nn.ReLU()
        width = wider
    return nn.Sequential(**layers, head=nn.Linear(width, num_classes, rng=rng, dtype=dtype))


def vgg(layers: Sequence[int | Literal["M"]] = (16, "M", 32, "M", 64, 64), *, num_classes: int = 10, in_channels: int = 3,
        norm: Norm = nn.BatchNorm, eps: float = 1e-5, affine: bool = True, rng: Generator,
        dtype: str = "float32") -> nn.Sequential:
    """A small VGG with normalisation (Simonyan & Zisserman, 2015): 3x3 conv-norm-ReLU for each
    number in `layers`, a 2x2 max-pooling for each "M", then global average pooling and the head.

    Input (N, H, W, in_channels), output logits (N, num_classes).
    """
    modules: dict[str, nn.Module] = {}
    channels, num_classes = _checked("vgg", norm, in_channels=in_channels, num_classes=num_classes)
    for i, width in enumerate(arguments.iterable("vgg: layers", layers, 'a list of numbers of channels and "M"'), 1):
        if width == "M":
            modules[f"pool{i}"] = nn.MaxPool2d(2)
        else:
            width = arguments.whole('vgg: an entry of layers other than "M"', width, 1)
            modules[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1, rng=rng, dtype=dtype)
            modules[f"norm{i}"] = norm(width, eps=eps, affine=affine, dtype=dtype)
            modules[f"relu{i}"] = nn.ReLU()
            channels = width
    return nn.Sequential(**modules, pool=nn.GlobalAvgPool(), head=nn.Linear(channels, num_classes, rng=rng, dtype=dtype))


def resnet(depth: int = 32, *, num_classes: int = 10, in_channels: int = 3, width: int = 16, norm: Norm = nn.BatchNorm,
           eps: float = 1e-5, affine: bool = True, rng: Generator, dtype: str = "float32") -> nn.Sequential:
    """Post-activation ResNet for small images (He et al., 2016a, section 4.2): `relu(x + norm conv relu norm conv x)`.

    Three stages of n = (depth - 2) / 6 blocks, of `width`, `2 width` and `4 width` channels; each
    but the first halves the image, with a 1x1 conv and norm on its shortcut.

    Input (N, H, W, in_channels), output logits (N, num_classes).
    """
    depth, num_classes, in_channels, width = _checked("resnet", norm, depth=depth, num_classes=num_classes,
                                                      in_channels=in_channels, width=width)
    conv, normalise = _makers(norm, eps, affine, rng, dtype)

    def block(inside, outside, stride):
        branch = nn.Sequential(conv1=conv(inside, outside, 3, stride), norm1=normalise(outside), relu1=nn.ReLU(),
                               conv2=conv(outside, outside, 3), norm2=normalise(outside))
        shortcut = None
        if (inside, stride) != (outside, 1):
            shortcut = nn.Sequential(conv=conv(inside, outside, 1, stride), norm=normalise(outside))
        return nn.Sequential(sum=nn.Residual(branch, shortcut), relu=nn.ReLU())

    return nn.Sequential(
        stem=conv(in_channels, width, 3), norm=normalise(width), relu=nn.ReLU(), **_stages(depth, width, block),
        pool=nn.GlobalAvgPool(), head=nn.Linear(4 * width, num_classes, rng=rng, dtype=dtype))


def preresnet(depth: int = 32, *, num_classes: int = 10, in_channels: int = 3, width: int = 16, norm: Norm = nn.BatchNorm,
              eps: float = 1e-5, affine: bool = True, rng: Generator, dtype: str = "float32") -> nn.Sequential:
    """Pre-activation ResNet for small images (He et al., 2016b), the paper's PreResNet-32 at
    depth=32: `x + conv relu norm conv relu norm x`, with a norm and ReLU after the last block.

    Stages as in `resnet`. Where a block halves the image, its 1x1 shortcut conv takes the
    *activated* input, `branch(a) + conv(a)` with `a = relu(norm(x))`. If it took x itself, the
    shortcut would grow with the weights before it and the branch would not, so the network would
    not be scale-invariant (the paper's appendix C).

    Input (N, H, W, in_channels), output logits (N, num_classes).
    """
    depth, num_classes, in_channels, width = _checked("preresnet", norm, depth=depth, num_classes=num_classes,
                                                      in_channels=in_channels, width=width)
    conv, normalise = _makers(norm, eps, affine, rng, dtype)

    def block(inside, outside, stride):
        activate = {"norm1": normalise(inside), "relu1": nn.ReLU()}
        convs = {"conv1": conv(inside, outside, 3, stride), "norm2": normalise(outside), "relu2": nn.ReLU(),
                 "conv2": conv(outside, outside, 3)}
        if (inside, stride) == (outside, 1):
            return nn.Residual(nn.Sequential(**activate, **convs))
        return nn.Sequential(**activate, sum=nn.Residual(nn.Sequential(**convs), conv(inside, outside, 1, stride)))

    return nn.Sequential(
        stem=conv(in_channels, width, 3), **_stages(depth, width, block), norm=normalise(4 * width), relu=nn.ReLU(),
        pool=nn.GlobalAvgPool(), head=nn.Linear(4 * width, num_classes, rng=rng, dtype=dtype))


def gpt(vocabulary: int, *, length: int = 64, width: int = 64, depth: int = 2, heads: int = 4, kv_heads: int | None = None,
        norm: Norm = nn.RMSNorm, eps: float = 1e-5, affine: bool = True, qk_norm: bool = False,
        mlp: Literal["swiglu", "relu", "relu2", "gelu"] = "swiglu", positions: Literal["rope", "learned"] = "rope",
        norm_after: bool = False, norm_embedding: bool = False, tied: bool = False, rng: Generator,
        dtype: str = "float32") -> nn.Sequential:
    """A decoder-only transformer (Radford et al., 2018): `x + attention(norm(x))`, then
    `x + mlp(norm(x))`, `depth` times, and a norm before the head. No layer has a bias.

    Args:
        vocabulary: number V of tokens.
        length: largest number of positions T.
        width: C; attention has `heads` heads of width / heads channels.
        kv_heads: as in `nn.CausalSelfAttention`.
        norm: normalises each position by itself: `nn.RMSNorm`, or
            `partial(nn.LayerNorm, each_position=True)`.
        qk_norm: a norm of each head of q and k.
        mlp: "swiglu" is `nn.GatedMLP` of 8/3 C; the others are plain, of 4 C: linear, that
            function, linear.
        positions: "rope" turns q and k, "learned" adds `nn.Positions` to the embedding.
        norm_after: a second norm at the end of each branch, before the sum (sandwich, or peri-LN).
        norm_embedding: a norm right after the embedding and positions.
        tied: the head shares the embedding's table. Then no weights are scale-invariant.
        eps, affine, rng, dtype: as for the other networks; affine is the norms' gain.

    Input (N, T) integers, output logits (N, T, vocabulary). `invariance.symmetries` finds for each
    of these choices which weights are scale-invariant. The weights that write into the sum are
    scale-invariant together. With qk_norm, each W_q and W_k is scale-invariant alone; with
    norm_after, every weight is, except embedding and gates.

    Raises:
        ValueError: a norm that mixes positions, a name that is not one of the above, or a size that
            is out of range.
        TypeError: norm is no class.
    """
    vocabulary, length, width, depth, heads = _checked("gpt", norm, vocabulary=vocabulary, length=length, width=width,
                                                       depth=depth, heads=heads)
    kv_heads = heads if kv_heads is None else arguments.whole("gpt: kv_heads", kv_heads, 1)

    def normalise(channels=width):
        made = norm(channels, eps=eps, affine=affine, dtype=dtype)
        if isinstance(made, (nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm)):
            raise ValueError(f"gpt needs a norm of each position by itself, or positions would see later ones; got {made}. Give "
                             "nn.RMSNorm, or functools.partial(nn.LayerNorm, each_position=True)")
        return made

    def linear(inside, outside):
        return nn.Linear(inside, outside, bias=False, rng=rng, dtype=dtype)

    def feed_forward():
        if mlp == "swiglu":
            return nn.GatedMLP(width, round(8 * width / 3), rng=rng, dtype=dtype)
        plain: dict[str, list[type[nn.Module]]] = {"relu": [nn.ReLU], "relu2": [nn.ReLU, nn.Square], "gelu": [nn.GELU]}
        return nn.Sequential(up=linear(width, 4 * width), **{f.__name__.lower(): f() for f in plain[mlp]},
                             down=linear(4 * width, width))

    def branch(**layer):
        return nn.Residual(nn.Sequential(norm=normalise(), **layer, **({"norm_after": normalise()} if norm_after else {})))

    def block():
        attention = nn.CausalSelfAttention(width, heads, kv_heads, qk_norm=normalise if qk_norm else None,
                                           rope=10_000.0 if positions == "rope" else None, rng=rng, dtype=dtype)
        return nn.Sequential(mix=branch(attention=attention), feed=branch(mlp=feed_forward()))

    for name, value, known in (("mlp", mlp, ("swiglu", "relu", "relu2", "gelu")), ("positions", positions, ("rope", "learned"))):
        if value not in known:
            raise ValueError(f"gpt: {name} must be one of {list(known)}, got {value!r}")
    start: dict[str, nn.Module] = {"embedding": (embedding := nn.Embedding(vocabulary, width, rng=rng, dtype=dtype))}
    if positions == "learned":
        start["positions"] = nn.Positions(length, width, rng=rng, dtype=dtype)
    if norm_embedding:
        start["norm_embedding"] = normalise()
    return nn.Sequential(**start, **{f"block{i}": block() for i in range(1, depth + 1)}, norm=normalise(),
                         head=nn.Unembedding(embedding) if tied else linear(width, vocabulary))


def _checked(owner, norm, **sizes):
    """The sizes as ints of at least 1; TypeError unless `norm` makes normalisations."""
    if isinstance(norm, nn.Module) or not callable(norm):
        raise TypeError(f"{owner}: norm must be a normalisation class, such as nn.BatchNorm, got {norm!r}")
    return tuple(arguments.whole(f"{owner}: {name}", size, 1) for name, size in sizes.items())


def _makers(norm, eps, affine, rng, dtype):
    """Functions that make a "same"-padded conv without bias, and a normalisation."""

    def conv(inside, outside, kernel_size, stride=1):
        return nn.Conv2d(inside, outside, kernel_size, stride, kernel_size // 2, rng=rng, dtype=dtype)

    def normalise(channels):
        return norm(channels, eps=eps, affine=affine, dtype=dtype)

    return conv, normalise


def _stages(depth, width, block):
    """{"stage1": …, "stage2": …, "stage3": …}, each of (depth - 2) / 6 blocks."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, …), got {depth}")
    stages, inside = {}, width
    for stage in range(3):
        outside = width * 2**stage
        blocks = []
        for i in range((depth - 2) // 6):
            blocks.append(block(inside, outside, 2 if stage and i == 0 else 1))
            inside = outside
        stages[f"stage{stage + 1}"] = nn.Sequential(*blocks)
    return stages
