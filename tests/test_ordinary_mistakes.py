"""Ordinary mistakes that would give something else without a word, or an error that does not say what was wrong."""

import copy
from itertools import repeat

import numpy as np
import pytest

from minibn import equivalence, models, nn, schedules, training
from minibn.optim import SGD, AdamStep, LionStep, Step


def net():
    return models.mlp((8,), eps=0.0, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("modules", "named", "name"), [
    ((nn.ReLU(),), {"0": nn.GELU()}, "'0' .* one of the others has it"), ((), {"a.b": nn.ReLU()}, "'a.b' .* names have no dots"),
    ((), {"": nn.ReLU()}, "'' .* are not empty")])
def test_names_that_would_lose_a_module_or_a_parameter_are_refused(modules, named, name):
    with pytest.raises(ValueError, match=f"Sequential: {name}"):
        nn.Sequential(*modules, **named)


@pytest.mark.parametrize(("add", "step"), [
    (lambda steps, numbers: equivalence.add_weight_decay(steps, numbers), Step(0.1)),
    (lambda steps, numbers: equivalence.add_weight_decay(steps, 0.1, shrink=numbers), Step(0.1)),
    (equivalence.adam_with_decay, AdamStep(0.1)), (equivalence.lion_with_decay, LionStep(0.1))])
def test_a_schedule_is_not_cut_short_by_too_few_numbers(add, step):
    with pytest.raises(ValueError, match="(weight_decay|shrink) has 3 numbers, and the schedule has more steps; give a number"):
        list(add([step] * 4, [0.1] * 3))
    assert len(list(add([step] * 3, [0.1] * 3))) == 3
    assert len(list(add([step] * 3, repeat(0.1)))) == 3


def test_a_milestone_before_the_first_step_is_refused():
    for bad in ([-0.5], [-1], [-0.5, 2]):
        with pytest.raises(ValueError, match="milestones must be increasing step numbers of at least 0"):
            schedules.step_decay(1.0, bad)
    assert next(schedules.step_decay(1.0, [0])).lr == 0.1
    assert next(schedules.step_decay(1.0, [])).lr == 1.0


@pytest.mark.parametrize("kind", ["c16", "U30", "?"])
def test_a_state_of_other_than_real_numbers_is_refused(kind):
    """A complex number would lose a part, and True would be 1."""
    model = net()
    before = model.state_dict()
    with pytest.raises(TypeError, match=r"state\['linear1.weight'\] must hold real numbers, got an array of (complex|<U30|bool)"):
        model.load_state_dict({name: value.astype(kind) for name, value in before.items()})
    optimizer = SGD(model.parameters(), schedules.constant(0.1))
    state = optimizer.state_dict()
    with pytest.raises(TypeError, match="the state's velocity/0 must hold real numbers"):
        optimizer.load_state_dict({**state, "velocity/0": state["velocity/0"].astype(kind)})
    model.load_state_dict({name: value.astype("i8") for name, value in before.items()})
    assert str(model["linear1"].weight.data.dtype) == "float32"


@pytest.mark.parametrize("layer", [nn.ReLU, nn.Square, nn.GELU, nn.SiLU])
def test_activations_of_integers_are_refused(layer, library):
    """200² is 64 in uint8."""
    with pytest.raises(TypeError, match=rf"{layer.__name__}.. needs an input of floating dtype, got uint8"):
        layer()(library.array(np.array([[200]], np.uint8)))


def test_names_that_are_one_string_or_none_are_refused():
    model = net()
    for call in (lambda names: training.convert(model, schedules.constant(0.1), names),
                 lambda names: training.split(model, schedules.constant(0.1), None, names)):
        with pytest.raises(TypeError, match="names must be a list of names of parameters, .* got 'linear1.weight' of type str"):
            call("linear1.weight")
        with pytest.raises(ValueError, match="names is empty; give the names of the parameters to convert, or None for all"):
            call([])
    with pytest.raises(TypeError, match="group 'g' must be a list of names of parameters, got 'linear1.weight' of type str"):
        training.fit(model, training.convert(model, schedules.constant(0.1)).optimizers, np.ones((8, 8, 8, 1), "f4"),
                     np.zeros(8, int), epochs=1, batch_size=4, rng=np.random.default_rng(0), groups={"g": "linear1.weight"})


