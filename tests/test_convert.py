"""training.convert and split: which parameters follow which schedule, and that training stays the same."""

from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice, repeat, tee

import numpy as np
import pytest
from common import NETWORKS, NORMS, PAIRS

from minibn import data, models, nn, schedules
from minibn.equivalence import Reframed, frame_after, remove_weight_decay
from minibn.invariance import symmetries
from minibn.optim import SGD, AdamStep, AdamW, Lion, LionStep, Muon, MuonStep, Step
from minibn.training import convert, fit, split


def test_convert_says_which_and_why():
    net = models.preresnet(8, eps=0.0, in_channels=1, rng=np.random.default_rng(0))
    conversion = convert(net, schedules.constant(0.1, momentum=0.9, weight_decay=5e-3))
    assert set(conversion.optimizers) == {"invariant", "rest"}
    trained = [p for sgd in conversion.optimizers.values() for p in sgd.parameters]
    assert {id(p) for p in trained} == {id(p) for p in net.parameters()}
    assert len(trained) == len(net.parameters())
    assert "stem.weight" in conversion.names
    assert "head.weight: head.weight is in no scale-invariant group" in str(conversion)
    grown = list(islice(conversion.optimizers["invariant"].schedule, 50))
    kept = list(islice(conversion.optimizers["rest"].schedule, 50))
    assert {s.weight_decay for s in grown} == {0.0}
    assert grown[-1].lr > grown[0].lr
    assert {(s.lr, s.weight_decay) for s in kept} == {(0.1, 5e-3)}


def test_convert_refuses_what_is_not_invariant():
    net = models.preresnet(8, rng=np.random.default_rng(0))
    schedule = schedules.constant(0.1, weight_decay=5e-3)
    with pytest.raises(ValueError, match=r"cannot be removed from \['stem.weight'\], which are not scale-invariant together: "
                                         r"stem.weight and stage1.0.branch.conv2.weight may only be scaled together"):
        convert(net, schedule, ["stem.weight"])
    with pytest.raises(ValueError, match="the network has no scale-invariant parameters"):
        convert(nn.Sequential(nn.Linear(3, 2, rng=np.random.default_rng(0))), schedule)


def hidden_weights(net):
    """Names of the weights of every conv and linear layer but the last."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [f"{name}.weight" for name in layers[:-1]]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("network", "norm"), PAIRS)
def test_the_scale_invariant_weights_are_those_of_all_hidden_layers(network, norm, affine):
    net = NETWORKS[network](norm=NORMS[norm], affine=affine, rng=np.random.default_rng(0))
    found = symmetries(net)
    assert found.weights == hidden_weights(net)
    both = split(net, schedules.constant(0.1), schedules.constant(0.2), found.weights)
    assert both.names == tuple(hidden_weights(net))
    assert {id(p) for p in both.optimizers["invariant"].parameters} == {
        id(p) for name, p in net.named_parameters() if name in found.weights}
    assert [next(both.optimizers[group].schedule).lr for group in ("invariant", "rest")] == [0.1, 0.2]
    assert sorted(name for group in both.groups.values() for name in group) == sorted(found.weights)
    assert all(found.is_scale_invariant(group) and group[0] == name for name, group in both.groups.items())


def test_without_a_schedule_the_rest_has_no_optimiser():
    net = models.vgg((4,), in_channels=1, rng=np.random.default_rng(0))
    assert list(split(net, schedules.constant(0.1), None).optimizers) == ["invariant"]


def test_weights_that_no_normalisation_follows_are_not_scale_invariant_weights():
    """The control: a conv after the last norm is hidden, and is left out."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(conv=nn.Conv2d(1, 4, 3, rng=rng), norm=nn.BatchNorm(4), last=nn.Conv2d(4, 4, 3, rng=rng),
                        pool=nn.GlobalAvgPool(), head=nn.Linear(4, 10, rng=rng))
    assert symmetries(net).weights == ["conv.weight"]
    assert hidden_weights(net) == ["conv.weight", "last.weight"]


def test_names_that_are_given_are_reported_in_groups():
    """Names are taken as they are given, and reported as the finest groups within them."""
    net = models.vgg((4, 6), in_channels=1, rng=np.random.default_rng(0))
    assert convert(net, schedules.constant(0.1), ["conv1.weight"]).groups == {"conv1.weight": ("conv1.weight",)}
    assert convert(net, schedules.constant(0.1), ["norm1.weight", "norm1.bias", "conv2.weight"]).groups == {
        "norm1.weight": ("norm1.weight", "norm1.bias"), "conv2.weight": ("conv2.weight",)}


