"""PyTorch users: a script with the one line added trains the same network, and goes on doing so through all that scripts do."""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minibn import data, invariance

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from test_torch_oracle import NETWORKS, NORMS  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

from minibn.pytorch import add_weight_decay, effective_lr, remove_weight_decay, report  # noqa: E402

DIGITS = data.digits("float64")
X, Y = torch.tensor(DIGITS.x_train.transpose(0, 3, 1, 2).copy()), torch.tensor(DIGITS.y_train)
STEPS, ROOT = 200, Path(__file__).parent.parent


def network(eps=1e-30):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, eps), nn.ReLU(),
        nn.Conv2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6, eps), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)).double()


def batch(t, size=32):
    i = torch.randperm(len(Y), generator=torch.Generator().manual_seed(t))[:size]
    return X[i], Y[i]


def loss_of(model):
    return F.cross_entropy(model(X[:16]), Y[:16])


def remove(model, optimizer, **options):
    """The one line."""
    return remove_weight_decay(optimizer, report(model, loss_of), **options)


class Script:
    """Somebody's training script; `line` is the one that was added."""

    def __init__(self, line=None, scheduler=None, *, eps=1e-30, split=False, lr=0.05, momentum=0.9, weight_decay=2e-2, **options):
        self.model = network(eps)
        parameters = list(self.model.parameters())
        if split:
            convs = [p for p in parameters if p.ndim == 4]
            parameters = [{"params": convs}, {"params": [p for p in parameters if p.ndim < 4], "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(parameters, copy.deepcopy(lr), momentum=momentum, weight_decay=weight_decay, **options)
        self.scheduler = scheduler and scheduler(self.optimizer)
        self.losses, self.lrs, self.effective_lrs = [], [], []
        self.handle = line and line(self.model, self.optimizer)

    def train(self, steps=STEPS, each=None, step=lambda script, forward: script.step(forward)):
        """`each(script, t)` is called before step t."""
        for t in range(len(self.losses), len(self.losses) + steps):
            x, y = batch(t)
            if each:
                each(self, t)
            self.lrs.append(float(self.group["lr"]))
            self.effective_lrs.append(effective_lr(self.optimizer))
            loss = step(self, lambda x=x, y=y: F.cross_entropy(self.model(x), y))
            self.losses.append(loss.item())
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(loss.item())
            elif self.scheduler:
                self.scheduler.step()
        return self

    def step(self, forward):
        self.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        self.optimizer.step()
        return loss

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def state(self):
        """All that a step changes, as one list of tensors."""
        buffers = [state.get("momentum_buffer") for state in self.optimizer.state.values()]
        return [p.detach().clone() for p in [*self.model.parameters(), *(b for b in buffers if b is not None)]]


def assert_same(script, other, tolerance=1e-10):
    """The same training: equal loss curves, and loss curves of something that is trained at all."""
    gap = np.abs(np.array(script.losses) - other.losses).max()
    assert gap < tolerance
    assert len(set(script.losses)) == len(script.losses)
    return gap


def same_with_the_line(line=remove, tolerance=1e-10, train=None, **options):
    """Train with and without the line; returns both scripts."""
    usual, converted = Script(**options), Script(line, **options)
    for script in usual, converted:
        script.train(**(train or {}))
    assert_same(usual, converted, tolerance)
    return usual, converted


# ---- schedulers ----


def warmup_cosine(optimizer):
    return lr_scheduler.SequentialLR(optimizer, [lr_scheduler.LinearLR(optimizer, 0.01, total_iters=20),
                                                 lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 20)], [20])


def plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=10)


def chained(optimizer):
    """Both multiply group["lr"] by a factor, so they see what each other and the last step left there."""
    return lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(optimizer, 0.995),
                                          lr_scheduler.MultiStepLR(optimizer, [50, 120], 0.3)])


def one_cycle(optimizer):
    """Cycles the momentum too."""
    return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)


def with_zeros(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if t < 3 or t % 10 == 0 else 1.0)


def growing(optimizer):
    return lr_scheduler.ExponentialLR(optimizer, 1.01)


both = pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])


