"""PyTorch users: a script with the one line added trains the same network, and goes on doing so through all that scripts do."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import (  # noqa: E402
    STEPS,
    Script,
    assert_same,
    both,
    chained,
    growing,
    kinds,
    loss_of,
    one_cycle,
    plateau,
    remove,
    same_with_the_line,
    warmup_cosine,
    with_zeros,
)
from torch import nn  # noqa: E402

from minibn.pytorch import add_weight_decay, effective_lr, remove_weight_decay, report  # noqa: E402


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"kind": "adamw"}], ids=["heavy-ball", "nesterov", "adamw"])
@pytest.mark.parametrize("scheduler", [warmup_cosine, plateau, chained, one_cycle, with_zeros])
def test_the_one_line_reproduces_the_loss_curve(scheduler, options):
    usual, converted = same_with_the_line(lambda *script: remove(*script, band=1.5), scheduler=scheduler, **options)
    assert usual.losses[-1] < 0.9 * usual.losses[0]
    assert usual.lrs == converted.lrs
    assert len(set(usual.lrs)) > 1
    ratio = converted.handle.ratio(converted.group)
    assert abs(ratio - 1) > 1e-3
    torch.testing.assert_close(usual.model[0].weight, ratio * converted.model[0].weight, rtol=1e-8, atol=0)
    torch.testing.assert_close(usual.model[8].weight, converted.model[8].weight, rtol=1e-8, atol=0)


@pytest.mark.parametrize("options", [{"lr": 0.02}, {"lr": 0.02, "nesterov": True}, {"kind": "adamw", "lr": 0.005}], ids=str)
def test_adding_weight_decay_to_an_exponential_schedule(options):
    decay = 2e-2 if "kind" not in options else 1.0
    usual, converted = same_with_the_line(lambda model, optimizer: add_weight_decay(optimizer, decay, report(model, loss_of)),
                                          scheduler=growing, weight_decay=0.0, **options)
    ratio = converted.handle.ratio(converted.group)
    assert ratio > 1.2  # how much larger the weights would have become
    torch.testing.assert_close(usual.model[0].weight, ratio * converted.model[0].weight, rtol=1e-8, atol=0)


@both
def test_weight_decay_and_momentum_that_are_changed_by_hand(nesterov):
    def each(script, t):
        script.group["weight_decay"], script.group["momentum"] = 1e-3 * (t % 7), 0.5 + 0.4 * (t % 3) / 2

    same_with_the_line(train={"each": each}, nesterov=nesterov)


@kinds
def test_without_weight_decay_every_bit_is_torchs(kind):
    usual, converted = same_with_the_line(tolerance=1e-300, weight_decay=0.0, scheduler=warmup_cosine, kind=kind)
    assert converted.handle.frame(converted.group) == (1.0, 0.0, 1.0)
    assert all(map(torch.equal, usual.state(), converted.state()))


@kinds
def test_bands_only_move_the_point(kind):
    """Weights scaled by powers of two: not a bit of the losses changes."""
    lines = [lambda *script, band=band: remove(*script, band=band) for band in (None, 1.25, 2.0**8)]
    scripts = [Script(line, kind=kind).train() for line in lines]
    assert scripts[0].validation == scripts[1].validation == scripts[2].validation
    assert scripts[0].losses == scripts[1].losses == scripts[2].losses
    norms = [float(torch.linalg.vector_norm(script.model[0].weight.detach())) for script in scripts]
    assert norms[0] == norms[2] > 1.5 * norms[1]


def test_eps_makes_it_approximate():
    gaps = {}
    for eps in (1e-30, 1e-9, 1e-5):
        usual, converted = Script(eps=eps, scheduler=warmup_cosine).train(), Script(remove, warmup_cosine, eps=eps).train()
        gaps[eps] = np.abs(np.array(usual.losses) - converted.losses).max()
    print("\nlargest gap of the losses by eps:", {eps: f"{gap:.0e}" for eps, gap in gaps.items()})
    assert gaps[1e-30] < 1e-12
    assert 1e-11 < gaps[1e-9] < 1e-2 * gaps[1e-5] < 1e-2


# ---- in mid-run ----


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"kind": "adamw"}], ids=["heavy-ball", "nesterov", "adamw"])
def test_there_and_back_in_mid_run(options):
    options = {"scheduler": warmup_cosine, **options}
    usual, changing = Script(**options).train(), Script(**options).train(15)
    handle = remove(changing.model, changing.optimizer, band=1.25)
    changing.train(15)
    handle.remove()
    handle.remove()  # again: nothing
    changing.train(10)
    assert "minibn" not in changing.group
    changing.handle = remove(changing.model, changing.optimizer)
    changing.train(20)
    changing.handle.remove()
    assert_same(usual, changing)
    for one, other in zip(usual.state(), changing.state(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_back_between_backward_and_step():
    def step(script, forward):
        script.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        if script.handle and len(script.losses) == 30:
            script.handle.remove()
        script.optimizer.step()
        return loss

    same_with_the_line(train={"step": step})


def test_back_from_added_weight_decay():
    options = {"scheduler": growing, "weight_decay": 0.0, "lr": 0.02}
    usual = Script(**options).train()
    changing = Script(lambda model, optimizer: add_weight_decay(optimizer, 1e-2, report(model, loss_of)), **options).train(30)
    changing.handle.remove()
    assert_same(usual, changing.train(STEPS - 30))


# ---- what torch's SGD does besides ----


def test_no_momentum():
    same_with_the_line(momentum=0.0)


def test_dampening():
    """It scales gradient and decay of all steps but the first."""
    same_with_the_line(dampening=0.5)
    same_with_the_line(dampening=0.3, train={"each": lambda script, t: script.group.update(dampening=0.1 * (t % 5))})


@kinds
def test_maximize(kind):
    def step(script, forward):
        script.optimizer.zero_grad()
        loss = forward()
        (-loss).backward()
        script.optimizer.step()
        return loss

    same_with_the_line(kind=kind, maximize=True, train={"step": step})


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
    convs = lambda model, optimizer: remove_weight_decay(optimizer, optimizer.param_groups[:1], averages=False)  # noqa: E731
    _, converted = same_with_the_line(convs, split=True, train={"each": freeze_convs})
    assert converted.group["minibn"]["steps"] == [0.6 * STEPS]


@kinds
def test_sets_that_have_no_gradient_at_some_steps(kind):
    """Each has a scale of its own: torch leaves the second convolution alone then, and so its decay."""
    def step(script, forward):
        script.optimizer.zero_grad()
        loss = forward()
        loss.backward()
        if len(script.losses) % 3 == 1:
            script.model[3].weight.grad = None
        script.optimizer.step()
        return loss

    _, converted = same_with_the_line(kind=kind, train={"steps": 60, "step": step})
    assert converted.handle.ratio(converted.model[0].weight) < 0.9 * converted.handle.ratio(converted.model[3].weight)


@kinds
def test_a_gradient_that_some_of_a_set_do_not_have(kind):
    script = Script(remove, kind=kind).train(3)
    script.optimizer.zero_grad()
    loss_of(script.model).backward()
    script.model[1].bias.grad, before = None, script.state()
    with pytest.raises(RuntimeError, match=r"1 of the 2 weights \('1.weight', '1.bias'\), .* \[\(4,\)\], have no gradient"):
        script.optimizer.step()
    assert all(map(torch.equal, before, script.state()))


def test_frozen_parameters_are_not_converted():
    """A frozen weight of a group scales with no other; where it is alone, nothing is left of it."""
    usual, converted = Script(), Script()
    for script in usual, converted:
        script.model[0].weight.requires_grad_(False)
    converted.handle = remove_weight_decay(converted.optimizer, report(converted.model, loss_of))
    assert converted.model[0].weight not in converted.handle.parameters
    assert_same(usual.train(50), converted.train(50))


def test_frozen_parameters_of_a_param_group_are_not_converted_even_if_trained_later():
    def each(script, t):
        script.model[0].weight.requires_grad_(t > 25)

    def line(model, optimizer):
        model[0].weight.requires_grad_(False)
        return remove_weight_decay(optimizer, optimizer.param_groups[:1], averages=False)

    _, converted = same_with_the_line(line, split=True, train={"each": each})
    assert converted.handle.parameters == {converted.model[3].weight}


def test_sparse_gradients():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    remove_weight_decay(optimizer, [table.weight], averages=False)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"of shapes \[\(5, 3\)\], have a sparse gradient"):
        optimizer.step()


# ---- effective learning rate ----


def test_effective_lr_does_not_change():
    convs = lambda model, optimizer: remove_weight_decay(optimizer, optimizer.param_groups[:1], band=1.25, averages=False)  # noqa: E731
    usual, converted = same_with_the_line(convs, split=True, scheduler=warmup_cosine)
    np.testing.assert_allclose(usual.effective_lrs, converted.effective_lrs, rtol=1e-10)
    w = torch.cat([p.flatten() for p in usual.group["params"]])
    assert effective_lr(usual.optimizer)[0] == pytest.approx(usual.group["lr"] / float(w.detach() @ w.detach()))


def test_effective_lr_of_added_weight_decay():
    line = lambda model, optimizer: add_weight_decay(optimizer, 1e-2, optimizer.param_groups[:1], averages=False)  # noqa: E731
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


def test_effective_lr_of_adamw_has_the_weights_once():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    assert effective_lr(torch.optim.AdamW([w], 0.1)) == [pytest.approx(0.1 / 5)]
    assert effective_lr(torch.optim.AdamW([w], 0.1), power=2) == [pytest.approx(0.1 / 25)]


def test_effective_lr_of_zeros():
    assert effective_lr(torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)) == [np.inf]
