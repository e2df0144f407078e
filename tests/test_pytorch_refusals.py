"""What cannot be converted is refused by the line itself, with the reason and what to do."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import KINDS, Script, assert_same, kinds, loss_of, remove  # noqa: E402
from torch import nn  # noqa: E402

from minibn.pytorch import add_weight_decay, premise, remove_weight_decay, report  # noqa: E402
from minibn.pytorch.parts import Part, Set  # noqa: E402

# ---- refusals ----


@pytest.mark.parametrize(("options", "reason"), [
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
    with pytest.raises(ValueError, match=r"1 of the parameters are not in the optimizer, of shapes \[\(2,\)\]"):
        remove_weight_decay(optimizer, [*convs, torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="nothing to convert"):
        remove_weight_decay(optimizer, [])
    with pytest.raises(ValueError, match="band must be a finite number above 1"):
        remove_weight_decay(optimizer, convs, band=0.5)
    with pytest.raises(ValueError, match="weight_decay"):
        add_weight_decay(optimizer, -1.0, convs)
    with pytest.raises(ValueError, match="the list of optimizers is empty"):
        remove_weight_decay([], convs)
    with pytest.raises(ValueError, match="mixed must be one of"):
        remove_weight_decay(optimizer, convs, mixed="ignore")
    with pytest.warns(UserWarning, match="its running averages are not carried along") as noted:
        remove_weight_decay(optimizer, convs)
    assert noted[0].filename == __file__
    with pytest.raises(ValueError, match="converted already; call .remove"):
        remove_weight_decay(optimizer, [model[0].weight])


def test_a_report_without_groups_says_in_the_error_what_stands_in_the_way():
    """The embedding is tied to the last layer, and q, k and v are one matrix."""
    torch.manual_seed(0)
    model, tokens = n.GPT(tied=True, qk_norm=True), torch.randint(16, (4, 6))
    found = report(model, lambda m: m(tokens))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"nothing to convert: .*are one tensor \(tied\).*\(q, k and v apart\)") as refused:
        remove_weight_decay(optimizer, found)
    assert all(hint in str(refused.value) for hint in found.hints)
    plain = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="nothing to convert: the report found no .* A model without normalisation has none"):
        remove_weight_decay(torch.optim.SGD(plain.parameters()), report(plain, lambda m: m(torch.ones(1, 2)).square().sum()))


@kinds
def test_adding_to_weight_decay_is_refused(kind):
    script = Script(lambda model, optimizer: add_weight_decay(optimizer, 0.1, [model[0].weight], averages=False), kind=kind)
    with pytest.raises(ValueError, match=f"step 0 already has weight_decay={KINDS[kind][2]}"):
        script.train(1)


def test_decay_that_leaves_nothing_of_the_weights_is_refused():
    script = Script(remove, kind="adamw", lr=0.5, weight_decay=2.0)
    with pytest.raises(ValueError, match="step 0 cannot be converted: weight decay would carry the weights through zero"):
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
    with pytest.raises(ValueError, match="are scale-invariant only together") as refused:
        remove_weight_decay(optimizer, found)
    assert "('0.weight', '0.bias'): 1 of 2 with {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.1}; 1 of 2" in str(refused.value)
    assert 'with mixed="skip"' in str(refused.value)
    assert 'with mixed="move"' in str(refused.value)
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(ValueError, match="nothing to convert"):
        remove_weight_decay(optimizer, found, mixed="skip")
    optimizer.param_groups[1]["weight_decay"] = 0.1
    remove_weight_decay(optimizer, found)
    model(x.double()).square().mean().backward()
    optimizer.step()
    optimizer.param_groups[1]["weight_decay"], before = 0.0, model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"at this step they are decayed in different ways"):
        optimizer.step()
    assert torch.equal(before, model[0].weight)


@pytest.mark.parametrize("make", [lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9),
                                  lambda groups: torch.optim.AdamW(groups, 0.1)], ids=["sgd", "adamw"])
def test_weights_that_share_a_scale_must_step_together_in_whatever_param_groups_they_are(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, 1e-30), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    optimizer = make([{"params": [p], "weight_decay": 0.1} for p in model.parameters()])
    handle = remove_weight_decay(optimizer, report(model, lambda model: model(x).square().mean()))
    for missing in (model[0].weight, model[0].bias):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        missing.grad, before = None, [p.detach().clone() for p in model.parameters()]
        with pytest.raises(RuntimeError, match="have no gradient at this step"):
            optimizer.step()
        assert all(map(torch.equal, before, model.parameters()))
    assert set(handle.scales.values()) == {1.0}


@pytest.mark.parametrize(("groups", "given"), [
    (torch.nn.Linear(2, 2), "Linear"), ("weight", "str"), (3, "int"), (["weight"], r"str; for names, .* found\.of\(model\)"),
    ([["weight"]], "str"), ([torch.nn.Linear(2, 2)], "Linear"), ([3], "int"), ([[3]], "int"), ([{"params": ["weight"]}], "str")])
def test_groups_that_are_none(groups, given):
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(TypeError, match=f"groups must be report.*got {given}"):
        remove_weight_decay(optimizer, groups)


# ---- gradients that say otherwise ----


def penalty(model):
    return 0.05 * sum(p.square().sum() for p in model.parameters())


def with_a_penalty(script, forward):
    return script.step(lambda: forward() + penalty(script.model))


def with_frozen_statistics(script, forward):
    script.model.eval()
    return script.step(forward)


@pytest.mark.parametrize("step", [with_a_penalty, with_frozen_statistics])
def test_another_loss_than_that_of_the_report_is_noticed_by_its_first_gradient(step):
    """The theorem's premise, <∂L/∂w, w> = 0, is looked at once more where it counts."""
    script = Script(remove)
    with pytest.raises(RuntimeError, match=r"first gradient of \('0.weight',\) is not orthogonal .* same penalties"):
        script.train(1, step=step)
    with pytest.raises(RuntimeError, match="is not orthogonal"):  # and again
        script.train(1, step=step)
    script.handle.remove()
    script.train(1, step=step)