def test_names_of_another_choice_of_groups_are_a_group_of_their_own():
    """conv, conv with bias, LayerNorm: the bias scales with either weight, and `symmetries` takes the first."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(one=nn.Conv2d(1, 4, 3, rng=rng), two=nn.Conv2d(4, 4, 3, bias=True, rng=rng), norm=nn.LayerNorm(4),
                        pool=nn.GlobalAvgPool(), head=nn.Linear(4, 10, rng=rng))
    assert ("two.weight", "two.bias") not in symmetries(net).groups
    found = convert(net, schedules.constant(0.1), ["two.bias", "two.weight"])
    assert found.names == ("two.weight", "two.bias")
    assert found.groups == {"two.weight": ("two.weight", "two.bias")}


# ---- other optimisers ----


def test_the_kind_of_steps_says_which_optimiser():
    def net():
        return NETWORKS["mlp"](norm=NORMS["batch"], eps=0.0, rng=np.random.default_rng(0), dtype="float64")

    for step, kind in ((AdamStep(0.1), AdamW), (LionStep(0.1), Lion)):
        found = convert(net(), repeat(step)).optimizers
        assert [type(found["invariant"]), type(found["invariant"].optimizer), type(found["rest"])] == [Reframed, kind, kind]
    with pytest.raises(ValueError, match="Muon trains matrices .* Give biases, gains and other vectors to an AdamW"):
        convert(net(), repeat(MuonStep(0.1)))
    found = convert(net(), repeat(MuonStep(0.1)), rest=repeat(AdamStep(0.01))).optimizers
    assert [type(found["invariant"].optimizer), type(found["rest"])] == [Muon, AdamW]
    assert all(p.data.ndim == 2 for p in found["invariant"].parameters)


@pytest.mark.parametrize("kind", [AdamStep, LionStep, MuonStep])
def test_a_whole_network_trains_in_the_same_way_under_every_optimiser(kind):
    """20 steps; the largest gap of the losses. Without the growth of lr it is another run."""
    digits, steps = data.digits("float64"), schedules.like(kind(0.0, weight_decay=2.0), schedules.cosine(0.02, 30))
    steps = list(islice(steps, 20))
    losses = []
    for form in ("usual", "converted", "without decay"):
        net = NETWORKS["mlp"](norm=NORMS["layer"], eps=0.0, rng=np.random.default_rng(0), dtype="float64")
        rest = repeat(AdamStep(0.01))
        bare = [replace(step, weight_decay=0.0) for step in steps]
        found = convert(net, steps, rest=rest) if form == "converted" else split(net, steps if form == "usual" else bare, rest)
        losses.append(fit(net, found.optimizers, digits.x_train[:64], digits.y_train[:64], epochs=10, batch_size=32,
                          rng=np.random.default_rng(1), progress=False)["loss"])
    usual, converted, without = losses
    assert np.abs(usual - converted).max() < 1e-10
    assert np.abs(usual - without).max() > 1e-4


# ---- the theorem on real layers ----


def usual_schedule():
    decay = schedules.step_decay(0.02, [100], momentum=0.9, weight_decay=1.2e-2)
    return schedules.warmup(40, decay)


@lru_cache
def trained(network, norm, form, eps=0.0, steps=110, band=2.0**32):
    """History of `steps` steps with weight decay ("usual") or "converted"; all parameters trained."""
    rng, digits = np.random.default_rng(0), data.digits("float64")
    count, x = 32, digits.x_train[:32]
    if norm == "instance":  # normalising over the last stage's 2 x 2 pixels magnifies rounding: 16 x 16, and larger batches
        count, x = 64, np.kron(digits.x_train[:64], np.ones((1, 2, 2, 1)))
    net = NETWORKS[network](norm=NORMS[norm], eps=eps, rng=rng, dtype="float64")
    optimizers = convert(net, usual_schedule(), band=band).optimizers
    if form == "usual":
        optimizers = {name: SGD(sgd.parameters, usual_schedule()) for name, sgd in optimizers.items()}
    return fit(net, optimizers, x, digits.y_train[:count], epochs=steps // 2, batch_size=count // 2, rng=np.random.default_rng(1),
               progress=False)


@pytest.mark.parametrize(("network", "norm"), [pair for pair in PAIRS if pair != ("mlp", "group")])
def test_whole_networks_train_in_the_same_way(network, norm):
    """Affine parameters and the head are trained too. 110 steps, through warm-up and a drop of lr, losses within 1e-8.

    (GroupNorm over the MLP's groups of 3 numbers magnifies rounding beyond that.)
    """
    usual, converted = (trained(network, norm, form) for form in ("usual", "converted"))
    assert np.abs(usual["loss"] - converted["loss"]).max() < 1e-8
    assert usual["loss"][-1] < 0.97 * usual["loss"][0]
    assert converted["norm/invariant"][-1] > 1.2 * usual["norm/invariant"][-1]


def test_rescaling_changes_no_bit_of_a_network():
    plain, often = (trained("preresnet", "batch", "converted", band=band, steps=100) for band in (None, 1.01))
    assert plain["norm/invariant"][-1] != often["norm/invariant"][-1]
    np.testing.assert_array_equal(plain["loss"], often["loss"])


@pytest.mark.parametrize("to_converted", [True, False])
def test_a_network_switches_form_in_mid_run(to_converted):
    """150 steps in one form, its state through the frame, 150 in the other: the losses of the unbroken run."""
    whole = trained("preresnet", "batch", "usual", steps=300)
    digits = data.digits("float64")
    net = NETWORKS["preresnet"](norm=nn.BatchNorm, eps=0.0, rng=np.random.default_rng(0), dtype="float64")
    frame = frame_after(usual_schedule(), 150)
    rng, losses = np.random.default_rng(1), []
    optimizers = convert(net, usual_schedule()).optimizers
    if to_converted:
        optimizers = {name: SGD(sgd.parameters, usual_schedule()) for name, sgd in optimizers.items()}
    for half in range(2):
        losses.append(fit(net, optimizers, digits.x_train[:32], digits.y_train[:32], epochs=75, batch_size=16, rng=rng,
                          progress=False)["loss"])
        if half == 0:
            carry = frame.remove if to_converted else frame.add
            rest = islice(usual_schedule(), 150, None)
            later = {"invariant": remove_weight_decay(rest, frame=frame) if to_converted else rest,
                     "rest": islice(usual_schedule(), 150, None)}
            old, optimizers = optimizers, {name: SGD(sgd.parameters, later[name]) for name, sgd in optimizers.items()}
            optimizers["rest"].velocity = old["rest"].velocity
            for i, (p, v) in enumerate(zip(old["invariant"].parameters, old["invariant"].velocity, strict=True)):
                p.data, optimizers["invariant"].velocity[i] = carry(p.data, v)
    np.testing.assert_allclose(np.concatenate(losses), whole["loss"], rtol=0, atol=1e-8)


def test_how_the_gap_grows_with_eps():
    """The table of what-to-know.md: run with `-s` to see it. The gap is of the order of eps until chaos takes over."""
    gaps = {}
    for eps in (0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3):
        usual, converted = (trained("preresnet", "batch", form, eps)["loss"][:100] for form in ("usual", "converted"))
        gaps[eps] = np.abs(usual - converted).max()
        print(f"eps = {eps:<6g} largest gap between the losses of 100 steps: {gaps[eps]:.0e}")
    assert list(gaps.values()) == sorted(gaps.values())
    assert gaps[0.0] < 1e-13
    for eps in (1e-12, 1e-9, 1e-7, 1e-5):
        assert 0.01 * eps < gaps[eps] < 100 * eps
    assert gaps[1e-3] > 1e-4


def _rates(conversion, count=4):
    return {group: [round(step.lr, 6) for step in islice(one.schedule, count)] for group, one in conversion.optimizers.items()}


def test_one_generator_given_for_both_is_read_whole_by_each():
    def net():
        return models.mlp((8,), eps=0.0, rng=np.random.default_rng(0))

    def schedule():
        return schedules.cosine(0.1, 20, weight_decay=0.01)

    assert len(set(_rates(convert(net(), schedule()))["rest"])) == 4
    one = schedule()
    assert _rates(convert(net(), one, rest=one)) == _rates(convert(net(), schedule()))
    one = schedule()
    assert _rates(split(net(), one, one)) == _rates(split(net(), schedule(), schedule()))


class Stream:
    """An iterator of a user's own, with what it reads in a list."""

    def __init__(self, given):
        vars(self)["given"] = [given]

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.given[0])