@both
@pytest.mark.parametrize("scheduler", [warmup_cosine, plateau, chained, one_cycle, with_zeros])
def test_the_one_line_reproduces_the_loss_curve(scheduler, nesterov):
    usual, converted = same_with_the_line(lambda *script: remove(*script, band=1.5), scheduler=scheduler, nesterov=nesterov)
    assert usual.losses[-1] < 0.75 * usual.losses[0]
    assert usual.lrs == converted.lrs
    assert len(set(usual.lrs)) > 1
    ratio = converted.handle.ratio(converted.group)
    assert abs(ratio - 1) > 0.05
    torch.testing.assert_close(usual.model[0].weight, ratio * converted.model[0].weight, rtol=1e-8, atol=0)
    torch.testing.assert_close(usual.model[8].weight, converted.model[8].weight, rtol=1e-8, atol=0)


@both
def test_adding_weight_decay_to_an_exponential_schedule(nesterov):
    usual, converted = same_with_the_line(lambda model, optimizer: add_weight_decay(optimizer, 1e-2, report(model, loss_of)),
                                          scheduler=growing, weight_decay=0.0, lr=0.02, nesterov=nesterov)
    ratio = converted.handle.ratio(converted.group)
    assert ratio > 1.5  # how much larger the weights would have become
    torch.testing.assert_close(usual.model[0].weight, ratio * converted.model[0].weight, rtol=1e-8, atol=0)


@both
def test_weight_decay_and_momentum_that_are_changed_by_hand(nesterov):
    def each(script, t):
        script.group["weight_decay"], script.group["momentum"] = 1e-3 * (t % 7), 0.5 + 0.4 * (t % 3) / 2

    same_with_the_line(train={"each": each}, nesterov=nesterov)


def test_without_weight_decay_every_bit_is_torchs():
    usual, converted = same_with_the_line(tolerance=1e-300, weight_decay=0.0, scheduler=warmup_cosine)
    assert converted.handle.frame(converted.group) == (1.0, 0.0, 1.0)
    assert all(map(torch.equal, usual.state(), converted.state()))


def test_bands_only_move_the_point():
    """Weights scaled by powers of two: not a bit of the losses changes."""
    scripts = [Script(lambda *script, band=band: remove(*script, band=band)).train() for band in (None, 1.25, 2.0**8)]
    assert scripts[0].losses == scripts[1].losses == scripts[2].losses
    norms = [float(torch.linalg.vector_norm(script.model[0].weight.detach())) for script in scripts]
    assert norms[0] == norms[2] > 1.5 * norms[1]


def test_evaluation_needs_batch_norms_averages_taken_anew():
    usual, converted = same_with_the_line(lambda *script: remove(*script, band=2.0))

    def outputs():
        with torch.no_grad():
            return [script.model.eval()(X[:50]) for script in (usual, converted)]

    lagging = outputs()
    assert (lagging[0] - lagging[1]).abs().max() > 0.1
    for script in usual, converted:
        torch.optim.swa_utils.update_bn(X.split(100), script.model)
    torch.testing.assert_close(*outputs(), rtol=0, atol=1e-10)


def test_eps_makes_it_approximate():
    gaps = {}
    for eps in (1e-30, 1e-9, 1e-7, 1e-5, 1e-3):
        usual, converted = Script(eps=eps, scheduler=warmup_cosine).train(), Script(remove, warmup_cosine, eps=eps).train()
        gaps[eps] = np.abs(np.array(usual.losses) - converted.losses).max()
    print("\nlargest gap of the losses by eps:", {eps: f"{gap:.0e}" for eps, gap in gaps.items()})
    assert gaps[1e-30] < 1e-12
    assert 1e-11 < gaps[1e-9] < 1e-2 * gaps[1e-5] < 1e-2


# ---- checkpoints ----


