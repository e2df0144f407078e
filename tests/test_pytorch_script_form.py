"""The script's own weights of a converted model, and averages of them."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import Script, X, Y, images, kinds, loss_of, remove  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim import swa_utils  # noqa: E402

from minibn.pytorch import remove_weight_decay  # noqa: E402

# ---- the script's own weights ----


@kinds
def test_the_scripts_own_weights(kind):
    usual, converted = Script(kind=kind).train(40), Script(remove, kind=kind).train(40)
    before = converted.state()
    with converted.handle.original():
        for (name, one), other in zip(usual.model.state_dict().items(), converted.model.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12, msg=name)
        converted.model.zero_grad()
        loss_of(converted.model).backward()
        loss_of(usual.model.zero_grad() or usual.model).backward()
        torch.testing.assert_close(converted.model[0].weight.grad, usual.model[0].weight.grad, rtol=1e-8, atol=1e-12)
        with pytest.raises(RuntimeError, match="a step inside"):
            converted.optimizer.step()
        with pytest.raises(RuntimeError, match="inside itself"), converted.handle.original():
            pass
    assert all(map(torch.equal, before, converted.state()))
    assert abs(converted.handle.ratio(converted.group) - 1) > 0.1


def test_weights_that_are_set_by_hand():
    usual, converted = Script().train(20), Script(remove).train(20)
    with converted.handle.original():
        best = copy.deepcopy(converted.model.state_dict())
    for script in (usual, converted):
        script.best = copy.deepcopy(script.model.state_dict()) if script is usual else best
        script.train(20)
    usual.model.load_state_dict(usual.best)
    with converted.handle.original():
        converted.model.load_state_dict(best)
    for script in (usual, converted):
        script.train(20)
    assert converted.losses == pytest.approx(usual.losses, rel=1e-9)
    assert converted.validation == pytest.approx(usual.validation, rel=1e-9)


@pytest.mark.parametrize("write", [lambda model, best: model.load_state_dict(best),
                                   lambda model, best: model[0].reset_parameters(),
                                   lambda model, best: model[0].weight.data.mul_(2)], ids=["load", "start again", "data"])
def test_weights_that_are_set_elsewhere_are_refused(write):
    script = Script(remove).train(20)
    best = copy.deepcopy(script.model.state_dict())
    script.train(5)
    write(script.model, best)
    with pytest.raises(RuntimeError, match="was changed between steps .* inside `with handle.original"):
        script.train(1)


def test_weights_that_are_exchanged_for_a_while():
    """As evaluation with averaged weights does."""
    usual, converted = Script().train(20), Script(remove).train(20)
    for script in (usual, converted):
        kept = [p.detach().clone() for p in script.model.parameters()]
        for p in script.model.parameters():
            p.data.zero_()
        for p, value in zip(script.model.parameters(), kept, strict=True):
            p.data.copy_(value)
        script.train(5)
    assert converted.losses == pytest.approx(usual.losses, rel=1e-10)


# ---- averages of weights ----


def averaging(script, average):
    def each(script, t):
        if t:
            average.update_parameters(script.model)
    return each


def bare(handle, model, **options):
    return swa_utils.AveragedModel(model, **options)


@kinds
@pytest.mark.parametrize("make", [lambda handle, model, **options: handle.averaged(model, **options), bare],
                         ids=["of the handle", "torch's own"])
@pytest.mark.parametrize("options", [{}, {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9), "use_buffers": True}],
                         ids=["swa", "ema"])
def test_averages_of_weights(kind, options, make):
    usual, converted = Script(kind=kind), Script(remove, kind=kind)
    averages = [bare(None, usual.model, **options), make(converted.handle, converted.model, **options)]
    for script, average in zip((usual, converted), averages, strict=True):
        script.train(60, each=averaging(script, average))
    for one, other in zip(averages[0].state_dict().values(), averages[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    losses = [F.cross_entropy(average.eval()(X[:64]), Y[:64]).item() for average in averages]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_averages_by_hand():
    def each(script, t):
        with script.handle.original() if script.handle else torch.no_grad():
            for mean, p in zip(script.mean, script.model.parameters(), strict=True):
                mean.lerp_(p.detach(), 0.1)

    usual, converted = Script(), Script(remove)
    for script in (usual, converted):
        script.mean = [p.detach().clone() for p in script.model.parameters()]
        script.train(40, each=each)
    for one, other in zip(usual.mean, converted.mean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_averages_of_the_held_weights_are_others():
    """The control: late weights count more."""
    usual, converted = Script(), Script(remove)
    directions = []
    for script in (usual, converted):
        seen = []
        script.train(60, each=lambda script, t, seen=seen: seen.append(script.model[0].weight.detach().clone()))
        directions.append(F.normalize(torch.stack(seen).mean(0).flatten(), dim=0))
    assert (directions[0] - directions[1]).norm() > 1e-3


def test_an_average_that_was_begun_before_the_line_and_goes_on_after_the_way_back():
    usual, changing = Script(), Script()
    averages, handles = [swa_utils.AveragedModel(script.model) for script in (usual, changing)], []  # handles that stay alive
    for steps, line in ((10, None), (20, remove), (20, None)):
        if changing.handle:
            changing.handle.remove()
        changing.handle = line and line(changing.model, changing.optimizer)
        handles.append(changing.handle)
        for script, average in zip((usual, changing), averages, strict=True):
            script.train(steps, each=averaging(script, average))
    for one, other in zip(averages[0].state_dict().values(), averages[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_an_average_of_a_model_with_two_conversions_and_inside_the_scripts_own_form():
    """Two optimizers, each with a line of its own."""
    def train(convert):
        torch.manual_seed(0)
        model = nn.Sequential(n.conv(3, 4), n.bn(4), nn.ReLU(), n.conv(4, 4), n.bn(4), *n.head(4)).double()
        optimizers = [torch.optim.SGD([model[0].weight], 0.05, weight_decay=0.05),
                      torch.optim.AdamW([model[3].weight], 0.02, weight_decay=1.0)]
        handles = [remove_weight_decay(o, o.param_groups[0], averages=False) for o in optimizers] if convert else []
        average = swa_utils.AveragedModel(model)
        for t in range(20):
            F.cross_entropy(model(images(t)[0]), images(t)[1]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if handles and t % 2:
                with handles[0].original():
                    average.update_parameters(model)
            else:
                average.update_parameters(model)
        return [average.module[i].weight.detach() for i in (0, 3)]

    for one, other in zip(train(False), train(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_an_average_can_be_saved(tmp_path):
    script = Script(remove)
    average = script.handle.averaged(script.model)
    script.train(10, each=averaging(script, average))
    torch.save(average, tmp_path / "average.pt")
    again = torch.load(tmp_path / "average.pt", weights_only=False)
    assert torch.equal(again.module[0].weight, average.module[0].weight)
