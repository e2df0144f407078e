"""Steps that an exception broke off: what the hooks had begun is undone, whatever comes next."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import KINDS, Script, assert_same, kinds, loss_of, remove  # noqa: E402
from torch import nn  # noqa: E402

from minibn.pytorch import effective_lr, remove_weight_decay, report  # noqa: E402


def break_off(optimizer):
    """Torch's own step fails, after the hooks before it."""
    def fail(*_):
        raise RuntimeError("in the middle")

    optimizer._init_group = fail
    with pytest.raises(RuntimeError, match="in the middle"):
        optimizer.step()
    del optimizer._init_group


def test_gradients_are_there_again_after_a_step_that_was_broken_off():
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    remove_weight_decay(optimizer, [model.weight], averages=False)
    (model(torch.arange(3.0)) / model.weight.norm()).sum().backward()
    break_off(optimizer)
    optimizer.step()
    assert model.weight.grad is not None
    assert optimizer.param_groups[0]["minibn"]["steps"] == [1]


def test_newer_gradients_are_kept_after_a_step_that_was_broken_off():
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    remove_weight_decay(optimizer, [model.weight], averages=False)
    for x in (torch.arange(3.0), torch.ones(3)):
        optimizer.zero_grad()
        (model(x) / model.weight.norm()).sum().backward()
        newest = model.weight.grad.clone()
        if not optimizer.param_groups[0]["minibn"]["steps"][0]:
            break_off(optimizer)
    optimizer.step()
    assert torch.equal(model.weight.grad, newest)


@pytest.mark.parametrize(("make", "decays"), [
    (torch.optim.SGD, (1.0, 0.0)), (torch.optim.AdamW, (1.0, 0.0)), (torch.optim.Adafactor, (1.0, 1.0))])
def test_weights_that_grow_at_a_step_have_not_grown_after_it_was_broken_off(make, decays):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, 1e-30), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    groups = [{"params": [p for p in model.parameters() if (p.ndim == 1) == vector], "weight_decay": decay}
              for vector, decay in zip((False, True), decays, strict=True)]
    optimizer = make(groups, lr=0.1)
    remove_weight_decay(optimizer, report(model, lambda model: model(x).square().mean()), mixed="move")
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        before = [p.detach().clone() for p in model.parameters()]
        break_off(optimizer)
        optimizer.state_dict()
        assert all(map(torch.equal, before, model.parameters()))
        optimizer.step()


def both_broken_off(kind):
    """(usual, converted) after a step that only the hooks of the second have seen, both with its gradients."""
    usual, failing = Script(kind=kind).train(10), Script(remove, kind=kind).train(10)
    for script in usual, failing:  # both, as it moves BatchNorm's running averages
        script.optimizer.zero_grad()
        loss_of(script.model).backward()
    break_off(failing.optimizer)
    return usual, failing


@kinds
def test_after_a_step_that_was_broken_off_training_goes_on_as_if_it_had_not_begun(kind):
    usual, failing = both_broken_off(kind)
    assert failing.optimizer.state_dict()["param_groups"][0]["lr"] == KINDS[kind][1]
    assert_same(usual.train(20), failing.train(20))
    assert len(failing.optimizer.param_groups) == 1


