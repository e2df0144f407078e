"""What torch's optimizers can do besides, with the one line: closures, scaled gradients, fused and failing steps."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import KINDS, Script, assert_same, batch, kinds, loss_of, remove, same_with_the_line, warmup_cosine, with_closure  # noqa: E402
from torch.nn import functional as F  # noqa: E402


@kinds
def test_closures(kind):
    same_with_the_line(lambda *script: remove(*script, band=1.25), train={"step": with_closure}, kind=kind)


@kinds
def test_a_step_that_fails_half_way(kind):
    usual, failing = Script(kind=kind).train(40), Script(remove, kind=kind).train(20)
    before = failing.state()

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing.optimizer.step(closure)
    assert all(map(torch.equal, before, failing.state()))
    assert failing.group["weight_decay"] == KINDS[kind][2]
    assert failing.group["params"] == list(failing.model.parameters())
    assert_same(usual, failing.train(20))


@kinds
@pytest.mark.parametrize("fused", [False, True])
def test_lr_as_a_tensor(kind, fused):
    lr = torch.tensor(0.02, dtype=torch.float64)
    same_with_the_line(lr=lr, scheduler=warmup_cosine, kind=kind, fused=fused, train={"steps": 60})


@kinds
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_implementations_of_torchs_step(kind, options):
    same_with_the_line(kind=kind, train={"steps": 60}, **options)


@kinds
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_gradient_scaling(kind, fused, unscale):
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

    _, converted = same_with_the_line(train={"steps": 50, "step": step}, kind=kind, fused=fused)
    assert converted.group["minibn"]["steps"] == [48] * 3


@kinds
def test_gradients_are_the_scripts_own_before_and_after_the_step(kind):
    """So clipping, accumulation and logs need nothing more."""
    scripts = Script(kind=kind).train(30), Script(remove, kind=kind).train(30)
    assert scripts[1].handle.ratio(scripts[1].group) < 0.9
    for when in ("before", "after"):
        for script in scripts:
            if when == "before":
                script.optimizer.zero_grad()
                loss_of(script.model).backward()
            else:
                script.optimizer.step()
        for one, other in zip(*(script.model.parameters() for script in scripts), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def accumulating(script, forward):
    """Three backward passes for each step, and gradients that are set to 0, not to None."""
    loss = forward()
    loss.backward()
    if len(script.losses) % 3 == 2:
        script.optimizer.step()
        script.optimizer.zero_grad(set_to_none=False)
    return loss


def piling_up(script, forward):
    """Gradients that are never set to 0, only made smaller: momentum by hand."""
    for p in script.model.parameters():
        if p.grad is not None:
            p.grad.mul_(0.5)
    loss = forward()
    loss.backward()
    script.optimizer.step()
    return loss


def sometimes_without_backward(script, forward):
    """A step on gradients of zeros: momentum and decay alone."""
    script.optimizer.zero_grad(set_to_none=False)
    loss = forward()
    if len(script.losses) % 5 != 2:
        loss.backward()
    script.optimizer.step()
    return loss


def clipping(script, forward):
    script.optimizer.zero_grad()
    loss = forward()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(script.model.parameters(), 0.1)
    assert norm > 0.1  # at every step
    script.optimizer.step()
    return loss


def by_value(script, forward):
    script.optimizer.zero_grad()
    loss = forward()
    loss.backward()
    torch.nn.utils.clip_grad_value_(script.model.parameters(), 1e-2)
    script.optimizer.step()
    return loss


def with_autograd_grad(script, forward):
    loss = forward()
    parameters = list(script.model.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.grad = gradient
    script.optimizer.step()
    return loss


def with_gradients_of_a_copy(script, forward):
    """As with `torch.func` and FSDP, no gradient comes through the hook of a parameter."""
    detached = {n: p.detach().requires_grad_() for n, p in script.model.named_parameters()}
    x, y = batch(len(script.losses))
    loss = F.cross_entropy(torch.func.functional_call(script.model, detached, (x,)), y)
    for p, gradient in zip(script.model.parameters(), torch.autograd.grad(loss, list(detached.values())), strict=True):
        p.grad = gradient
    script.optimizer.step()
    return loss


def twice_on_one_gradient(script, forward):
    script.optimizer.zero_grad()
    loss = forward()
    loss.backward()
    script.optimizer.step()
    script.optimizer.step()
    return loss


@kinds
@pytest.mark.parametrize("step", [accumulating, piling_up, sometimes_without_backward, clipping, by_value,
                                  with_autograd_grad, with_gradients_of_a_copy, twice_on_one_gradient])
def test_what_scripts_do_with_gradients(kind, step):
    _, converted = same_with_the_line(lambda *script: remove(*script, band=1.5), kind=kind, train={"steps": 60, "step": step})
    assert converted.handle.ratio(converted.group) != 1


def test_clipping_by_norm_would_notice_another_scale():
    """The control: at the scale of the held weights, the same threshold clips otherwise."""
    def step(script, forward):
        script.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        for p in script.handle.parameters if script.handle else ():
            p.grad.mul_(script.handle.ratio(p))
        torch.nn.utils.clip_grad_norm_(script.model.parameters(), 0.1)
        for p in script.handle.parameters if script.handle else ():
            p.grad.div_(script.handle.ratio(p))
        script.optimizer.step()
        return loss

    usual, converted = Script(), Script(remove)
    for script in usual, converted:
        script.train(60, step=step)
    assert abs(usual.losses[-1] - converted.losses[-1]) > 1e-5


def test_clipping_where_gradients_come_around_the_hooks():
    def step(script, forward):
        detached = {n: p.detach().requires_grad_() for n, p in script.model.named_parameters()}
        x, y = batch(len(script.losses))
        loss = F.cross_entropy(torch.func.functional_call(script.model, detached, (x,)), y)
        for p, gradient in zip(script.model.parameters(), torch.autograd.grad(loss, list(detached.values())), strict=True):
            p.grad = gradient
        if script.handle:
            script.handle.unscale_()
        torch.nn.utils.clip_grad_norm_(script.model.parameters(), 0.1)
        script.optimizer.step()
        return loss

    same_with_the_line(train={"steps": 60, "step": step})


def test_gradients_that_come_through_the_hooks_at_some_steps_only_are_refused():
    script = Script(remove).train(5)
    script.model[0].weight.grad = torch.ones_like(script.model[0].weight)
    with pytest.raises(RuntimeError, match="did not come from a backward pass"):
        script.optimizer.step()


@kinds
@pytest.mark.parametrize(("name", "value"), [("lr", float("nan")), ("lr", float("inf")), ("lr", "a"), ("weight_decay", None)])
def test_numbers_of_a_param_group_that_are_none_are_refused_at_the_step(kind, name, value):
    script = Script(remove, kind=kind).train(3)
    loss_of(script.model).backward()
    script.group[name] = value
    with pytest.raises(ValueError, match=f"{name} of a param group must be a finite number.*, got {value!r}"):
        script.optimizer.step()


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
def test_sgd_with_a_number_below_zero_is_refused_at_the_step(name):
    script = Script(remove).train(3)
    script.group[name] = -0.1
    with pytest.raises(ValueError, match=f"{name} of a param group must be a finite number of at least 0, got -0.1"):
        script.train(1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_the_handle_is_not_copied(copied):
    script = Script(remove).train(3)
    with pytest.raises(TypeError, match="cannot be copied or pickled. Save the states"):
        copied(script.handle)
