"""What scripts do by hand in mid-training: it is exact, or it is refused by name, and never silently wrong."""


import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import Script, assert_same, kinds, loss_of, network, remove, trained, with_closure  # noqa: E402
from torch import nn  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402

# ---- another optimizer ----


@kinds
def test_a_new_optimizer_for_converted_weights_is_refused_until_they_are_the_scripts_again(kind):
    script = trained(kind)
    script.optimizer = torch.optim.AdamW(script.model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match="this AdamW steps weights that another optimizer's conversion holds"):
        script.train(1)
    with pytest.raises(ValueError, match="converted already, for another optimizer: call .remove"):
        remove(script.model, script.optimizer)
    script.handle.remove()
    usual = Script(kind=kind).train(10)
    usual.optimizer = torch.optim.AdamW(usual.model.parameters(), 1e-3)
    assert script.train(10).losses == pytest.approx(usual.train(10).losses, rel=1e-10)


def test_a_parameter_in_two_optimizers_is_refused():
    model = network()
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1) for _ in range(2)]
    with pytest.raises(ValueError, match="in two of these optimizers"):
        remove_weight_decay(optimizers, report(model, loss_of))


class Logged(torch.optim.SGD):
    """Steps as SGD does."""

    def step(self, closure=None):
        self.count = getattr(self, "count", 0) + 1
        return super().step(closure)


def test_the_step_of_a_subclass_that_calls_its_parents_is_one_step():
    def train(line):
        model = network()
        Logged(model.parameters(), 0.1)
        torch.optim.SGD(model.parameters(), 0.1)  # torch wraps the steps of both classes then, and calls the hooks twice
        optimizer, losses = Logged(model.parameters(), 0.1, momentum=0.9, weight_decay=0.03), []
        if line:
            remove_weight_decay(optimizer, report(model, loss_of), decay="l2")
        for _ in range(20):
            optimizer.zero_grad()
            losses.append(loss_of(model))
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses).tolist()

    assert train(True) == pytest.approx(train(False), rel=1e-11)
    model = network()
    with pytest.raises(TypeError, match='decay="l2" if it calls the step of SGD'):
        remove_weight_decay(Logged(model.parameters(), 0.1, momentum=0.9, weight_decay=0.03), report(model, loss_of))


# ---- hooks of the script ----


def clip(optimizer, *_):
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.05)


def lower(optimizer, *_):
    for group in optimizer.param_groups:
        group["lr"] *= 0.97


@kinds
@pytest.mark.parametrize("early", [True, False], ids=["before the line", "after it"])
@pytest.mark.parametrize(("moment", "hook"), [("pre", clip), ("pre", lower), ("post", lower)])
def test_step_hooks_of_the_script_see_its_own_gradients_and_lr(kind, early, moment, hook):
    def line(convert):
        def added(model, optimizer):
            register = getattr(optimizer, f"register_step_{moment}_hook")
            if early:
                register(hook)
            handle = remove(model, optimizer) if convert else None
            if not early:
                register(hook)
            return handle
        return added

    assert_same(Script(line(False), kind=kind).train(30), Script(line(True), kind=kind).train(30))


@kinds
def test_before_a_step_with_a_closure_any_hook_may_be_registered(kind):
    def step(script, forward):
        if not script.losses:
            script.optimizer.register_step_pre_hook(lower)
        return with_closure(script, forward)

    assert_same(Script(kind=kind).train(20, step=step), Script(remove, kind=kind).train(20, step=step))