def saved(script):
    """The bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save([script.model.state_dict(), script.optimizer.state_dict(), script.scheduler.state_dict()], file)
    return file.getvalue()


def go_on(checkpoint, script, line=None):
    states = torch.load(io.BytesIO(checkpoint), weights_only=True)
    for part, state in zip((script.model, script.optimizer, script.scheduler), states, strict=True):
        part.load_state_dict(state)
    script.handle = line(script.model, script.optimizer) if line else script.handle
    script.losses = [0.0] * 90
    script.train(STEPS - 90)
    return script.losses[90:]


@both
def test_save_and_load_in_the_middle_changes_nothing(nesterov):
    options = {"scheduler": warmup_cosine, "nesterov": nesterov}
    script = Script(lambda *a: remove(*a, band=1.5), **options).train(90)
    checkpoint = saved(script)
    whole = script.train(STEPS - 90).losses[90:]
    line = lambda *a: remove(*a, band=1.5)  # noqa: E731
    assert go_on(checkpoint, Script(line, **options)) == whole, "line, then load"
    assert go_on(checkpoint, Script(**options), line) == whole, "load, then line"


def test_a_checkpoint_from_before_the_conversion():
    usual = Script(scheduler=warmup_cosine).train(90)
    checkpoint = saved(usual)
    usual.train(STEPS - 90)
    np.testing.assert_allclose(go_on(checkpoint, Script(remove, warmup_cosine)), usual.losses[90:], rtol=0, atol=1e-10)


def test_a_checkpoint_of_another_conversion_is_refused():
    script = Script(remove).train(3)
    state = script.optimizer.state_dict()
    other = Script(lambda model, optimizer: remove_weight_decay(optimizer, [model[0].weight]))
    other.optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"removed for parameters \[0, 1, 2, 3\] .* now it is to be removed for \[0\]"):
        other.train(1)
    bare = Script(weight_decay=0.0)
    bare.optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="weight decay removed .* now it is to be added"):
        add_weight_decay(bare.optimizer, 0.1, report(bare.model, loss_of))


def test_a_copied_optimizer_needs_its_own_line():
    script = Script(remove).train(20)
    script.optimizer.zero_grad()
    model, optimizer = copy.deepcopy((script.model, script.optimizer))
    twin = Script()
    twin.model, twin.optimizer, twin.losses = model, optimizer, list(script.losses)
    remove(model, optimizer)
    assert twin.train(20).losses == script.train(20).losses


# ---- in mid-run ----


@both
def test_there_and_back_in_mid_run(nesterov):
    options = {"scheduler": warmup_cosine, "nesterov": nesterov}
    usual, changing = Script(**options).train(), Script(**options).train(60)
    handle = remove(changing.model, changing.optimizer, band=1.25)
    changing.train(60)
    handle.remove()
    handle.remove()  # again: nothing
    changing.train(30)
    assert "minibn" not in changing.group
    changing.handle = remove(changing.model, changing.optimizer)
    changing.train(50)
    changing.handle.remove()
    assert_same(usual, changing)
    for one, other in zip(usual.state(), changing.state(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_back_between_backward_and_step():
    def step(script, forward):
        script.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        if script.handle and len(script.losses) == 50:
            script.handle.remove()
        script.optimizer.step()
        return loss

    same_with_the_line(train={"step": step})


def test_back_from_added_weight_decay():
    options = {"scheduler": growing, "weight_decay": 0.0, "lr": 0.02}
    usual = Script(**options).train()
    changing = Script(lambda model, optimizer: add_weight_decay(optimizer, 1e-2, report(model, loss_of)), **options).train(100)
    changing.handle.remove()
    assert_same(usual, changing.train(100))


# ---- what torch's SGD does besides ----


def test_no_momentum():
    same_with_the_line(momentum=0.0)


@both
@pytest.mark.parametrize("adding", [False, True])
def test_momentum_that_starts_later(nesterov, adding):
    """Torch starts with a velocity of 0 then."""
    def each(script, t):
        script.group["momentum"] = 0.9 if t >= 30 else 0.0

    options = {"weight_decay": 0.0, "lr": 0.02} if adding else {}
    line = (lambda model, optimizer: add_weight_decay(optimizer, 2e-2, report(model, loss_of))) if adding else remove
    _, converted = same_with_the_line(line, train={"steps": 60, "each": each}, nesterov=nesterov, **options)
    assert "momentum_buffer" in converted.optimizer.state[converted.model[0].weight]


def test_momentum_that_goes_to_0_is_refused_and_nothing_is_changed():
    """Torch keeps a stale buffer then."""
    script = Script(remove).train(10)
    script.group["momentum"] = 0.0
    before = script.state()
    with pytest.raises(ValueError, match="momentum went to 0"):
        script.train(1)
    assert all(map(torch.equal, before, script.state()))
    assert script.group["minibn"]["steps"] == 10


def test_a_step_without_counterpart_changes_nothing():
    script = Script(remove).train(10)
    script.group["lr"] = 100.0
    script.optimizer.zero_grad()
    loss_of(script.model).backward()
    before, gradient = script.state(), script.model[0].weight.grad.clone()
    with pytest.raises(ValueError, match=r"step 10 cannot be converted: .*lr=100.0"):
        script.optimizer.step()
    assert all(map(torch.equal, before, script.state()))
    assert torch.equal(script.model[0].weight.grad, gradient)


def freeze_convs(script, t):
    for module in script.model:
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(t % 10 > 3)


def test_weights_that_are_frozen_for_some_steps():
    """Torch skips them: no decay either."""
    convs = lambda model, optimizer: remove_weight_decay(optimizer, optimizer.param_groups[:1])  # noqa: E731
    _, converted = same_with_the_line(convs, split=True, train={"each": freeze_convs})
    assert converted.group["minibn"]["steps"] == 0.6 * STEPS


def test_a_gradient_that_some_do_not_have():
    script = Script(remove).train(3)
    script.optimizer.zero_grad()
    loss_of(script.model).backward()
    script.model[3].weight.grad, before = None, script.state()
    with pytest.raises(RuntimeError, match=r"1 of the 4 converted .* \[\(6, 4, 3, 3\)\], have no gradient .* group of their own"):
        script.optimizer.step()
    assert all(map(torch.equal, before, script.state()))


def test_frozen_parameters_are_not_converted():
    """A frozen weight of a group scales with no other; where it is alone, nothing is left of it."""
    usual, converted = Script(), Script()
    for script in usual, converted:
        script.model[0].weight.requires_grad_(False)
    converted.handle = remove(converted.model, converted.optimizer)
    assert converted.model[0].weight not in converted.handle.parameters
    assert_same(usual.train(50), converted.train(50))


def test_frozen_parameters_of_a_param_group_are_not_converted_even_if_trained_later():
    def each(script, t):
        script.model[0].weight.requires_grad_(t > 50)

    def line(model, optimizer):
        model[0].weight.requires_grad_(False)
        return remove_weight_decay(optimizer, optimizer.param_groups[:1])

    _, converted = same_with_the_line(line, split=True, train={"each": each})
    assert converted.handle.parameters == {converted.model[3].weight}


def test_sparse_gradients():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    remove_weight_decay(optimizer, [table.weight])
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"of shapes \[\(5, 3\)\], have a sparse gradient"):
        optimizer.step()


def with_closure(script, forward):
    def closure():
        script.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        return loss

    return script.optimizer.step(closure) if len(script.losses) % 2 else script.optimizer.step(closure=closure)


def test_closures():
    same_with_the_line(lambda *script: remove(*script, band=1.25), train={"step": with_closure})


def test_a_step_that_fails_half_way():
    usual, failing = Script().train(40), Script(remove).train(20)
    before = failing.state()

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing.optimizer.step(closure)
    assert all(map(torch.equal, before, failing.state()))
    assert failing.group["weight_decay"] == 2e-2
    assert failing.group["params"] == list(failing.model.parameters())
    assert_same(usual, failing.train(20))


def test_lr_as_a_tensor():
    same_with_the_line(lr=torch.tensor(0.05, dtype=torch.float64), scheduler=warmup_cosine)


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_implementations_of_torchs_step(options):
    same_with_the_line(**options)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_gradient_scaling(fused, unscale):
    """Of GradScaler: overflows at some steps, which are skipped, and gradients that are or are not unscaled by the script."""
    def step(script, forward):
        if not script.losses:
            script.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=5)
        script.optimizer.zero_grad()
        loss = forward()
        script.scaler.scale(loss).backward()
        if len(script.losses) in (7, 23):
            script.model[8].weight.grad[0, 0] = torch.inf
        if unscale:
            script.scaler.unscale_(script.optimizer)
        script.scaler.step(script.optimizer)
        script.scaler.update()
        return loss

    _, converted = same_with_the_line(train={"steps": 50, "step": step}, fused=fused)
    assert converted.group["minibn"]["steps"] == 48


def test_gradients_are_there_after_the_step():
    """As after torch's own, for logs; at weights w / P they are P times as large."""
    usual, converted = Script().train(5), Script(remove, foreach=False).train(5)
    ratio = converted.handle.ratio(converted.group)
    usual.train(1), converted.train(1)
    torch.testing.assert_close(converted.model[0].weight.grad, ratio * usual.model[0].weight.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(converted.model[8].weight.grad, usual.model[8].weight.grad, rtol=1e-9, atol=1e-12)


# ---- effective learning rate ----


def test_effective_lr_does_not_change():
    convs = lambda model, optimizer: remove_weight_decay(optimizer, optimizer.param_groups[:1], band=1.25)  # noqa: E731
    usual, converted = same_with_the_line(convs, split=True, scheduler=warmup_cosine)
    np.testing.assert_allclose(usual.effective_lrs, converted.effective_lrs, rtol=1e-10)
    w = torch.cat([p.flatten() for p in usual.group["params"]])
    assert effective_lr(usual.optimizer)[0] == pytest.approx(usual.group["lr"] / float(w.detach() @ w.detach()))


def test_effective_lr_of_added_weight_decay():
    line = lambda model, optimizer: add_weight_decay(optimizer, 1e-2, optimizer.param_groups[:1])  # noqa: E731
    usual, converted = same_with_the_line(line, split=True, weight_decay=0.0)
    np.testing.assert_allclose(usual.effective_lrs, converted.effective_lrs, rtol=1e-10)


def test_effective_lr_of_chosen_parameters():
    """Of a param group with others, converted or not."""
    usual, converted = Script().train(20), Script(remove).train(20)
    for chosen in (lambda model: [model[0].weight, model[3].weight]), (lambda model: [model[0].weight, model[8].weight]):
        (one,), (other,) = (effective_lr(script.optimizer, chosen(script.model)) for script in (usual, converted))
        square = sum(float(p.detach().square().sum()) for p in chosen(usual.model))
        assert one == pytest.approx(0.05 / square, rel=1e-12)
        assert other == pytest.approx(one, rel=1e-10)


def test_effective_lr_of_zeros():
    assert effective_lr(torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)) == [np.inf]


