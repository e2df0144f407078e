"""Saving and loading converted runs, and copies of them."""

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

from scripts import STEPS, Script, loss_of, remove, warmup_cosine  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

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


@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
def test_loading_an_earlier_state_of_a_model_with_biases_before_its_norm(order):
    """In held form such a bias does not move at all, since it has no effect and no decay."""
    def train(convert):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, 1e-30), nn.ReLU(), nn.Linear(8, 3)).double()
        x, y = torch.randn(16, 6, dtype=torch.float64), torch.randint(3, (16,))
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5, weight_decay=0.1), []
        if convert:
            remove_weight_decay(optimizer, report(model, lambda m: F.cross_entropy(m(x), y)))
        parts = {"model": model, "optimizer": optimizer}
        for t in range(30):
            if t == 10:
                states = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
            if t == 20:
                for name in order:
                    parts[name].load_state_dict(states[name])
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    np.testing.assert_allclose(train(True), train(False), rtol=1e-10)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_checkpoint_that_is_saved_after_the_param_groups_were_put_back(kind):
    """As after a search for the best learning rate. The groups that are put back have P of long ago."""
    usual, converted = Script(scheduler=warmup_cosine, kind=kind).train(5), Script(remove, warmup_cosine, kind=kind).train(5)
    for script in usual, converted:
        numbers = {key: value for key, value in script.group.items() if key != "params"}
        script.train(25)
        script.group.update(numbers)
    resumed = go_on(saved(converted), Script(remove, warmup_cosine, kind=kind))
    np.testing.assert_allclose(resumed, usual.train(STEPS - 30).losses[30:], rtol=0, atol=1e-10)


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
