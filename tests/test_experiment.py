"""Experiments as data: converted and usual runs agree, and bad fields are named."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
from runs import assert_same_bits

from minibn import equivalence, experiment, nn
from minibn.experiment import Experiment
from minibn.optim import AdamStep, MuonStep
from minibn.training import fit

TINY = {"width": 4, "epochs": 2, "batch": 256}  # 10 steps


@pytest.mark.parametrize("options", [{"schedule": "step", "milestones": (1.0,)}, {"schedule": "cosine", "warmup": 0.4},
                                     {"schedule": "constant", "nesterov": True}, {"schedule": "step", "model": "mlp"},
                                     {"schedule": "step", "model": "vgg", "norm": "layer", "fixed": True},
                                     {"schedule": "step", "model": "resnet", "affine": False, "norm": "group"},
                                     {"schedule": "cosine", "model": "mlp", "optimizer": "adamw", "weight_decay": 30},
                                     {"schedule": "step", "model": "vgg", "optimizer": "lion", "weight_decay": 100},
                                     {"schedule": "constant", "model": "mlp", "optimizer": "muon", "weight_decay": 5},
                                     {"schedule": "constant", "optimizer": "muon", "fixed": True, "weight_decay": 5}])
def test_converted_and_usual_are_one_run(options):
    options = {**TINY, "dtype": "float64", **options}
    if options.get("model") in ("mlp", "vgg"):
        del options["width"]
    one = experiment.run(Experiment(**options), progress=False)
    other = experiment.run(Experiment(**options, convert=True), progress=False)
    assert len(one.history) == 10
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], atol=1e-11)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-9)
    assert one.history["lr/invariant"][-1] != other.history["lr/invariant"][-1]


@pytest.mark.parametrize(("form", "usual"), [("exponential", "constant"), ("texp++", "step")])
def test_the_papers_forms_are_the_usual_schedules(form, usual):
    options = {**TINY, "dtype": "float64", "fixed": True, "affine": False}
    one, other = (experiment.run(Experiment(**options, schedule=name), progress=False) for name in (form, usual))
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], atol=1e-11)


def test_schedules_are_those_of_the_paper():
    one = Experiment(schedule="texp--", epochs=4, batch=287)  # 5 steps an epoch
    assert one.phases() == [(10, 0.1), (5, pytest.approx(0.01)), (float("inf"), pytest.approx(0.001))]
    expected = equivalence.texp_minus_minus(one.phases(), momentum=0.9, weight_decay=5e-3)
    assert list(islice(one.invariant(), 20)) == list(islice(expected, 20))
    assert [s.lr for s in islice(one.usual(), 9, 11)] == [0.1, pytest.approx(0.01)]


def test_fixed_leaves_the_rest_where_it_starts():
    one = Experiment(**TINY, fixed=True)
    before, after = one.network().state_dict(), experiment.run(one, progress=False).model.state_dict()
    assert np.array_equal(before["head.weight"], after["head.weight"])
    assert np.array_equal(before["norm.weight"], after["norm.weight"])
    assert not np.array_equal(before["stem.weight"], after["stem.weight"])


def test_test_accuracy_at_the_end_of_each_epoch():
    history = experiment.run(Experiment(**TINY), progress=False).history
    assert np.flatnonzero(np.isfinite(history["test_accuracy"])).tolist() == [4, 9]
    assert 0 < history["test_accuracy"][9] < 1
    assert np.isfinite(history["test_loss"][4])


@pytest.mark.parametrize(("options", "message"), [
    ({"model": "transformer"}, "model must be one of"), ({"lr": -1}, "lr must be a number of at least 0, got -1"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1"),
    ({"data": "cifar10"}, "data='cifar10' needs path"), ({"path": "x"}, "data='digits' takes no path"),
    ({"milestones": (2, 1)}, r"milestones must be increasing epochs above 0 and below epochs=24, got \[2.0, 1.0\]"),
    ({"schedule": "texp", "convert": True}, "schedule='texp' has no weight decay already"), ({"momentum": 1}, "momentum"),
    ({"eps": float("nan")}, "eps must be a number"), ({"depth": 9}, r"depth must be 6n \+ 2 \(8, 14, .*\), got 9"),
    ({"norm": "group", "width": 6}, "width must be divisible by 4 with norm='group', got 6"),
    ({"warmup": 25}, "warmup must be at most epochs=24, or lr is never reached; got 25"),
])
def test_bad_experiments(options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**options)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_instant_drops_are_longer_weights(momentum):
    """lr of an exponential schedule times 1/4 at step 5 is the schedule itself with weights twice as long from there on."""
    phases = [(5, 0.1), (float("inf"), 0.025)]
    dropped = list(islice(equivalence.instant_drops(phases, momentum=momentum, weight_decay=2e-3), 9))
    plain = list(islice(equivalence.exponential_equivalent(0.1, momentum, 2e-3), 9))
    assert [s.lr for s in dropped] == pytest.approx([s.lr / (4 if t >= 5 else 1) for t, s in enumerate(plain)], rel=1e-15)
    assert [s.kick for s in dropped] == [s.kick for s in plain]
    with pytest.raises(ValueError, match="needs a first lr above 0, got 0"):
        equivalence.instant_drops([(5, 0.0)], momentum=0.0, weight_decay=0.0)
    one = Experiment(schedule="instant-drop", milestones=(1,), epochs=2, batch=287)
    assert list(islice(one.invariant(), 9)) == list(islice(equivalence.instant_drops(
        [(5, 0.1), (float("inf"), 0.1 * 0.1)], momentum=0.9, weight_decay=5e-3), 9))


@pytest.mark.parametrize("model", experiment.MODELS)
@pytest.mark.parametrize("norm", experiment.NORMS)
@pytest.mark.parametrize("fixed", [True, False])
def test_the_optimisers_hold_hidden_weights_and_the_rest(model, norm, fixed):
    """The hidden weights have 2 dimensions or more, and so has the last layer's, "head.weight", which is not among them."""
    one = Experiment(model=model, norm=norm, fixed=fixed, schedule="constant", convert=True,
                     **({"width": 8} if "res" in model else {}))
    net = one.network()
    named = {id(p): name for name, p in net.named_parameters()}
    groups = {group: [named[id(p)] for p in sgd.parameters] for group, sgd in one.optimizers(net).items()}
    hidden = [name for name, p in net.named_parameters() if p.data.ndim > 1 and name != "head.weight"]
    assert groups["invariant"] == hidden
    assert groups.get("rest") == (None if fixed else [name for name in named.values() if name not in hidden])


