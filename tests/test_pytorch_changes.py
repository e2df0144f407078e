"""Checkpoints, networks and averages that change in mid-training: exact, or refused by name, and never silently wrong."""

import contextlib
import copy

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import Script, assert_same, kinds, loss_of, network, remove, trained  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402


@kinds
def test_a_checkpoint_made_inside_original_is_an_ordinary_one(kind):
    script, usual = trained(kind), Script(kind=kind).train(10)
    with script.handle.original():
        saved = copy.deepcopy((script.model.state_dict(), script.optimizer.state_dict()))
    for line in (remove, None):
        other = Script(line, kind=kind)
        other.model.load_state_dict(saved[0])
        other.optimizer.load_state_dict(copy.deepcopy(saved[1]))
        other.losses = list(usual.losses)
        assert_same(copy.deepcopy(usual).train(20), other.train(20))


@kinds
def test_the_state_of_the_optimizer_loaded_without_the_weights_is_noticed(kind):
    script = trained(kind)
    saved = copy.deepcopy((script.model.state_dict(), script.optimizer.state_dict()))
    script.train(10)
    script.optimizer.load_state_dict(saved[1])
    with pytest.raises(RuntimeError, match="still that of before, though its scale is another"):
        script.train(1)
    script.model.load_state_dict(saved[0])
    script.train(1)


@kinds
def test_an_ordinary_checkpoint_is_loaded_inside_original(kind):
    """Whatever of it is equal to what was there before."""
    script = trained(kind)
    with script.handle.original():
        saved = copy.deepcopy((script.model.state_dict(), script.optimizer.state_dict()))
    usual = Script(kind=kind).train(10)
    with script.handle.original():
        script.model.load_state_dict(saved[0])
        script.optimizer.load_state_dict(copy.deepcopy(saved[1]))
    assert set(script.handle.scales.values()) == {1.0}
    assert script.model[0].weight.norm().item() == pytest.approx(usual.model[0].weight.norm().item(), rel=1e-12)
    assert_same(usual.train(20), script.train(20))


def test_backward_passes_inside_original_have_the_scripts_own_gradients():
    """Sharpness-aware minimisation, whole inside; also in a run that goes on from a checkpoint."""
    def step(script, forward):
        script.optimizer.zero_grad()
        with script.handle.original() if script.handle else contextlib.nullcontext():
            loss = forward()
            loss.backward()
        script.optimizer.step()
        return loss

    script, usual = trained(), Script().train(10)
    other = Script(remove)
    other.model.load_state_dict(script.model.state_dict())
    other.optimizer.load_state_dict(script.optimizer.state_dict())
    other.losses = list(script.losses)
    assert_same(usual.train(10, step=step), other.train(10, step=step))
    assert_same(usual.train(10), other.train(10))


def test_remove_inside_original_is_refused():
    script = trained()
    with script.handle.original(), pytest.raises(RuntimeError, match="remove.. inside `handle.original"):
        script.handle.remove()
    script.train(1)


def test_the_state_of_a_converted_optimizer_is_not_loaded_inside_original():
    script = trained()
    saved = copy.deepcopy(script.optimizer.state_dict())
    with pytest.raises(RuntimeError, match="be loaded inside `handle.original"), script.handle.original():
        script.optimizer.load_state_dict(saved)


# ---- other networks, other averages ----


def test_an_embedding_whose_rows_torch_shortens_is_not_converted():
    model = nn.Sequential(nn.Embedding(16, 8, max_norm=2.0), nn.LayerNorm(8, n.EPS), nn.Linear(8, 3)).double()
    tokens = torch.arange(16)
    found = report(model, lambda m: F.cross_entropy(m(tokens), tokens % 3))
    assert "max_norm" in found.refused[("0.weight",)]


@pytest.mark.filterwarnings("ignore:the gradient of .* is less orthogonal")
@pytest.mark.parametrize("late", [False, True], ids=["frozen at the report", "added later"])
def test_parameters_that_had_no_part_in_the_report_are_named_when_they_are_trained(late):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, n.EPS), nn.ReLU(), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[0].bias).requires_grad_(False)
    x = torch.randn(7, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    remove_weight_decay(optimizer, report(model, lambda m: m(x).square().mean()))
    model(x).square().mean().backward()
    optimizer.step()
    if late:
        model[1] = nn.Sequential(nn.Linear(5, 5).double(), model[1])
        optimizer.add_param_group({"params": model[1][0].parameters()})
    else:
        model[0].bias.requires_grad_(True)
    model(x).square().mean().backward()
    with pytest.warns(UserWarning, match=("1.0.weight, 1.0.bias" if late else "0.bias") + " had no part in the report") as noted:
        optimizer.step()
    assert noted[0].filename == __file__
    optimizer.step()  # once is enough


@pytest.mark.filterwarnings("ignore:the gradient of .* is less orthogonal")
def test_statistics_that_are_frozen_later_on_are_noticed():
    script = trained()
    for i in 1, 4:
        script.model[i].eval().train = lambda mode: None
    with pytest.raises(RuntimeError, match="the gradient of .* is not orthogonal"):
        script.train(100)


def test_a_norm_that_is_taken_away_is_noticed():
    script = trained()
    script.model[1] = nn.Identity()
    with pytest.raises(RuntimeError, match="a running average is not in the model any more"):
        script.train(1)


@kinds
def test_averages_of_a_class_of_the_scripts_own_are_of_its_own_weights(kind):
    class Lerp(torch.optim.swa_utils.AveragedModel):
        @torch.no_grad()
        def update_parameters(self, model, share=0.2):
            for mine, other in zip(self.module.parameters(), model.parameters(), strict=True):
                mine.lerp_(other, share)

    def norms(line):
        script = Script(line, kind=kind)
        average = Lerp(script.model)
        script.train(20, each=lambda script, t: average.update_parameters(script.model, 0.1))
        return [float(p.detach().norm()) for p in average.parameters()]

    assert norms(remove) == pytest.approx(norms(None), rel=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused_by_name():
    with pytest.raises(ValueError, match="report needs the model before torch.jit.script"):
        report(torch.jit.script(network()), loss_of)