class Wrapped(torch.optim.Optimizer):
    """It calls the steps of the optimizer inside, and is one itself."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


def test_a_wrapper_may_call_the_steps_of_a_converted_optimizer():
    script, usual = trained(), Script().train(10)
    for one in script, usual:
        one.optimizer = Wrapped(one.optimizer)
    assert_same(usual.train(20), script.train(20))


def test_a_step_hook_that_comes_after_the_backward_pass_is_refused():
    script = trained()
    loss_of(script.model).backward()
    script.optimizer.register_step_pre_hook(lower)
    with pytest.raises(RuntimeError, match="registered on this optimizer after the backward pass"):
        script.optimizer.step()


@kinds
def test_hooks_of_a_parameter_see_the_scripts_own_gradient_whenever_they_were_registered(kind):
    def line(convert):
        def added(model, optimizer):
            norms = []
            for p in model.parameters():
                p.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
                p.register_hook(lambda gradient: norms.append(float(gradient.norm())))
            if convert:
                remove(model, optimizer)
            return norms
        return added

    usual, converted = (Script(line(convert), kind=kind).train(60) for convert in (False, True))
    assert converted.losses == pytest.approx(usual.losses, rel=1e-10)
    assert converted.handle == pytest.approx(usual.handle, rel=1e-8)


# ---- weights, momentum, averages, param groups ----


def revive(script):
    script.model[3].weight[3].normal_(generator=torch.Generator().manual_seed(5))


def shorten(script):
    script.model[3].weight[1:-1].copy_(torch.renorm(script.model[3].weight[1:-1], 2, 0, 0.1))


@kinds
@pytest.mark.parametrize("write", [revive, shorten])
def test_numbers_written_into_the_middle_of_a_weight_are_noticed(kind, write):
    script = trained(kind)
    with torch.no_grad():
        write(script)
    for action in (lambda: script.train(1), script.handle.original().__enter__):
        with pytest.raises(RuntimeError, match="of shape .6, 4, 3, 3. was changed between steps"):
            action()
    with pytest.warns(UserWarning, match="takes what is there for held weights. This is done now") as noted:
        script.handle.remove()
    assert noted[0].filename == __file__
    script.train(1)


@kinds
def test_inside_original_they_may_be_written(kind):
    def write(script, t):
        if t == 10:
            with torch.no_grad(), script.handle.original() if script.handle else torch.no_grad():
                revive(script)

    assert_same(Script(kind=kind).train(30, each=write), Script(remove, kind=kind).train(30, each=write))


@kinds
def test_weights_that_are_perturbed_during_the_backward_pass_are_noticed(kind):
    """Sharpness-aware minimisation by hand brings them back before the step."""
    script = trained(kind)
    weight = script.model[0].weight
    with torch.no_grad():
        before = weight.clone()
        weight.add_(0.1)
    with pytest.raises(RuntimeError, match="perturbed.*inside `with handle.original"):
        loss_of(script.model).backward()
    with torch.no_grad():
        weight.copy_(before)  # the same numbers are no change
    script.train(1)


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_momentum_that_is_changed_by_hand_is_noticed(factor):
    script = trained()
    for state in script.optimizer.state.values():
        state["momentum_buffer"].mul_(factor)
    with pytest.raises(RuntimeError, match="momentum of a converted weight was changed"):
        script.train(1)


def test_momentum_that_is_cleared_starts_anew():
    def clear(script, t):
        if t == 10:
            script.optimizer.state.clear()

    assert_same(Script().train(30, each=clear), Script(remove).train(30, each=clear))


@kinds
def test_running_averages_that_are_reset_are_noticed_and_exact_inside_original(kind):
    script = trained(kind)
    script.model[1].reset_running_stats()
    with pytest.warns(UserWarning, match="running averages of 1 were reset"):
        script.train(1)

    def reset(script, t):
        if t == 10:
            with script.handle.original() if script.handle else torch.no_grad():
                script.model[1].reset_running_stats()

    assert_same(Script(kind=kind).train(30, each=reset), Script(remove, kind=kind).train(30, each=reset))


@kinds
def test_a_norm_that_is_replaced_by_a_copy_has_its_averages_carried_on(kind):
    def replace(script, t):
        if t == 10:
            other = nn.BatchNorm2d(4, 1e-30).double()
            other.load_state_dict(script.model[1].state_dict())
            other.weight, other.bias = script.model[1].weight, script.model[1].bias
            script.model[1] = other

    assert_same(Script(kind=kind).train(40, each=replace), Script(remove, kind=kind).train(40, each=replace))


def reverse(optimizer, convs):
    optimizer.param_groups.reverse()


def delete(optimizer, convs):
    del optimizer.param_groups[0]


def move(optimizer, convs):
    optimizer.param_groups[0]["params"] = convs[1:]
    optimizer.add_param_group({"params": convs[:1], "lr": 0.01})


@kinds
@pytest.mark.parametrize("change", [reverse, delete, move])
def test_param_groups_that_are_rearranged_are_noticed(kind, change):
    script = Script(remove, kind=kind, split=True).train(5)
    change(script.optimizer, list(script.optimizer.param_groups[0]["params"]))
    before = script.state()
    for action in (script.handle.remove, script.handle.original().__enter__, lambda: script.train(1)):
        with pytest.raises(RuntimeError, match="param groups were reordered, or converted parameters were moved"):
            action()
        if action is script.handle.remove:
            assert all(map(torch.equal, before, script.state()))