def test_a_network_without_scale_invariant_weights_is_refused():
    net = nn.Sequential(flatten=nn.Flatten(), head=nn.Linear(64, 10, rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match="the network has no scale-invariant parameters"):
        Experiment(convert=True, schedule="constant").optimizers(net)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_milestones_must_be_finite(bad):
    with pytest.raises(ValueError, match="milestones must be increasing epochs above 0"):
        Experiment(milestones=(1, bad))


# ---- optimisers other than SGD ----


def test_numbers_that_are_not_given_are_the_optimisers_defaults():
    assert Experiment().lr == 0.1
    assert (Experiment().momentum, Experiment().beta1) == (0.9, None)
    adamw = Experiment(optimizer="adamw", lr=0.5, adam_eps=0.25, schedule="constant")
    assert (adamw.beta1, adamw.beta2, adamw.momentum, adamw.rest_lr) == (0.9, 0.999, None, None)
    assert next(adamw.usual()) == AdamStep(0.5, 0.9, 0.999, 0.25, adamw.weight_decay)
    assert dataclasses.replace(adamw, lr=0.1).beta2 == 0.999
    muon = Experiment(optimizer="muon", rest_lr=0.125, schedule="constant")
    assert next(muon.usual()) == MuonStep(muon.lr, 0.95, muon.weight_decay)
    assert next(muon.rest()) == AdamStep(0.125, weight_decay=muon.weight_decay)


def test_the_converted_schedule_is_that_of_the_stock_optimiser():
    for name, convert in (("adamw", equivalence.adam_without_decay), ("lion", equivalence.lion_without_decay)):
        one = Experiment(optimizer=name, schedule="cosine", convert=True)
        assert list(islice(one.invariant(), 5)) == list(islice(convert(one.usual()), 5))
    with pytest.raises(ValueError, match="Muon without weight decay is not a schedule"):
        Experiment(optimizer="muon", schedule="cosine", convert=True).invariant()


@pytest.mark.parametrize(("options", "message"), [
    ({"optimizer": "adam"}, r"optimizer must be one of \['sgd', 'adamw', 'lion', 'muon'\], got 'adam'"),
    ({"optimizer": "adamw", "momentum": 0.9}, "momentum=0.9 has no effect with optimizer='adamw'; it is for sgd, muon"),
    ({"optimizer": "lion", "adam_eps": 1e-8}, "adam_eps=1e-08 has no effect with optimizer='lion'; it is for adamw"),
    ({"beta2": 0.9}, "beta2=0.9 has no effect with optimizer='sgd'; it is for adamw, lion"),
    ({"optimizer": "adamw", "rest_lr": 0.1}, "rest_lr=0.1 has no effect with optimizer='adamw'; it is for muon"),
    ({"optimizer": "adamw", "schedule": "texp"}, "schedule='texp' is for optimizer='sgd', not for 'adamw'; give schedule"),
    ({"optimizer": "muon", "nesterov": True}, "nesterov=True has no effect with optimizer='muon'; it is for sgd"),
    ({"optimizer": "adamw", "beta1": 1.0}, "beta1 must be a number of at least 0 and below 1, got 1.0")])
def test_what_an_optimiser_does_not_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**options)


