"""Small networks of the usual architectures in PyTorch, for known answers of `report`."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

EPS = 1e-30


def conv(inside, outside, size=3, bias=False, **options):
    return nn.Conv2d(inside, outside, size, padding=size // 2, bias=bias, **options)


def bn(width):
    return nn.BatchNorm2d(width, EPS)


def head(width, classes=3):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


class Residual(nn.Module):
    """`after(x + branch(x))`; with `drop` the branch is left out at random, as in stochastic depth."""

    def __init__(self, branch, after=None, drop=0.0):
        super().__init__()
        self.branch, self.after, self.drop = branch, after or nn.Identity(), drop

    def forward(self, x):
        return self.after(x if torch.rand(()) < self.drop else x + self.branch(x))


def resnet(**options):
    branch = nn.Sequential(conv(4, 4), bn(4), nn.ReLU(), conv(4, 4), bn(4))
    return nn.Sequential(conv(3, 4), bn(4), nn.ReLU(), Residual(branch, nn.ReLU(), **options), conv(4, 6), bn(6), *head(6))


def preresnet():
    blocks = [Residual(nn.Sequential(bn(4), nn.ReLU(), conv(4, 4), bn(4), nn.ReLU(), conv(4, 4))) for _ in range(2)]
    return nn.Sequential(conv(3, 4), *blocks, bn(4), nn.ReLU(), *head(4))


def vgg():
    return nn.Sequential(conv(3, 4, bias=True), bn(4), nn.ReLU(), conv(4, 6, bias=True), bn(6), nn.ReLU(), *head(6))


def mobilenet():
    """MobileNetV2's inverted residual, with ReLU6."""
    block = nn.Sequential(conv(4, 8, 1), bn(8), nn.ReLU6(), conv(8, 8, groups=8), bn(8), nn.ReLU6(), conv(8, 4, 1), bn(4))
    return nn.Sequential(conv(3, 4), bn(4), nn.ReLU6(), Residual(block), conv(4, 6, 1), bn(6), nn.ReLU6(), *head(6))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    def __init__(self, width, start):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width, 1, 1), start))

    def forward(self, x):
        return x * self.scale


def convnext(width=4, size=7, ratio=2, layer_scale=1e-6):
    def block():
        return Residual(nn.Sequential(conv(width, width, size, bias=True, groups=width), LayerNorm2d(width, EPS),
                                      conv(width, ratio * width, 1, bias=True), nn.GELU(),
                                      conv(ratio * width, width, 1, bias=True), LayerScale(width, layer_scale)))
    stem = [nn.Conv2d(3, width, 2, 2), LayerNorm2d(width, EPS)]
    return nn.Sequential(*stem, block(), block(), LayerNorm2d(width, EPS), *head(width))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.inside, self.up = self.block(3, 4), self.block(4, 4), self.block(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def block(self, inside, outside):
        return nn.Sequential(conv(inside, outside), nn.GroupNorm(2, outside, EPS), nn.ReLU())

    def forward(self, x):
        left = self.down(x)
        bottom = F.interpolate(self.inside(F.max_pool2d(left, 2)), scale_factor=2)
        return self.out(self.up(torch.cat([left, bottom], 1))).mean((2, 3))


class RMSNorm(nn.Module):
    """As in Llama: eps under another name, and float32 inside."""

    def __init__(self, width, variance_epsilon=EPS):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), variance_epsilon

    def forward(self, x):
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * y.to(x.dtype)


class NumberInCode(nn.Module):
    """As in nanoGPT: eps is a number in the code."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class ByHand(nn.Module):
    """Its eps is a number in the code that is added."""

    def __init__(self, width, eps=1e-5):
        super().__init__()

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


class Attention(nn.Module):
    def __init__(self, width, norm, qk_norm=False, fused=True):
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width, bias=False)
        self.qnorm, self.knorm = (norm(width // 2) for _ in range(2)) if qk_norm else (nn.Identity(), nn.Identity())

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).split(width, 2) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (a.view(n, length, 2, width // 2).transpose(1, 2) for a in (q, k, v))
        y = F.scaled_dot_product_attention(self.qnorm(q), self.knorm(k), v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class MLP(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(width, 2 * width, bias=False), nn.GELU(), nn.Linear(2 * width, width, bias=False))


class Experts(nn.Module):
    """A mixture of two: tokens whose number is at least `tokens` go to the second."""

    def __init__(self, width, tokens):
        super().__init__()
        self.experts, self.tokens = nn.ModuleList([MLP(width), MLP(width)]), tokens

    def forward(self, x):
        out = torch.zeros(x.shape, dtype=x.dtype)
        chosen = torch.arange(x.shape[1]) >= self.tokens
        for expert, places in zip(self.experts, (~chosen, chosen), strict=True):
            if places.any():
                out[:, places] = expert(x[:, places])
        return out


class GPT(nn.Module):
    """Pre-norm, 16 tokens, 8 positions. Called with integers (n, length + 1), gives the loss of the next token."""

    def __init__(self, width=8, layers=2, *, tied=False, norm=lambda width: nn.LayerNorm(width, EPS, bias=False), qk_norm=False,
                 fused=True, mlp=MLP, drop=0.0):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(16, width), nn.Embedding(8, width)
        self.blocks = nn.Sequential(*(
            nn.Sequential(Residual(nn.Sequential(norm(width), Attention(width, norm, qk_norm, fused)), drop=drop),
                          Residual(nn.Sequential(norm(width), mlp(width)), drop=drop)) for _ in range(layers)))
        self.norm, self.head = norm(width), nn.Linear(width, 16, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens[:, :-1]) + self.wpe(torch.arange(tokens.shape[1] - 1))
        return F.cross_entropy(self.head(self.norm(self.blocks(x))).flatten(0, 1), tokens[:, 1:].flatten())


class WithAuxiliary(nn.Module):
    """A second head after the first normalisation, whose loss counts `weight` times."""

    def __init__(self, weight):
        super().__init__()
        self.body, self.rest = nn.Sequential(conv(3, 4), bn(4), nn.ReLU()), nn.Sequential(conv(4, 6), bn(6), *head(6))
        self.auxiliary, self.weight = nn.Sequential(*head(4)), weight

    def forward(self, x):
        y = self.body(x)
        return self.rest(y) + self.weight * self.auxiliary(y)