@pytest.mark.parametrize("strength", [1e-2, 1e-4])
def test_a_small_part_along_the_weights_is_a_warning(strength):
    def step(script, forward):
        return script.step(lambda: forward() + strength * penalty(script.model))

    script = Script(remove)
    with pytest.warns(UserWarning, match="less orthogonal to these weights than in the report"):
        script.train(1, step=step)


def test_a_report_of_the_loss_with_its_penalty_has_nothing_to_convert():
    script = Script()
    found = report(script.model, lambda model: loss_of(model) + penalty(model))
    assert found.groups == []


def test_parameters_given_by_hand_that_are_not_scale_invariant_are_noticed():
    script = Script(lambda model, optimizer: remove_weight_decay(optimizer, list(model.parameters()), averages=False))
    with pytest.raises(RuntimeError, match=r"first gradient of \(6,\) \(given at place 4\) is not orthogonal .* Give report\("):
        script.train(1)


def test_what_a_script_does_to_its_gradients_is_its_own_affair():
    """The gradients of backward are looked at, not those that the script made of them; and finite ones only."""
    def step(script, forward):
        script.optimizer.zero_grad()
        (forward() * (torch.inf if len(script.losses) == 0 else 1)).backward()
        if len(script.losses):
            torch.nn.utils.clip_grad_value_(script.model.parameters(), 1e-3)
            script.optimizer.step()
        return forward()

    usual, converted = Script().train(20, step=step), Script(remove).train(20, step=step)
    assert_same(usual, converted)
    assert not converted.handle._along._usual


def test_gradients_that_were_thrown_away_say_nothing():
    """Adversarial images are made in evaluation mode, with gradients that no step takes."""
    def step(script, forward):
        script.model.eval()
        forward().backward()
        script.model.train()
        return script.step(forward)

    assert_same(Script().train(3, step=step), Script(remove).train(3, step=step))


def some(name):
    """A set of two weights."""
    return Set((name,), [Part(None, 0, [0], [nn.Parameter(torch.tensor([1.0, 0.0]))])], set())


def saw(seen, s, part, size=1.0):
    """A backward pass that gives a gradient of which `part` is along the weights."""
    p = s.members[0]
    p.grad = size * torch.tensor([part, (1 - part**2) ** 0.5])
    seen.saw(s, p, p.grad)


def test_gradients_that_are_not_finite_or_next_to_nothing_say_nothing_and_the_next_one_is_looked_at():
    large, small = some("large"), some("small")
    seen = premise.Along({large: 0.0, small: 0.0})
    saw(seen, large, 0.5, torch.inf)
    seen.check([large, small])
    saw(seen, large, 0.5)
    with pytest.raises(RuntimeError, match="large"):
        seen.check([large, small])
    saw(seen, large, 0.0)
    seen.check([large, small])
    saw(seen, small, 1.0, 1e-4)  # rounding, or an effect of eps
    seen.check([large, small])
    saw(seen, small, 1.0)
    with pytest.raises(RuntimeError, match="small"):
        seen.check([large, small])


def test_after_a_hundred_gradients_next_to_nothing_a_set_is_not_looked_at_any_more():
    large, never = some("large"), some("never")
    seen = premise.Along({large: 0.0, never: 0.0})
    for _ in range(premise.PATIENCE):
        saw(seen, large, 0.0)
        saw(seen, never, 1.0, 1e-4)
        seen.check([large, never])
    saw(seen, never, 1.0)
    seen.check([large, never])


def test_frozen_statistics_are_noticed_behind_a_head_that_starts_at_0():
    """There the first gradient is 0. The second one says it."""
    def at_0(model, optimizer):
        torch.nn.init.zeros_(model[-1].weight)
        return remove(model, optimizer)

    script = Script(at_0)
    script.train(1, step=with_frozen_statistics)
    with pytest.raises(RuntimeError, match=r"first gradient of .* is not orthogonal"):
        script.train(1, step=with_frozen_statistics)
    assert_same(Script(lambda model, _: torch.nn.init.zeros_(model[-1].weight)).train(20), Script(at_0).train(20))


def test_first_gradients_may_have_ten_times_the_part_along_the_weights_that_the_report_saw():
    one, other, third = some("one"), some("other"), some("third")
    seen = premise.Along({one: 0.009, other: 0.007, third: 0.08})
    for s, part in ((one, 0.08), (other, 0.08), (third, 0.2)):
        saw(seen, s, part)
    with pytest.warns(UserWarning, match="other.* is 0.08 of .*, in the report 0.007") as noted:
        seen.check([one, other, third])
    assert len(noted) == 1


def test_what_the_step_takes_counts_as_well():
    """DDP averages the gradients of its processes after each of them was seen."""
    s = some("s")
    seen = premise.Along({s: 0.0})
    saw(seen, s, 0.9)
    s.members[0].grad = torch.tensor([0.0, 1.0])
    seen.check([s])
    saw(seen, s, 0.9)
    s.members[0].grad = None  # frozen meanwhile
    seen.check([s])