@pytest.mark.parametrize(("options", "message"), [
    ({"model": "mlp", "depth": 14}, "depth=14 has no effect with model='mlp'; it is for resnet, preresnet"),
    ({"model": "vgg", "width": 64}, "width=64 has no effect with model='vgg'; it is for resnet, preresnet"),
    ({"augment": False}, "augment=False has no effect with data='digits'; it is for cifar10"),
    ({"checksum": False}, "checksum=False has no effect with data='digits'; it is for cifar10, fashion-mnist"),
    ({"schedule": "constant", "factor": 0.5}, "factor=0.5 has no effect with schedule='constant'; it is for step, texp"),
    ({"schedule": "cosine", "milestones": (2, 3)}, r"milestones=\(2.0, 3.0\) has no effect with schedule='cosine'; it is"),
    ({"schedule": "exponential", "milestones": (2,)}, "milestones=.* has no effect with schedule='exponential'"),
    ({"optimizer": "muon", "fixed": True, "rest_lr": 0.1}, "rest_lr=0.1 has no effect with fixed=True, which trains no"),
    ({"nesterov": True, "momentum": 0.0}, "nesterov=True has no effect with momentum=0.0; give a momentum above 0")])
def test_a_field_without_effect_is_refused(options, message):
    """Or a sweep over it would train one network several times."""
    with pytest.raises(ValueError, match=message):
        Experiment(**options)


@pytest.mark.parametrize("optimizer", experiment.METHODS)
@pytest.mark.parametrize("fixed", [True, False])
def test_every_experiment_can_be_made_from_its_own_fields(optimizer, fixed):
    """As a sweep does, which records all of them."""
    one = Experiment(optimizer=optimizer, fixed=fixed, schedule="cosine", model="mlp")
    assert Experiment(**dataclasses.asdict(one)) == one


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_a_converted_run_resumes_from_a_checkpoint_bit_for_bit(optimizer, tmp_path):
    """In a narrow band, so that the weights have been rescaled; and another schedule is refused."""
    one = Experiment(model="mlp", epochs=2, batch=256, optimizer=optimizer, convert=True, schedule="cosine",
                     weight_decay={"adamw": 60, "lion": 200, "muon": 10}[optimizer])

    def train(experiment, **options):
        model = experiment.network()
        optimizers = experiment.optimizers(model, band=1.25)
        history = fit(model, optimizers, one.split.x_train, one.split.y_train, epochs=2, batch_size=256,
                      rng=np.random.default_rng(1), progress=False, **options)
        return {**model.state_dict(), **{f"{name}/{key}": value for name, each in optimizers.items()
                                         for key, value in each.state_dict().items()},
                **{name: history[name] for name in history.columns}}

    whole = train(one)
    assert whole["invariant/scale"] > 0.8  # P itself is below that
    assert equivalence.methods.METHODS[optimizer].scale_after(one.usual(), 10) < 0.8
    path = tmp_path / "run.npz"
    assert len(train(one, path=path, max_steps=6)["loss"]) == 6
    with pytest.raises(ValueError, match="is of another run: lr of 'invariant' at step 0 was"):
        train(dataclasses.replace(one, lr=one.lr * 0.9), path=path)
    assert_same_bits(train(one, path=path), whole)
