"""Running averages, as those of BatchNorm, are carried along with converted weights, so that evaluation is right."""

import random

import pytest

torch = pytest.importorskip("torch", reason="minibn.pytorch needs it; install it with: pip install -e '.[test,torch]'")

import networks as n  # noqa: E402
from scripts import Script, assert_evaluations_agree, images, kinds, remove, same_with_the_line  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.optim.lr_scheduler import ReduceLROnPlateau  # noqa: E402

from minibn.pytorch import remove_weight_decay, report  # noqa: E402


def report_on_images(model):
    return report(model, lambda m: F.cross_entropy(m(images(0)[0]), images(0)[1]))


@kinds
def test_evaluation_is_right_at_every_step(kind):
    """Just before and after the weights are brought back, too."""
    usual, converted = Script(kind=kind), Script(lambda *script: remove(*script, band=1.2), kind=kind)
    for _ in range(40):
        usual.train(1)
        converted.train(1)
        assert converted.evaluate() == pytest.approx(usual.evaluate(), rel=1e-10)


def test_without_the_running_averages_it_is_not():
    usual, converted = Script().train(60), Script(lambda *script: remove(*script, averages=False)).train(60)
    assert usual.losses == pytest.approx(converted.losses, rel=1e-10)
    assert abs(converted.evaluate() - usual.evaluate()) > 1e-2


def test_a_schedule_that_reads_the_validation_loss():
    def step(script, forward):
        loss = script.step(forward)
        script.plateau = getattr(script, "plateau", None) or ReduceLROnPlateau(script.optimizer, factor=0.5, patience=1)
        script.plateau.step(script.evaluate())
        return loss

    usual, converted = same_with_the_line(train={"step": step, "steps": 120})
    assert usual.lrs == converted.lrs
    assert len(set(usual.lrs)) > 2


class Dense(nn.Module):
    """Concatenations: the entries of one running average belong to different sets."""

    def __init__(self):
        super().__init__()
        self.a, self.b = n.conv(3, 4), n.conv(7, 4)
        self.norms = nn.ModuleList([n.bn(7), n.bn(11)])
        self.head = nn.Sequential(*n.head(11))

    def forward(self, x):
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([x, self.b(self.norms[0](x).relu())], 1)
        return self.head(self.norms[1](x).relu())


def biased(layers=5):
    """A bias before each of many BatchNorms."""
    blocks = [layer for i in range(layers) for layer in (n.conv(4 if i else 3, 4, bias=True), n.bn(4), nn.ReLU())]
    return nn.Sequential(*blocks, *n.head(4))


class Deep(nn.Module):
    """Two convs before one BatchNorm, another momentum, and a cumulative average."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(n.conv(3, 4), nn.ReLU(), n.conv(4, 4), nn.BatchNorm2d(4, n.EPS, 0.3), nn.ReLU(), n.conv(4, 4),
                                 nn.BatchNorm2d(4, n.EPS, None), *n.head(4))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("make", [n.resnet, n.preresnet, n.vgg, biased, n.mobilenet, Dense, Deep, n.convnext, n.UNet],
                         ids=lambda make: make.__name__)
@pytest.mark.parametrize("no_decay", [False, True], ids=["all decayed", "no decay on vectors"])
def test_architectures_train_and_evaluate_as_without_the_line(make, no_decay):
    def train(convert):
        torch.manual_seed(0)
        model = make().double()
        matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
        groups = [{"params": matrices}, {"params": vectors, **({"weight_decay": 0.0} if no_decay else {})}]
        optimizer, losses = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=0.05), []
        if convert:
            found = report_on_images(model)
            handle = remove_weight_decay(optimizer, found, mixed="move")
            assert handle.found.carried.unfit == []
        for t in range(24):
            x, y = images(t)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                losses += [loss.item(), F.cross_entropy(model(images(-1)[0]), images(-1)[1]).item()]
            model.train()
        return losses, min(handle.scales.values()) if convert else 1.0

    usual, _ = train(False)
    converted, scale = train(True)
    assert converted == pytest.approx(usual, rel=1e-8, abs=1e-8)
    assert scale < 0.95


def test_a_channel_that_is_dead_on_the_batch_of_the_report_and_lives_later():
    """Its statistics are 0 there, whatever the scale, so its degree is taken to be that of its neighbours."""
    x, y = images(0)
    black = x * torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype).reshape(3, 1, 1)
    assert_evaluations_agree(lambda: nn.Sequential(n.conv(3, 3, groups=3), n.bn(3), nn.ReLU(), *n.head(3)), (black, y))


def test_a_channel_that_an_activation_left_dead_is_not_normalised():
    """The next layer makes it a constant, its bias: without eps, BatchNorm would magnify that number's rounding errors."""
    def model():
        second = nn.BatchNorm2d(4, 1e-12)
        layers = [n.conv(3, 4), n.bn(4), nn.ReLU6(), n.conv(4, 4, groups=4, bias=True), second, nn.ReLU6(), *n.head(4)]
        with torch.no_grad():
            layers[1].bias[0] = -40.0
        return nn.Sequential(*layers)

    found = report_on_images(model().double())
    assert {("0.weight",), ("3.weight",), ("3.bias",)} <= set(found.groups)
    assert_evaluations_agree(model)


def test_averages_follow_those_sets_alone_that_are_converted():
    """γ is decayed, and β is not, so their set is left out. Its part in the next norm's averages stays, too."""
    def groups(model):
        return [{"params": [p for name, p in model.named_parameters() if (name == "1.bias") == is_beta], "weight_decay": decay}
                for is_beta, decay in ((False, 0.05), (True, 0.0))]

    assert_evaluations_agree(lambda: nn.Sequential(n.conv(3, 4), n.bn(4), nn.ReLU(), n.conv(4, 4), n.bn(4), *n.head(4)),
                             groups=groups, mixed="skip")