# ---- refusals ----


@pytest.mark.parametrize(("options", "reason"), [
    ({"dampening": 0.1}, "dampening=0.1 cannot be converted: torch leaves the first gradient undamped"),
    ({"maximize": True}, "maximize=True cannot be converted: minimise the negative loss"),
    ({"differentiable": True}, "differentiable=True cannot be converted: the hooks do not record"),
])
def test_param_groups_that_are_refused(options, reason):
    script = Script(**options)
    with pytest.raises(ValueError, match=reason):
        remove(script.model, script.optimizer)
    assert "minibn" not in script.group
    assert not script.optimizer._optimizer_step_pre_hooks


def test_what_is_refused():
    script = Script()
    model, optimizer = script.model, script.optimizer
    convs = [model[0].weight, model[3].weight]
    with pytest.raises(TypeError, match="only torch.optim.SGD can be converted, got AdamW: the averages of adaptive"):
        remove_weight_decay(torch.optim.AdamW(model.parameters()), convs)
    with pytest.raises(ValueError, match=r"1 of the parameters are not in the optimizer, of shapes \[\(2,\)\]"):
        remove_weight_decay(optimizer, [*convs, torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="nothing to convert"):
        remove_weight_decay(optimizer, [])
    with pytest.raises(ValueError, match="band must be a finite number above 1"):
        remove_weight_decay(optimizer, convs, band=0.5)
    with pytest.raises(ValueError, match="weight_decay"):
        add_weight_decay(optimizer, -1.0, convs)
    remove_weight_decay(optimizer, convs)
    with pytest.raises(ValueError, match="converted already; call .remove"):
        remove_weight_decay(optimizer, [model[0].weight])


def test_adding_to_weight_decay_is_refused():
    script = Script(lambda model, optimizer: add_weight_decay(optimizer, 0.1, [model[0].weight]))
    with pytest.raises(ValueError, match="step 0 already has weight_decay=0.02"):
        script.train(1)


def test_weights_that_share_a_scale_must_be_decayed_alike():
    """A bias before LayerNorm is scale-invariant only with its weight; most scripts leave biases without weight decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, 1e-30), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 4)
    found = report(model, lambda model: model(x).square().mean())
    assert found.groups == [("0.weight", "0.bias")]
    weights, biases = ([p for p in model.parameters() if (p.ndim == 1) == vector] for vector in (False, True))
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    remove_weight_decay(optimizer, found)
    model(x.double()).square().mean().backward()
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"param groups \[0, 1\] have weights that are scale-invariant only together"):
        optimizer.step()
    assert torch.equal(before, model[0].weight)
    groups[1]["weight_decay"] = optimizer.param_groups[1]["weight_decay"] = 0.1
    optimizer.step()
    assert not torch.equal(before, model[0].weight)


# ---- the report ----


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_measured_groups_are_those_of_the_layers(name, norm):
    """`invariance.symmetries` of the same network in minibn, whose parameters come in the same order."""
    (ours, theirs), (our_norm, their_norm) = NETWORKS[name], NORMS[norm]
    expected = invariance.symmetries(ours(norm=our_norm, rng=np.random.default_rng(0), dtype="float64"))
    model = theirs(lambda c: their_norm(c, eps=1e-5, affine=True, dtype=torch.float64))
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8)
    found = report(model, lambda model: F.cross_entropy(model(x), y))
    translate = dict(zip((n for n, _ in model.named_parameters()), expected.names, strict=True))
    assert [tuple(translate[n] for n in group) for group in found.groups] == expected.groups
    assert len(found.basis) == len(expected.basis)
    for vector in found.basis:
        assert all(equation.holds({translate[n]: a for n, a in vector.items()}) for equation in expected.equations)


def test_the_report_leaves_the_model_as_it_is():
    model = network(1e-5).float().eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = report(model, lambda model: F.cross_entropy(F.dropout(model(X[:16].float())), Y[:16]))
    assert found.groups == [("0.weight",), ("1.weight", "1.bias"), ("3.weight",)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(seed, torch.get_rng_state())
    assert not model.training
    assert model[1].eps == 1e-5
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[1].weight.grad is None
    assert not model._forward_pre_hooks
    assert found.parameters == [model[0].weight, model[1].weight, model[1].bias, model[3].weight]
    assert [p for group in found for p in group] == found.parameters


def test_the_report_says_how_exact_it_is():
    exact, approximate = (report(network(eps), loss_of) for eps in (1e-30, 1e-5))
    assert max(exact.gaps) < 1e-12
    assert 1e-7 < max(approximate.gaps) < 1e-2
    assert exact.is_scale_invariant(["1.weight", "1.bias", "3.weight"])
    assert not exact.is_scale_invariant(["1.weight"])
    with pytest.raises(ValueError, match="no parameters named"):
        exact.is_scale_invariant(["2.weight"])
    assert "3 scale-invariant groups with 4 of 8 parameters\nweight decay can be removed from them exactly" in str(exact)
    assert "approximately: the gaps come from the normalisations' eps, here up to 1e-05; with eps = 1e-30 it" in str(approximate)
    assert [line.split()[:2] for line in str(exact).splitlines()[1:5]] == [
        ["0.weight", "1"], ["1.weight", "2"], ["1.bias", "2"], ["3.weight", "3"]]
    nothing = report(nn.Linear(64, 10), lambda model: model(X[:4].flatten(1)).square().sum())
    assert "no parameter is scale-invariant" in str(nothing)


def test_the_gap_is_that_of_the_models_own_eps():
    model = network(1e-5)
    before = torch.autograd.grad(loss_of(model), list(model.parameters()))
    model[0].weight.data *= 2
    after = torch.autograd.grad(loss_of(model), list(model.parameters()))
    change = [a * (2 if p is model[0].weight else 1) - b for a, b, p in zip(after, before, model.parameters(), strict=True)]
    change, before = (torch.cat([g.flatten() for g in gradients]) for gradients in (change, before))
    assert report(network(1e-5), loss_of).gaps[0] == pytest.approx(float(change.norm() / before.norm()), rel=1e-9)


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="needs PyTorch 2.4")
def test_rms_norms_own_eps_is_that_of_the_models_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.RMSNorm(6), nn.ReLU(), nn.Linear(6, 10))
    found = report(model, lambda model: F.cross_entropy(model(X[:16].flatten(1)), Y[:16]))
    assert found.groups == [("0.weight", "0.bias")]
    assert "eps, here up to 1.19209e-07" in str(found)


def test_a_bias_before_batch_norm_has_no_effect_and_may_be_scaled():
    model = nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))
    found = report(model, lambda model: F.cross_entropy(model(X[:16].flatten(1)), Y[:16]))
    assert found.groups == [("0.weight",), ("0.bias",)]


def test_starts_at_zero_do_not_hide_anything():
    """γ = 0 at the end of a branch, as many ResNets start: the branch has no effect yet."""
    model = network()
    nn.init.zeros_(model[1].weight)
    assert report(model, loss_of).groups == report(network(), loss_of).groups


def test_parameters_of_a_transformer():
    """Pre-norm: what writes into the residual stream scales together, and nothing else does."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False),
                          nn.Linear(8, 3))
    x = torch.randn(4, 5, 4)
    writers = ("self_attn.out_proj", "linear2")
    names = [n for n, _ in model.named_parameters() if n.startswith("0.") or any(w in n for w in writers)]
    assert report(model, lambda model: model(x).square().mean()).groups == [tuple(names)]