def test_a_sequential_is_counted_and_sliced_as_a_list():
    model = net()
    names, modules = zip(*model.children(), strict=True)
    assert model[-1] is modules[-1] is model["head"]
    assert model[0] is modules[0]
    assert model[np.int64(1)] is modules[1]
    assert [name for name, _ in model[1:].children()] == list(names[1:])
    assert list(model[1:]) == list(modules[1:])
    x = np.ones((2, 8, 8, 1), "f4")
    np.testing.assert_array_equal(model[2:](model[:2](x)), model(x))
    for bad, error in ((9, IndexError), (-9, IndexError), (1.5, IndexError), ("none", KeyError)):
        with pytest.raises(error, match=rf"Sequential has {len(names)} modules, .*; there is no {bad!r}"):
            model[bad]


def test_the_stride_of_a_window_is_its_size():
    assert repr(nn.MaxPool2d(2, 2)) == repr(nn.MaxPool2d(2)) == "MaxPool2d(2)"
    for pool in (nn.MaxPool2d, nn.AvgPool2d):
        with pytest.raises(ValueError, match=f"{pool.__name__}: stride must be kernel_size, .* got kernel_size=3, stride=2"):
            pool(3, 2)


@pytest.mark.parametrize("bad", [nn.RMSNorm(4), True, "rms"])
def test_a_qk_norm_that_is_not_called_as_one_is_refused(bad):
    with pytest.raises(TypeError, match=r"qk_norm must make a module, called as qk_norm\(D\) .*, such as nn.RMSNorm; got"):
        nn.CausalSelfAttention(8, 2, qk_norm=bad, rng=np.random.default_rng(0))


def test_a_copy_of_an_optimiser_has_parameters_of_its_own_or_is_refused_in_words():
    model = net()
    with pytest.raises(TypeError, match="SGD cannot be copied, since its schedule cannot .*generator.*load_state_dict"):
        copy.deepcopy(SGD(model.parameters(), schedules.cosine(0.1, 5)))
    both = copy.deepcopy((model, SGD(model.parameters(), [Step(0.1)] * 3)))
    assert both[1].parameters == both[0].parameters()
    assert both[1].parameters[0] is not model.parameters()[0]
    assert both[1].step() == Step(0.1)


@pytest.mark.parametrize(("validation", "message"), [
    ((np.ones((4, 8, 8, 1), "f4"), np.full(4, 10)), "labels from 0 to 9 for 10 classes, got 10 to 10"),
    ((np.ones((4, 8, 8, 1), "f4"), np.zeros((4, 1), int)), r"the labels of validation have the shape \(4, 1\), those of"),
    ((np.ones((4, 7, 7, 1), "f4"), np.zeros(4, int)), "needs input of shape"),
    ((np.ones((4, 8, 8, 1)), np.zeros(4, int)), "parameters but its input is float64")])
def test_validation_data_that_do_not_fit_are_refused_before_the_first_step(validation, message):
    model, digits = net(), np.random.default_rng(0).standard_normal((64, 8, 8, 1)).astype("f4")
    before = model.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        training.fit(model, {"all": SGD(model.parameters(), schedules.constant(0.1))}, digits, np.zeros(64, int), epochs=1,
                     batch_size=8, rng=np.random.default_rng(0), validation=validation, progress=False)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_masked_logits_give_their_loss_without_a_warning():
    loss, logits = nn.CrossEntropy(), np.array([[-np.inf, 0.0, 1.0]])
    with np.errstate(all="raise"):
        assert loss(logits, np.array([1])) == pytest.approx(np.log(1 + np.e))
        np.testing.assert_allclose(loss.backward(), [[0, 1 / (1 + np.e) - 1, np.e / (1 + np.e)]])
