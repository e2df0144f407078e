"""Momentum that starts, ends, or is not the same for all weights of a set."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import Script, both, loss_of, remove, same_with_the_line  # noqa: E402

from minibn.pytorch import add_weight_decay, report  # noqa: E402


@both
@pytest.mark.parametrize("adding", [False, True])
def test_momentum_that_starts_later(nesterov, adding):
    """Torch starts with a velocity of 0 then."""
    def each(script, t):
        script.group["momentum"] = 0.9 if t >= 20 else 0.0

    options = {"weight_decay": 0.0, "lr": 0.02} if adding else {}
    line = (lambda model, optimizer: add_weight_decay(optimizer, 2e-2, report(model, loss_of))) if adding else remove
    _, converted = same_with_the_line(line, train={"steps": 40, "each": each}, nesterov=nesterov, **options)
    assert "momentum_buffer" in converted.optimizer.state[converted.model[0].weight]


def test_momentum_that_goes_to_0_is_refused_and_nothing_is_changed():
    """Torch keeps a stale buffer then."""
    script = Script(remove).train(10)
    script.group["momentum"] = 0.0
    before = script.state()
    with pytest.raises(ValueError, match="momentum went to 0"):
        script.train(1)
    assert all(map(torch.equal, before, script.state()))
    assert script.group["minibn"]["steps"] == [10] * 3


def late_beta(script, t):
    """β of the first norm has no gradient, and so no momentum, at the first ten steps."""
    script.model[1].bias.requires_grad_(t >= 10)


def test_a_weight_whose_momentum_starts_at_the_line_may_join_others_that_have_theirs():
    usual, converted = Script().train(10, late_beta), Script().train(10, late_beta)
    for script in usual, converted:
        script.model[1].bias.requires_grad_()
    converted.handle = remove(converted.model, converted.optimizer)
    assert ("1.weight", "1.bias") in converted.handle.scales
    assert converted.train(20).losses == pytest.approx(usual.train(20).losses, rel=1e-10)


def test_with_dampening_it_may_not():
    """Torch does not dampen its first gradient, but those of the others."""
    script = Script(dampening=0.5).train(10, late_beta)
    script.model[1].bias.requires_grad_()
    remove(script.model, script.optimizer)
    before = script.state()
    with pytest.raises(ValueError, match="came to some parameters later than to others"):
        script.train(1)
    assert all(map(torch.equal, before, script.state()))