def _by_call(given):
    def draw():
        return next(given)

    return (draw() for _ in repeat(None))


@pytest.mark.parametrize("around", [
    partial(schedules.warmup, 2), remove_weight_decay, partial(map, replace), Stream, _by_call, lambda s: islice(s, 9),
    lambda s: schedules.warmup(3, schedules.nesterov(s)), lambda s: (replace(step, lr=0.1) for step in s)])
def test_two_schedules_made_from_one_generator_are_refused(around):
    """Each would get every second of its steps."""
    one = schedules.cosine(0.1, 20)
    net = models.mlp((8,), eps=0.0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="the optimisers 'invariant' and 'rest' have one schedule, of which each would get"):
        split(net, around(one), one)
    one = schedules.cosine(0.1, 20)
    optimizers = {"first": SGD(net.parameters()[:1], one), "second": SGD(net.parameters()[1:], around(one))}
    x, y = np.ones((8, 8, 8, 1), "f4"), np.zeros(8, int)
    with pytest.raises(ValueError, match="the optimisers 'first' and 'second' have one schedule, of which each would get"):
        fit(net, optimizers, x, y, epochs=1, batch_size=4, rng=np.random.default_rng(0), progress=False)


@pytest.mark.parametrize("make", [lambda: (repeat(Step(0.1)),) * 2, lambda: ([Step(0.1)] * 9,) * 2,
                                  lambda: map(partial(schedules.warmup, 2), tee(schedules.cosine(0.1, 20))),
                                  lambda: (schedules.warmup(2, schedules.cosine(0.1, 20)) for _ in range(2))])
def test_schedules_that_may_have_something_in_common_are_accepted(make):
    """Constant ones, one list, the two of a tee, and two from one function."""
    net = models.mlp((8,), eps=0.0, rng=np.random.default_rng(0))
    rates = _rates(split(net, *(schedules.warmup(1, schedule) for schedule in make())))
    assert rates["invariant"] == rates["rest"]
    assert len(rates["rest"]) == 4
