"""Whole scripts of the usual kinds, with one line added and nothing else changed: the same loss curves, validation included."""

import math
from functools import cache

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import DIGITS, assert_same  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402

STEPS = 80


def tokens(t, length=9):
    """A walk over 16 tokens that prefers small steps."""
    draw = torch.Generator().manual_seed(t)
    start, steps = torch.randint(16, (8, 1), generator=draw), torch.randint(-2, 3, (8, length - 1), generator=draw)
    return torch.cat([start, start + steps.cumsum(1)], 1) % 16


class Training:
    """Losses of each step, and of other data at every twentieth."""

    def __init__(self):
        self.losses, self.validation, self.handle = [], [], None

    def note(self, t, loss, model, validate):
        self.losses.append(loss.item())
        if t % 20 == 19:
            model.eval()
            with torch.no_grad():
                self.validation.append(validate(model).item())
            model.train()


def decay_groups(model, weight_decay):
    """As in nanoGPT: no decay on vectors."""
    parameters = list(model.parameters())
    return [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]


def nanogpt(line, bias=False):
    torch.manual_seed(0)
    model = n.GPT(norm=lambda width: nn.LayerNorm(width, n.EPS, bias=bias)).double()
    if bias:
        for block in model.blocks:
            block[0].branch[1].proj.register_parameter("bias", nn.Parameter(torch.zeros(8, dtype=torch.float64)))
    optimizer, script = torch.optim.AdamW(decay_groups(model, 3.0), lr=1e-2, betas=(0.9, 0.95)), Training()
    script.handle = line and line(optimizer, report(model, lambda m: m(tokens(0)), optimizer))
    for t in range(STEPS):
        lr = 1e-2 * min((t + 1) / 10, 0.55 + 0.45 * math.cos(math.pi * t / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = lr
        for micro in range(2):  # gradient accumulation
            loss = model(tokens(2 * t + micro)) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        script.note(t, loss, model, lambda m: m(tokens(-1)))
    return script


class ViT(nn.Module):
    """Patches of the digits, a class token, positions, biases everywhere."""

    def __init__(self, width=8):
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, 5, width))
        layer = nn.TransformerEncoderLayer(width, 2, 16, 0.1, "gelu", n.EPS, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width, n.EPS), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        y = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.cls.expand(len(y), -1, -1), y], 1) + self.pos)[:, 0])


def images(t):
    i = torch.randint(len(DIGITS.y_train), (16,), generator=torch.Generator().manual_seed(t))
    return torch.tensor(DIGITS.x_train[i].transpose(0, 3, 1, 2).copy()), torch.tensor(DIGITS.y_train[i])


def vit_loss(model, t):
    x, y = images(t)
    return F.cross_entropy(model(x), y)


def vit(line, average=None):
    torch.manual_seed(0)
    model = ViT().double()
    optimizer, script = torch.optim.AdamW(decay_groups(model, 4.0), lr=1e-2), Training()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    script.handle = line and line(optimizer, report(model, lambda m: vit_loss(m, 0), optimizer))
    for t in range(STEPS):
        torch.manual_seed(t)  # of dropout
        optimizer.zero_grad()
        loss = vit_loss(model, t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        script.note(t, loss, model, lambda m: vit_loss(m, -1))
    return script


def muon(line, mixed_decay=False):
    """Muon for the matrices inside, AdamW for the rest; the residual stream's weights are in both."""
    torch.manual_seed(0)
    model = n.GPT(qk_norm=True, fused=False).double()
    inside = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in inside)]
    optimizers = [torch.optim.Muon(inside, lr=1e-2, weight_decay=3.0, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(rest, lr=1e-2, weight_decay=1.0 if mixed_decay else 3.0)]
    script = Training()
    script.handle = line and line(optimizers, report(model, lambda m: m(tokens(0)), optimizers))
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, 1e-3) for o in optimizers]
    for t in range(STEPS):
        loss = model(tokens(t))
        loss.backward()
        for o in optimizers:
            o.step()
        for other in [*schedulers]:
            other.step()
        for o in optimizers:
            o.zero_grad()
        script.note(t, loss, model, lambda m: m(tokens(-1)))
    return script


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs PyTorch 2.9")


@cache
def without_the_line(script):
    return script(None)


def move(optimizer, found):
    return remove_weight_decay(optimizer, found, mixed="move")


@pytest.mark.parametrize(("script", "line"), [
    (nanogpt, remove_weight_decay), (vit, move), pytest.param(muon, remove_weight_decay, marks=needs_muon),
    pytest.param(lambda line: muon(line, mixed_decay=True), move, marks=needs_muon)],
    ids=["nanogpt", "vit-move", "muon-adamw", "muon-adamw-move"])
def test_one_line_reproduces_the_script(script, line):
    usual, converted = without_the_line(script), script(line)
    assert_same(usual, converted, 1e-8)
    assert min(converted.handle.scales.values()) < 0.3
    assert min(usual.losses[-20:]) < 0.95 * usual.losses[0]


def test_mixed_decay_is_refused_by_the_line_unless_it_is_said_what_to_do():
    with pytest.raises(ValueError, match="decayed differently") as error:
        vit(remove_weight_decay)
    for part in ("'cls'", "patch.weight", "lr x weight decay", 'mixed="skip"', 'mixed="move"'):
        assert part in str(error.value)


def test_the_report_says_what_will_be_converted():
    torch.manual_seed(0)
    model = ViT().double()
    optimizer = torch.optim.AdamW(decay_groups(model, 1.0), lr=1e-2)
    text = str(report(model, lambda m: vit_loss(m, 0), optimizer))
    assert 'no: decays differ; mixed="move" moves them' in text
    assert "1.0e-02, 0.0e+00" in text
    model = n.GPT().double()
    assert "  yes\n" in str(report(model, lambda m: m(tokens(0)), torch.optim.AdamW(decay_groups(model, 1.0), lr=1e-2)))
    coupled = torch.optim.Adam(model.parameters())
    assert "no: Adam adds weight decay to the gradient" in str(report(model, lambda m: m(tokens(0)), coupled))


def test_converting_a_set_without_one_of_its_members_is_another_training():
    """The control: the same script, but the position embedding is left out."""
    def wrong(optimizer, found):
        group = [p for p in next(iter(found)) if p.shape != (8, 8) or p is not found.model.wpe.weight]
        return remove_weight_decay(optimizer, [group], averages=False)

    usual, converted = without_the_line(nanogpt), nanogpt(wrong)
    assert max(abs(a - b) for a, b in zip(usual.losses, converted.losses, strict=True)) > 1e-4


@needs_muon
def test_optimizers_that_share_a_set_step_in_turn():
    torch.manual_seed(0)
    model = n.GPT().double()
    inside = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in inside)]
    optimizers = [torch.optim.Muon(inside, lr=1e-2, weight_decay=1.0), torch.optim.AdamW(rest, lr=1e-2, weight_decay=1.0)]
    remove_weight_decay(optimizers, report(model, lambda m: m(tokens(0))))
    model(tokens(0)).backward()
    optimizers[0].step()
    with pytest.raises(RuntimeError, match="do not take turns"):
        optimizers[0].step()
    with pytest.raises(RuntimeError, match="only some of their optimizers have stepped"):
        model(tokens(1)).backward()
    optimizers[1].step()
    model(tokens(1)).backward()
