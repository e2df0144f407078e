"""Ordinary mistakes that would give something else without a word, or an error that does not say what was wrong."""

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
