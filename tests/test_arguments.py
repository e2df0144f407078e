"""Arguments of the wrong kind are refused before the first step, by their names; NumPy's numbers will do."""

import numpy as np
import pytest
from runs import Run

from minibn import data, jsonable, nn
from minibn.experiment import Experiment
from minibn.kernels import threads
from minibn.optim import SGD
from minibn.training import evaluate, predict, update_bn

WHOLE = [True, False, 1.0, 2.5, "2", None, float("nan"), np.float64(2), np.array([2]), [2], 0, -3]


def no_step(self):
    raise AssertionError("a step was taken")


@pytest.mark.parametrize("name", ["epochs", "batch_size", "every", "max_steps", "threads"])
def test_fit_needs_whole_numbers(name, monkeypatch):
    monkeypatch.setattr(SGD, "step", no_step)
    for bad in WHOLE:
        if (name, bad) in (("max_steps", None), ("threads", None)) or (name == "max_steps" and bad == 0 and bad is not False):
            continue
        called = "count" if name == "threads" else name
        with pytest.raises(ValueError, match=f"{called} must be a whole number of at least [01], got"):
            Run().fit(**{name: bad})


@pytest.mark.parametrize("good", [np.int64(2), np.uint8(2), np.array(2)])
def test_whole_numbers_of_numpy_will_do(good, tmp_path):
    history = Run().fit(epochs=good, batch_size=np.int64(16), every=good, max_steps=good, threads=good, path=tmp_path / "c.npz")
    assert len(history) == 2


@pytest.mark.parametrize("function", [predict, update_bn, lambda net, x, **k: evaluate(net, x, np.zeros(50, "i4"), **k)])
def test_evaluation_needs_whole_numbers(function):
    run = Run()
    for bad in WHOLE:
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            function(run.net, run.x, batch_size=bad)


@pytest.mark.parametrize("bad", [True, 1.0, "1", np.float32(1)])
def test_a_number_of_threads_is_whole(bad):
    with pytest.raises(ValueError, match="threads: count must be a whole number of at least 1"), threads(bad):
        pass


@pytest.mark.parametrize("name", ["drop_last", "resume", "progress"])
def test_words_are_not_yes_or_no(name):
    for bad in ("no", "False", "", None, 2):
        with pytest.raises(ValueError, match=f"{name} must be True or False, got"):
            Run().fit(**{name: bad})
    assert len(Run().fit(**{name: np.bool_(False)}, max_steps=1)) == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"loss": nn.CrossEntropy}, "loss must be an object that computes a loss, such as nn.CrossEntropy"),
    ({"loss": 3}, "loss must be an object"), ({"augment": 3}, "augment must be a function, such as data.crop_flip, got 3"),
    ({"validation": np.zeros((2, 2))}, "validation must be a pair"), ({"validation": (np.zeros((2, 2)),)}, "must be a pair"),
    ({"settings": {"a": {1}}}, r"settings\['a'\] is \{1\} of type set, which JSON cannot hold"),
    ({"settings": {"a": "NaN"}}, r"settings\['a'\] is the string 'NaN'")])
def test_fit_says_what_it_needs(options, message, monkeypatch):
    monkeypatch.setattr(SGD, "step", no_step)
    with pytest.raises((TypeError, ValueError), match=message):
        Run().fit(**options)


@pytest.mark.parametrize("rng", [None, 0, np.random, np.random.RandomState(0), np.random.PCG64(0)], ids=lambda x: type(x))
def test_a_seed_is_not_a_generator(rng):
    run = Run()
    run.rng = rng
    with pytest.raises(TypeError, match="rng must be a numpy.random.Generator, such as numpy.random.default_rng"):
        run.fit()
    with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
        data.batches(run.x, run.y, 4, rng=rng)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_refused_as_its_rows_are_not_arrays():
    with pytest.raises(TypeError, match="x is a numpy.matrix, whose rows are not arrays; give np.asarray"):
        data.check_array("x", np.matrix([[1.0, 2.0]]))


def test_numbers_beyond_floats_and_types_in_place_of_names():
    for bad in (10**400, -(10**400)):
        with pytest.raises(ValueError, match="lr must be a number of at least 0, got"):
            Experiment(lr=bad)
    with pytest.raises(TypeError, match="dtype is <class 'numpy.float32'> of type type, which JSON cannot hold"):
        Experiment(dtype=np.float32)
    with pytest.raises(TypeError, match="the value is <class 'numpy.ndarray'> of type type"):
        jsonable.plain(np.ndarray)
