"""Objects of another kind than a function takes are refused by name, and nothing is changed."""

import numpy as np
import pytest

from minibn import export, invariance, models, nn, testing, training
from minibn.optim import SGD, Step

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((4, 8)), np.array([0, 1, 2, 3])


def net():
    return models.mlp((8,), in_features=8, rng=np.random.default_rng(0), dtype="float64")


def sgd(**state):
    one = SGD(net().parameters(), [Step(0.1)] * 3)
    one.load_state_dict({**one.state_dict(), **state})
    return one.steps


MODELS = {
    "symmetries": invariance.symmetries, "loss_function": lambda m: invariance.loss_function(m, X, Y),
    "evaluate": lambda m: training.evaluate(m, X, Y), "predict": lambda m: training.predict(m, X),
    "update_bn": lambda m: training.update_bn(m, X), "convert": lambda m: training.convert(m, [Step(0.1)]),
    "split": lambda m: training.split(m, [Step(0.1)], None),
    "check_gradient": lambda m: testing.check_gradient(m, X, rng=RNG),
    "check_degree": lambda m: testing.check_degree(m, X, rng=RNG),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bad", [3, None, {}, nn.Sequential])
def test_a_model_is_an_nn_module(name, bad):
    with pytest.raises(TypeError, match="(the model|module) must be an nn.Module, got"):
        MODELS[name](bad)


@pytest.mark.parametrize("bad", [None, [1.0], "state", np.ones(3)])
def test_a_state_is_a_dict(bad):
    for load in (net().load_state_dict, SGD(net().parameters(), [Step(0.1)]).load_state_dict):
        with pytest.raises(TypeError, match=r"state must be a dict of arrays, as from state_dict\(\), got"):
            load(bad)


def test_a_state_has_arrays():
    one = net()
    before = one.state_dict()
    with pytest.raises(TypeError, match=r"state\['head.bias'\] must be an array .*, got builtins.list"):
        one.load_state_dict({name: list(value) if name == "head.bias" else 0 * value for name, value in before.items()})
    assert all(np.array_equal(before[name], value) for name, value in one.state_dict().items())
    with pytest.raises(TypeError, match="the state's velocity/0 must be an array .*, got builtins.list"):
        sgd(**{"velocity/0": [0.0]})


@pytest.mark.parametrize("bad", [1.5, -1, "2", None])
def test_a_state_has_a_whole_number_of_steps(bad):
    with pytest.raises(ValueError, match="the state's steps must be a whole number of at least 0, got"):
        sgd(steps=bad)


@pytest.mark.parametrize("good", [2, np.int64(2), np.array(2)])
def test_numpys_number_of_steps_will_do(good):
    assert sgd(steps=good) == 2


@pytest.mark.parametrize("loss", [nn.CrossEntropy, nn.Logistic])
def test_a_loss_takes_arrays(loss):
    scores, labels = {nn.CrossEntropy: (X, Y), nn.Logistic: (X[:, 0], np.ones(4))}[loss]
    with pytest.raises(TypeError, match="labels must be an array .*, got builtins.list; give np.asarray"):
        loss()(scores, labels.tolist())
    with pytest.raises(TypeError, match="scores must be an array .*, got builtins.list"):
        loss()(scores.tolist(), labels)


def test_a_history_takes_columns_and_rows():
    with pytest.raises(TypeError, match="columns must be a dict, {column: numbers}, got 3 of type int"):
        training.History(3)
    with pytest.raises(TypeError, match="the column 'a' must be a list of numbers, got 3 of type int"):
        training.History({"a": 3})
    history = training.History({"a": [1]})
    with pytest.raises(TypeError, match="a row must be a dict, {column: number}, got 3 of type int"):
        history.append(3)
    with pytest.raises(KeyError, match="there is no column 'b'; there are a"):
        history["b"]
    with pytest.raises(KeyError, match="there are none yet"):
        training.History()["a"]
    assert history["a"].tolist() == [1]


def test_a_table_is_a_file_or_lines():
    with pytest.raises(TypeError, match="the schedule must be an open text file or a list of lines, got None"):
        next(export.read_csv(None))


def test_a_schedule_to_convert_is_an_iterable():
    with pytest.raises(TypeError, match="a schedule must be an iterable of step objects, such as .*, got 3 of type int"):
        training.convert(net(), 3)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding"])
def test_no_image_is_as_large(name):
    with pytest.raises(ValueError, match=f"{name} must be at most 2147483647, for no image is as large; got 10+"):
        nn.Conv2d(1, 1, **{"kernel_size": 3, name: 10**30}, rng=RNG)
