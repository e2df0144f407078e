"""Clones that are tried in place of the original, an optimizer or a model: what they have of it, and what not."""

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import images  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim.lr_scheduler import ExponentialLR  # noqa: E402

from minibn.pytorch import report  # noqa: E402
from minibn.pytorch.recognise import rule_of  # noqa: E402
from minibn.pytorch.rules import Decoupled  # noqa: E402


class Signs(torch.optim.Optimizer):
    def __init__(self, parameters, **settings):
        super().__init__(parameters, {"lr": 0.1, "weight_decay": 0.1, **settings})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad.sign())


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.ones(2, 2))


def test_hooks_and_schedulers_of_the_original_are_not_its_own(weight):
    optimizer, steps = Signs([weight]), []
    optimizer.register_step_pre_hook(lambda *_: steps.append("before"))
    ExponentialLR(optimizer, 0.9)  # it replaces the method `step`
    assert isinstance(rule_of(optimizer, "removed"), Decoupled)
    assert not steps
    assert torch.equal(weight, torch.ones(2, 2))


def test_an_optimizer_that_holds_parameters_elsewhere_is_not_tried(weight):
    optimizer = Signs([weight])
    optimizer.slow = {"copies": [weight]}
    with pytest.raises(TypeError, match="its attribute 'slow' holds the model's parameters"):
        rule_of(optimizer, "removed")


def test_a_learning_rate_of_0_is_not_that_of_the_trial(weight):
    assert isinstance(rule_of(Signs([weight], lr=0.0), "removed"), Decoupled)


class WithAFunction(nn.Module):
    """It keeps its layers in a function, as minGPT does; a deepcopy of it would call those of the original."""

    def __init__(self):
        super().__init__()
        layers = self.layers = nn.Sequential(n.conv(3, 4), n.bn(4), nn.ReLU())
        self.function = lambda x: layers(x)

    def forward(self, x):
        return self.function(x)


def test_layers_that_a_function_of_a_module_refers_to():
    torch.manual_seed(0)
    model = nn.Sequential(WithAFunction(), *n.head(4)).double()
    before = model[0].layers[1].running_mean.clone()
    found = report(model, lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1]))
    assert found.groups == [("0.layers.0.weight",)]
    assert torch.equal(model[0].layers[1].running_mean, before)
