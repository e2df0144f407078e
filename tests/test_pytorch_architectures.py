"""Known answers of `report`: which weights of the usual architectures are scale-invariant, each with its reason."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402

torch.manual_seed(0)
IMAGES, LABELS, TOKENS = torch.randn(6, 3, 8, 8), torch.arange(6) % 3, torch.randint(16, (4, 9))


def found(model):
    torch.manual_seed(0)
    model = model()
    if isinstance(model, n.GPT):
        return report(model, lambda m: m(TOKENS))
    return report(model, lambda m: F.cross_entropy(m(IMAGES), LABELS[:6] if not isinstance(model, n.UNet) else LABELS[:6] % 2))


def pair(name):
    return f"{name}.weight", f"{name}.bias"


def residual(layers=2, mlp="1.branch.1.2", embeddings=("wte.weight", "wpe.weight")):
    """All that writes into the residual stream of `GPT`."""
    writers = [f"blocks.{i}.{part}.weight" for i in range(layers) for part in ("0.branch.1.proj", mlp)]
    return (*embeddings, *writers)


def test_resnet():
    """BatchNorm after each conv takes out its scale. γ, β inside a branch scale the input of the
    next conv, so its BatchNorm takes theirs out too. Those that are added meet in the sum: only
    together."""
    stream = (*pair("1"), *pair("3.branch.4"))
    convs = [("0.weight",), stream, ("3.branch.0.weight",), pair("3.branch.1"), ("3.branch.3.weight",), ("4.weight",)]
    assert found(n.resnet).groups == convs


def test_preresnet():
    """What is added into the stream has a common scale; the conv inside a branch has one of its
    own. γ, β before the last conv of a branch scale what is added, too: in place of that conv, not
    with it."""
    assert found(n.preresnet).groups == [
        ("0.weight", "1.branch.5.weight", "2.branch.5.weight"), pair("1.branch.0"), ("1.branch.2.weight",),
        pair("2.branch.0"), ("2.branch.2.weight",)]


def test_vgg():
    """A bias before BatchNorm is taken out with the mean, whatever its scale: alone, and known, though its gradient is 0."""
    report = found(n.vgg)
    assert report.groups == [("0.weight",), ("0.bias",), pair("1"), ("3.weight",), ("3.bias",)]
    assert not report.unknown
    assert report.carried.left_out == [pair("1")]  # the running mean is a sum of W γ and a bias


def test_mobilenet():
    """A conv before BatchNorm is invariant. γ, β before ReLU6 are not, though they are while nothing reaches 6."""
    report = found(n.mobilenet)
    convs = [("0.weight",), ("3.branch.0.weight",), ("3.branch.3.weight",), ("3.branch.6.weight",), ("4.weight",)]
    assert [group for group in report.groups if group != ("3.branch.7.bias",)] == convs  # a shift, which BatchNorm takes out
    assert not report.is_scale_invariant(pair("1"))


def test_convnext_with_layer_scale():
    """LayerNorm takes out the scale of the depthwise conv and its bias. The stream's scale would
    need these biases too, and either the last conv or the layer scale of each block; the depthwise
    convs are more weights, and so are chosen."""
    assert found(n.convnext).groups == [pair("0"), pair("2.branch.0"), pair("3.branch.0")]


def test_convnext_with_a_wide_last_layer():
    """The same with more weights in the last convs: these are chosen."""
    group = max(found(lambda: n.convnext(size=3, ratio=8)).groups, key=len)
    assert {"2.branch.4.weight", "3.branch.4.weight", "2.branch.0.bias", *pair("1")} <= set(group)


def test_unet_with_group_norm():
    """Each conv before GroupNorm; γ, β of the skip meet those of the bottom in a concatenation,
    whose scales may not differ in front of one conv and GroupNorm."""
    groups = found(n.UNet).groups
    assert [g for g in groups if len(g) == 1] == [("down.0.weight",), ("inside.0.weight",), ("up.0.weight",)]
    assert [g for g in groups if len(g) > 1] == [(*pair("down.1"), *pair("inside.1"))]


def test_gpt():
    """The last norm takes out the scale of the stream: of all that writes into it."""
    assert found(n.GPT).groups == [residual()]


def test_tied_embeddings():
    """As the output layer, the embedding sets the scale of the logits."""
    report = found(lambda: n.GPT(tied=True))
    assert report.groups == []
    assert "no parameter was found to be scale-invariant" in str(report)
    assert "wte.weight and head.weight are one tensor (tied)" in str(report)


def test_qk_norm():
    """Each q and k is normalised by its head. In one tensor with v it cannot be converted, and the report says so."""
    groups = found(lambda: n.GPT(qk_norm=True, fused=False)).groups
    alone = [(f"blocks.{i}.0.branch.1.{name}.weight",) for i in range(2) for name in "qk"]
    assert groups == [residual(), *alone]
    report = found(lambda: n.GPT(qk_norm=True))
    assert report.groups == [residual()]
    assert "blocks.0.0.branch.1.qkv.weight: its rows 0 to 7 and 8 to 15 of 24 are scale-invariant" in str(report)


def test_experts_with_tokens():
    """The last layers of all experts write into the stream."""
    (group,) = found(lambda: n.GPT(layers=1, mlp=lambda width: n.Experts(width, tokens=4))).groups
    assert set(group) == {"wte.weight", "wpe.weight", "blocks.0.0.branch.1.proj.weight",
                          "blocks.0.1.branch.1.experts.0.2.weight", "blocks.0.1.branch.1.experts.1.2.weight"}


def test_experts_without_tokens():
    """Nothing is known of them, nor of the set that their last layer belongs to: converted without
    it, it would be another network when the first token comes. q and k, which nothing else can
    join, are converted."""
    report = found(lambda: n.GPT(layers=1, qk_norm=True, fused=False, mlp=lambda width: n.Experts(width, tokens=99)))
    assert report.unknown == ["blocks.0.1.branch.1.experts.1.0.weight", "blocks.0.1.branch.1.experts.1.2.weight"]
    assert report.groups == [("blocks.0.0.branch.1.q.weight",), ("blocks.0.0.branch.1.k.weight",)]
    assert "no effect on this batch, unknown" in str(report)
    assert "give a batch that uses them" in str(report)


def test_stochastic_depth():
    """A block that one random draw leaves out is there in another: the answer is that of the whole network."""
    assert found(lambda: n.resnet(drop=0.5)).groups == found(n.resnet).groups
    assert found(lambda: n.GPT(drop=0.4)).groups == [residual()]


@pytest.mark.parametrize("weight", [0.3, 0.0, 1e-12])
def test_auxiliary_head(weight):
    """It has no effect while its weight is 0, and none that can be measured at 1e-12: unknown, and
    in no group. γ, β before it are not invariant if it counts."""
    report = found(lambda: n.WithAuxiliary(weight))
    assert report.unknown == ([] if weight == 0.3 else ["auxiliary.2.weight", "auxiliary.2.bias"])
    assert report.groups == [("body.0.weight",), *([] if weight == 0.3 else [pair("body.1")]), ("rest.0.weight",)]


@pytest.mark.parametrize("norm", [n.RMSNorm, n.NumberInCode, n.ByHand], ids=lambda norm: norm.__name__)
@pytest.mark.parametrize("eps", [n.EPS, 1e-6])
def test_eps_under_another_name_or_in_the_code_and_float32_inside(norm, eps):
    report = found(lambda: n.GPT(norm=lambda width: norm(width, eps)))
    assert report.groups == [residual()]
    assert report.eps == {n.RMSNorm: eps if eps > n.EPS else 0.0, n.NumberInCode: 1e-5, n.ByHand: 1e-6}[norm]


def test_symmetries_that_hold_near_the_weights_only_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Hardtanh(-20, 20), nn.BatchNorm2d(8, eps=1e-30), *n.head(8))
    report = found(lambda: model)
    assert report.groups == []
    assert "near the measured weights only" in report.refused[("0.weight",)]
    assert not report.is_scale_invariant(["0.weight"])


def test_a_branch_that_is_dead_on_the_batch_is_unknown():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm, self.head = nn.Linear(192, 8), nn.Linear(192, 8), nn.LayerNorm(8, 1e-30), nn.Linear(8, 3)

        def forward(self, x):
            dead = F.relu(self.b(x.flatten(1)) - 1e4).sum(1, keepdim=True)
            return self.head(self.norm(self.a(x.flatten(1)))) + dead * x[0, 0, 0, :3]

    report = found(Dead)
    assert report.unknown == ["b.weight", "b.bias"]
    assert report.groups == [("a.weight", "a.bias")]


@pytest.mark.parametrize("eps", [0.01, 0.1, 1])
def test_a_gap_that_is_no_approximation_is_refused(eps):
    """An eps that is larger than the variance."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=eps), *n.head(8))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    report = found(lambda: model)
    assert report.groups == []
    assert f"eps, up to {eps}, has too large a part in their gradient" in report.refused[("0.weight",)]


