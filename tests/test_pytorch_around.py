"""Around the training step: torch.compile, DDP, FSDP, activation checkpointing, copies, and parameters that wake up."""

import copy
import io

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import KINDS, Script, X, Y, batch, kinds, loss_of, remove, same_with_the_line  # noqa: E402
from torch import distributed, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402


@pytest.fixture
def process_group(tmp_path):
    """One process that thinks it is many."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled_step(script, forward):
    """The step compiled; lr is a tensor, since a float would be compiled again for each value."""
    script.compiled = getattr(script, "compiled", None) or torch.compile(lambda: script.optimizer.step(), backend="eager")
    script.optimizer.zero_grad()
    loss = forward()
    loss.backward()
    script.compiled()
    return loss


def compiled_model(script, forward):
    script.compiled = getattr(script, "compiled", None) or torch.compile(script.model, backend="eager")
    x, y = batch(len(script.losses))
    return script.step(lambda: F.cross_entropy(script.compiled(x), y))


def checkpointed(reentrant):
    def step(script, forward):
        x, y = batch(len(script.losses))
        x.requires_grad_(reentrant)
        return script.step(lambda: F.cross_entropy(script.model[5:](checkpoint(script.model[:5], x, use_reentrant=reentrant)), y))
    return step


def test_a_capturable_optimizer():
    """Without a GPU torch takes `capturable` in a compiled step alone; SGD has no such option."""
    torch._dynamo.reset()
    lr = torch.tensor(0.02, dtype=torch.float64)
    _, converted = same_with_the_line(kind="adamw", lr=lr, capturable=True, train={"steps": 40, "step": compiled_step})
    assert converted.group["capturable"]
    assert converted.handle.ratio(converted.group) < 0.95


@kinds
@pytest.mark.parametrize("step", [compiled_step, compiled_model, checkpointed(False), checkpointed(True)],
                         ids=["compiled step", "compiled model", "checkpoint", "reentrant checkpoint"])
def test_around_the_step(kind, step):
    torch._dynamo.reset()
    lr = torch.tensor(0.02, dtype=torch.float64)
    _, converted = same_with_the_line(kind=kind, lr=lr, train={"steps": 40, "step": step})
    assert converted.handle.ratio(converted.group) < 0.95


@kinds
def test_ddp(kind, process_group):
    def step(script, forward):
        script.whole = getattr(script, "whole", None) or nn.parallel.DistributedDataParallel(script.model)
        x, y = batch(len(script.losses))
        return script.step(lambda: F.cross_entropy(script.whole(x), y))

    _, converted = same_with_the_line(kind=kind, train={"steps": 40, "step": step})
    assert converted.handle.ratio(converted.group) < 0.95


@kinds
def test_fsdp(kind, process_group):
    """Its parameters are others than those that report saw, with the same names; their gradients come around the hooks."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))

    def train(convert):
        script = Script(kind=kind)
        found = report(script.model, loss_of)
        fsdp.fully_shard(script.model, mesh=mesh)
        make, lr, decay, extra = KINDS[kind]
        optimizer = make(script.model.parameters(), lr=lr, weight_decay=decay, **extra)
        handle = remove_weight_decay(optimizer, found.of(script.model)) if convert else None
        losses = []
        for t in range(20):
            x, y = batch(t)
            loss = F.cross_entropy(script.model(x), y)
            loss.backward()
            if handle:
                handle.unscale_()
            torch.nn.utils.clip_grad_norm_(script.model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    assert train(True) == pytest.approx(train(False), rel=1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
def test_report_of_a_model_that_checkpoints_activations(reentrant):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(64, 8), n.NumberInCode(8)), nn.Linear(8, 10)

        def forward(self, x):
            return self.head(checkpoint(self.body, x.flatten(1).requires_grad_(), use_reentrant=reentrant))

    assert report(Model(), lambda m: F.cross_entropy(m(X[:16]), Y[:16])).groups == [("body.0.weight", "body.0.bias")]


# ---- copies ----


@kinds
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_without_hooks_is_refused_at_its_first_step(kind, how):
    script = Script(remove, kind=kind).train(10)
    if how == "deepcopy":
        model, optimizer = copy.deepcopy((script.model, script.optimizer))
    else:
        file = io.BytesIO()
        torch.save((script.model, script.optimizer), file)
        model, optimizer = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    before = [p.detach().clone() for p in model.parameters()]
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="a copy of a converted one, without its hooks"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.zero_grad()
    remove(model, optimizer)
    loss_of(model).backward()
    optimizer.step()


def test_the_report_of_a_copy():
    script = Script()
    found, model = report(script.model, loss_of), copy.deepcopy(script.model)
    assert [p is q for p, q in zip(found.of(model).parameters, found.parameters, strict=True)] == [False] * 4
    assert found.of(model).parameters[0] is model[0].weight
    assert found.of(torch.compile(model, backend="eager")).parameters[0] is model[0].weight
    with pytest.raises(ValueError, match="no parameters named"):
        found.of(nn.Linear(2, 2))


# ---- parameters that take part later ----


class Gated(nn.Module):
    """A branch with a coefficient that is no parameter. Where it comes in decides what it does to the convolution."""

    def __init__(self, before_the_norm):
        super().__init__()
        self.conv, self.norm, self.head = n.conv(1, 4), n.bn(4), nn.Sequential(*n.head(4, 10))
        self.branch, self.gate, self.before_the_norm = n.conv(1 if before_the_norm else 4, 4, bias=True), 0.0, before_the_norm

    def forward(self, x):
        y = self.conv(x)
        if self.before_the_norm:
            return self.head(self.norm(y + self.gate * self.branch(x)).relu())
        y = self.norm(y).relu()
        return self.head(y + self.gate * self.branch(y))


def gated(before_the_norm, convert):
    torch.manual_seed(0)
    model, losses = Gated(before_the_norm).double(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=1.0)
    if convert:
        found = report(model, lambda m: F.cross_entropy(m(X[:16]), Y[:16]))
        assert found.unknown == ["branch.weight", "branch.bias"]
        assert ("conv.weight",) in found.groups
        remove_weight_decay(optimizer, found)
    for t in range(20):
        model.gate = 1.0 if t >= 10 else 0.0
        x, y = batch(t)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_parameter_that_wakes_up_and_changes_nothing():
    assert gated(False, True) == pytest.approx(gated(False, False), rel=1e-10)


def test_a_parameter_that_wakes_up_and_breaks_the_invariance_is_noticed():
    with pytest.raises(RuntimeError, match=r"take part now, and with them \('conv.weight',\) are not scale-invariant any more"):
        gated(True, True)