@kinds
@pytest.mark.parametrize("zeroed", [True, False])
def test_the_next_gradient_after_a_step_that_was_broken_off_is_the_scripts_own(kind, zeroed):
    usual, failing = both_broken_off(kind)
    for script in usual, failing:
        if zeroed:
            script.optimizer.zero_grad()
        loss_of(script.model).backward()
    for one, other in zip(usual.model.parameters(), failing.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@kinds
def test_a_step_that_was_broken_off_may_be_taken_again(kind):
    usual, failing = both_broken_off(kind)
    for script in usual, failing:
        script.optimizer.step()
    assert_same(usual.train(20), failing.train(20))


@kinds
def test_going_back_after_a_step_that_was_broken_off(kind):
    usual, failing = both_broken_off(kind)
    failing.handle.remove()
    assert failing.group["lr"] == KINDS[kind][1]
    assert failing.group["weight_decay"] == KINDS[kind][2]
    assert failing.group["params"] == list(failing.model.parameters())
    for one, other in zip(usual.state(), failing.state(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@kinds
def test_the_scripts_own_weights_after_a_step_that_was_broken_off(kind):
    usual, failing = both_broken_off(kind)
    with failing.handle.original():
        for one, other in zip(usual.state(), failing.state(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@kinds
@pytest.mark.parametrize("then", ["step", "zero_grad"])
def test_a_learning_rate_that_is_set_right_after_a_step_that_was_broken_off_is_refused_once(kind, then):
    usual, failing = both_broken_off(kind)
    failing.group["lr"] = 0.01
    with pytest.raises(RuntimeError, match="lr of the optimizer's param groups was changed right after a step"):
        getattr(failing.optimizer, then)()
    for script in usual, failing:
        script.group["lr"] = 0.01
        script.optimizer.step()
    assert_same(usual.train(20), failing.train(20))


@kinds
def test_a_param_group_that_is_added_right_after_a_step_that_was_broken_off_is_refused_once(kind):
    _, failing = both_broken_off(kind)
    new = {"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]}
    failing.optimizer.add_param_group(dict(new))
    with pytest.raises(RuntimeError, match="params of the optimizer's param groups was changed right after a step"):
        failing.optimizer.step()
    failing.optimizer.add_param_group(dict(new))
    failing.train(5)
    assert len(failing.optimizer.param_groups) == 2


@kinds
def test_the_effective_learning_rate_after_a_step_that_was_broken_off(kind):
    usual, failing = both_broken_off(kind)
    chosen = [list(script.model.parameters())[:1] for script in (usual, failing)]
    assert effective_lr(failing.optimizer, chosen[1]) == pytest.approx(effective_lr(usual.optimizer, chosen[0]), rel=1e-9)


@kinds
def test_a_hook_that_asks_for_the_scripts_own_weights_in_the_middle_of_a_step(kind):
    usual, converted = Script(kind=kind), Script(remove, kind=kind)

    def look(*_):
        with converted.handle.original():
            pass

    converted.optimizer.register_step_pre_hook(look)
    assert_same(usual.train(20), converted.train(20))


def test_a_set_that_has_no_gradient_after_a_step_that_was_broken_off_is_left_alone():
    usual, failing = both_broken_off("adamw")
    for script in usual, failing:
        script.optimizer.zero_grad()
        loss_of(script.model).backward()
        script.model[0].weight.grad = None
        script.optimizer.step()
        script.train(5)
    assert failing.group["minibn"]["steps"] == [15, 16, 16]
    assert_same(usual, failing)


@kinds
def test_a_zero_grad_that_the_script_has_replaced_stays_its_own(kind):
    script = Script(remove, kind=kind)
    zero_grad, called = script.optimizer.zero_grad, []
    script.optimizer.zero_grad = own = lambda *args: (called.append(args), zero_grad(*args))
    loss_of(script.model).backward()
    break_off(script.optimizer)
    script.optimizer.zero_grad(True)
    assert called == [(True,)]
    assert all(p.grad is None for p in script.model.parameters())
    assert script.train(3).optimizer.zero_grad is own


class Twice(torch.optim.AdamW):
    """Looks at the closure once more than it needs."""

    def step(self, closure=None):
        closure()
        return super().step(closure)


def test_an_optimizer_that_calls_its_closure_twice():
    scripts = Script(), Script()
    for script in scripts:
        script.optimizer = Twice(script.model.parameters(), lr=0.02, weight_decay=1.0)
    usual, converted = scripts
    handle = remove(converted.model, converted.optimizer, decay="lr*wd")
    for _ in range(5):
        for script in scripts:
            def closure(model=script.model):
                model.zero_grad()
                loss = loss_of(model)
                loss.backward()
                return loss

            script.losses.append(script.optimizer.step(closure).item())
    torch.testing.assert_close(usual.losses, converted.losses, rtol=1e-10, atol=0)
    assert converted.group["lr"] == 0.02
    assert max(handle.scales.values()) < 1