def test_what_the_report_cannot_measure():
    model = network()
    cases = [(lambda copy: loss_of(model), "must use the model that it is given"),
             (lambda copy: copy(X[:16]), "must return the scalar loss"),
             (lambda copy: loss_of(copy) / 0, "the loss is inf"),
             (lambda copy: F.cross_entropy(copy[6:](copy[:6](X[:16]).float()), Y[:16]), "not exact enough")]
    for loss_fn, message in cases:
        with pytest.raises(ValueError, match=message):
            report(model, loss_fn)
    with pytest.raises(ValueError, match="no parameters that require gradients"):
        report(network().requires_grad_(False), loss_of)


# ---- without PyTorch ----


def test_minibn_does_not_import_torch():
    code = "import minibn, sys; assert 'torch' not in sys.modules; sys.modules['torch'] = None; import minibn.pytorch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: minibn.pytorch needs PyTorch; install it with")


def test_demos_that_lack_it_are_skipped(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-m", "demos", "pytorch", "--quick", "--output", str(tmp_path)], cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "skipped: needs PyTorch; install it with: pip install torch" in done.stderr
    assert "0 of 1 demos hold, skipped 14_pytorch: see" in done.stdout


def test_going_back_after_loading_a_checkpoint_from_before_the_conversion():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    handle = remove_weight_decay(optimizer, model.parameters())
    optimizer.load_state_dict(before)
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks
    remove_weight_decay(optimizer, model.parameters())  # it can be converted again


def test_gradients_are_there_again_after_a_step_that_was_broken_off():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    remove_weight_decay(optimizer, [model.weight])

    def fail(*_):
        raise RuntimeError("another hook")

    hook = optimizer.register_step_pre_hook(fail)
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="another hook"):
        optimizer.step()
    hook.remove()
    optimizer.step()
    assert model.weight.grad is not None


@pytest.mark.parametrize(("groups", "given"), [(torch.nn.Linear(2, 2), "Linear"), ("weight", "str"), (3, "int")])
def test_groups_that_are_none(groups, given):
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(TypeError, match=f"groups must be report.*got {given}"):
        remove_weight_decay(optimizer, groups)