class OtherNames(nn.Module):
    """BatchNorm as in courses: its buffers are called as their author liked."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("moving_mean", torch.zeros(1, width, 1, 1))
        self.register_buffer("moving_var", torch.ones(1, width, 1, 1))

    def forward(self, x):
        mean, var = self.moving_mean, self.moving_var
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
            self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        return (x - mean) / var.sqrt()


def test_running_averages_of_any_name():
    assert_evaluations_agree(lambda: nn.Sequential(n.conv(3, 4), OtherNames(4), nn.ReLU(), *n.head(4)))


class Attributes(OtherNames):
    """The same, with averages that are plain attributes, which no `state_dict` has."""

    def __init__(self, width):
        nn.Module.__init__(self)
        self.moving_mean, self.moving_var = torch.zeros(1, width, 1, 1), torch.ones(1, width, 1, 1)


def test_what_a_model_keeps_of_its_batches_outside_its_buffers_is_noticed():
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(3, 4), Attributes(4), nn.ReLU(), *n.head(4)).double()
    found = report_on_images(model)
    assert "in evaluation mode rescaled weights change the loss" in str(found)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.05)
    with pytest.raises(ValueError, match="outside its buffers, .* register_buffer"):
        remove_weight_decay(optimizer, found)
    assert len(remove_weight_decay(optimizer, found, averages=False).parameters) == 1


def test_a_loss_that_cannot_be_evaluated_is_named_and_no_obstacle():
    def loss_fn(model):
        if not model.training:
            raise KeyError("the auxiliary head")
        return F.cross_entropy(model(images(0)[0]), images(0)[1])

    torch.manual_seed(0)
    model = nn.Sequential(n.conv(3, 4), n.bn(4), nn.ReLU(), *n.head(4)).double()
    found = report(model, loss_fn)
    assert "loss_fn fails for the model in evaluation mode" in str(found)
    assert remove_weight_decay(torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.05), found).averages


def with_a_norm_first():
    """The first β goes to a layer with a bias; the second norm takes both out, but not in evaluation."""
    return nn.Sequential(n.bn(3), n.conv(3, 4, bias=True), n.bn(4), nn.ReLU(), n.conv(4, 4, 1, bias=True), n.bn(4), *n.head(4))


def without_a_norm_between():
    """The bias of the second layer can follow one scale, that of its own weights."""
    return nn.Sequential(n.conv(3, 4, bias=True), nn.ReLU(), n.conv(4, 4, bias=True), n.bn(4), nn.ReLU(), *n.head(4))


def with_a_linear_bottleneck():
    """A norm without an activation, then a layer without a bias: γ and β count in evaluation alone, and one by one."""
    model = nn.Sequential(n.conv(3, 4), n.bn(4), n.conv(4, 4, 1), n.bn(4), nn.ReLU(), *n.head(4))
    nn.init.constant_(model[1].bias, 0.5)
    return model


@pytest.mark.parametrize("make", [with_a_norm_first, without_a_norm_between, with_a_linear_bottleneck])
def test_the_bias_of_a_layer_goes_with_its_own_weights_and_the_rest_stays(make):
    assert_evaluations_agree(make)


class Cooling(nn.Module):
    """A buffer that a forward pass changes and uses, whatever the scale of the weights is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.temperature.mul_(0.99)
        return x * self.temperature


def test_buffers_that_have_nothing_to_do_with_the_weights_scale_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(3, 4), Cooling(), n.bn(4), nn.ReLU(), *n.head(4)).double()
    found = report_on_images(model)
    assert found.carried.unfit == []
    assert sorted(found.carried.degrees) == ["2.running_mean", "2.running_var"]


class Cache(nn.Module):
    def forward(self, x):
        self.register_buffer("positions", torch.arange(1.0, x.shape[-1] + 1))
        return x * self.positions


def test_a_buffer_that_a_forward_pass_makes_must_be_there_before_the_report():
    torch.manual_seed(0)
    model = nn.Sequential(Cache(), n.conv(3, 4), n.bn(4), nn.ReLU(), *n.head(4)).double()

    def loss_fn(model):
        return F.cross_entropy(model(images(0)[0]), images(0)[1])

    with pytest.raises(ValueError, match=r"the buffer 0.positions was made, .* run the model once before report"):
        report(model, loss_fn)
    loss_fn(model)
    assert report(model, loss_fn).groups == [("1.weight",)]


def test_a_loss_that_brings_back_training_mode_says_nothing_of_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(n.conv(3, 4), Attributes(4), nn.ReLU(), *n.head(4)).double()
    found = report(model, lambda m: F.cross_entropy(m.train()(images(0)[0]), images(0)[1]))
    assert found.carried.evaluation is None


class SometimesResidual(nn.Module):
    """Stochastic depth: a branch that is left out of some forward passes in training, its BatchNorm as well."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(n.conv(4, 4), n.bn(4))
        self.register_buffer("strength", torch.ones(1))  # which no forward pass changes

    def forward(self, x):
        return x + self.strength * self.branch(x) if not self.training or random.random() < 0.3 else x


@pytest.mark.parametrize("blocks", [1, 2])
def test_evaluation_is_right_with_branches_that_are_left_out_at_random(blocks):
    def make():
        random.seed(0)
        return nn.Sequential(n.conv(3, 4), n.bn(4), nn.ReLU(), *[SometimesResidual() for _ in range(blocks)], n.bn(4), *n.head(4))

    assert_evaluations_agree(make)