def test_few_images_do_not_make_eps_too_large():
    """A norm over two numbers, at torch's eps, magnifies every change. That is no reason to refuse what is before it."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 8, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *blocks, *n.head(8))
    few = report(model, lambda m: F.cross_entropy(m(IMAGES[:2]), LABELS[:2]))
    assert few.change[1] > 0.1
    assert few.groups[:2] == [("0.weight",), ("3.weight",)]  # the others' gradients may be lost in rounding
    assert not any("too large" in reason for reason in few.refused.values())


class Embedded(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(16, 6, **options), nn.LayerNorm(6, 1e-30), nn.Linear(6, 16)

    def forward(self, tokens):
        return F.cross_entropy(self.head(self.norm(self.table(tokens[:, :-1]) + 0)).flatten(0, 1), tokens[:, 1:].flatten())


def test_embeddings():
    """A padding row has an effect, though torch hides its gradient. Sparse gradients are not decayed."""
    def of(**options):
        torch.manual_seed(0)
        return report(Embedded(**options), lambda m: m(TOKENS))

    assert of().groups == of(padding_idx=int(TOKENS[0, 0])).groups == [("table.weight",)]
    assert of(sparse=True).groups == []
    assert "an embedding with sparse gradients" in str(of(sparse=True))


class Bag(nn.Module):
    """The mean of a text's tokens, padding among them."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(16, 6, padding_idx=3), nn.LayerNorm(6, 1e-30), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.norm(self.table(tokens).mean(1)))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_padding_row_that_counts(make):
    """The table is scale-invariant only as a whole. Torch hides the gradient of one of its rows, but that row is decayed, too."""
    def train(convert):
        torch.manual_seed(0)
        model = Bag().double()
        with torch.no_grad():
            model.table.weight[3] = 0.5
        optimizer, losses = make(model.parameters(), lr=0.05, weight_decay=0.5), []
        tokens, labels = torch.randint(16, (20, 5)), torch.randint(3, (20,))
        tokens[:, 3:] = 3
        if convert:
            found = report(model, lambda m: F.cross_entropy(m(tokens), labels))
            assert found.groups == [("table.weight",)]
            assert max(found.gaps) < 1e-12
            remove_weight_decay(optimizer, found)
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(tokens), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(True) == pytest.approx(train(False), rel=1e-10)


def test_parametrizations():
    """weight_norm's direction is scale-invariant by itself, old and new; spectral_norm takes the scale out."""
    def of(first):
        torch.manual_seed(0)
        model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3))
        model(IMAGES.flatten(1))  # old weight_norm keeps what it computed
        return report(model, lambda m: F.cross_entropy(m(IMAGES.flatten(1)), LABELS)).groups

    assert of(nn.utils.weight_norm(nn.Linear(192, 8))) == [("0.weight_v",)]
    assert of(nn.utils.parametrizations.weight_norm(nn.Linear(192, 8))) == [("0.parametrizations.weight.original1",)]
    assert of(nn.utils.parametrizations.spectral_norm(nn.Linear(192, 8))) == [("0.parametrizations.weight.original",)]


def test_complex_parameters():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(192, 4, dtype=torch.complex64)), nn.Linear(4, 3)

        def forward(self, x):
            y = x.flatten(1).to(self.w.dtype) @ self.w
            return self.head((y / y.abs().square().sum(1, keepdim=True).sqrt()).abs())

    assert found(Complex).groups == [("w",)]
