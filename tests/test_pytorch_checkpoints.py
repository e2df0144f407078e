"""Saving and loading converted runs, and copies of them."""

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import STEPS, Script, loss_of, remove, warmup_cosine  # noqa: E402

from minibn.pytorch import add_weight_decay, remove_weight_decay, report  # noqa: E402

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
    script.losses = [0.0] * 30
    script.train(STEPS - 30)
    return script.losses[30:]


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"kind": "adamw"}], ids=["heavy-ball", "nesterov", "adamw"])
def test_save_and_load_in_the_middle_changes_nothing(options):
    options = {"scheduler": warmup_cosine, **options}
    script = Script(lambda *a: remove(*a, band=1.5), **options).train(30)
    checkpoint = saved(script)
    whole = script.train(STEPS - 30).losses[30:]
    line = lambda *a: remove(*a, band=1.5)  # noqa: E731
    assert go_on(checkpoint, Script(line, **options)) == whole, "line, then load"
    assert go_on(checkpoint, Script(**options), line) == whole, "load, then line"


def test_a_checkpoint_from_before_the_conversion():
    usual = Script(scheduler=warmup_cosine).train(30)
    checkpoint = saved(usual)
    usual.train(STEPS - 30)
    np.testing.assert_allclose(go_on(checkpoint, Script(remove, warmup_cosine)), usual.losses[30:], rtol=0, atol=1e-10)


def test_a_checkpoint_of_another_conversion_is_refused():
    script = Script(remove).train(3)
    state = script.optimizer.state_dict()
    other = Script(lambda model, optimizer: remove_weight_decay(optimizer, [model[0].weight], averages=False))
    reason = r"removed for parameters \[\[0\], \[1, 2\], \[3\]\] .* now it is to be removed for \[\[0\]\]"
    with pytest.raises(ValueError, match=reason):
        other.optimizer.load_state_dict(state)
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


def test_loading_an_earlier_state_in_the_middle_of_training():
    """Model and optimizer of the same checkpoint: the weights have changed since the last step, and that is right."""
    script = Script(remove, warmup_cosine).train(30)
    checkpoint, losses = saved(script), script.losses
    whole = script.train(STEPS - 30).losses[30:]
    states = torch.load(io.BytesIO(checkpoint), weights_only=True)
    for part, state in zip((script.model, script.optimizer, script.scheduler), states, strict=True):
        part.load_state_dict(state)
    script.losses = losses[:30]
    assert script.train(STEPS - 30).losses[30:] == whole
    assert script.group["minibn"]["steps"] == [STEPS] * 3


def test_loading_a_state_from_before_the_conversion_in_the_middle_of_training():
    usual, converted = Script(scheduler=warmup_cosine).train(30), Script(remove, warmup_cosine).train(20)
    checkpoint = saved(usual)
    np.testing.assert_allclose(go_on(checkpoint, converted), usual.train(STEPS - 30).losses[30:], rtol=0, atol=1e-10)


def test_going_back_after_loading_a_checkpoint_from_before_the_conversion():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    handle = remove_weight_decay(optimizer, model.parameters(), averages=False)
    optimizer.load_state_dict(before)
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks
    remove_weight_decay(optimizer, model.parameters(), averages=False)  # it can be converted again
