"""Arguments of the wrong kind are refused before the first step, by their names; NumPy's numbers will do."""

import math
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from runs import Run

from minibn import data, equivalence, jsonable, monitor, nn, optim, schedules
from minibn.equivalence.adam import AdamFrame
from minibn.equivalence.lion import LionFrame
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


def test_fit_needs_a_model_and_a_dict_of_optimisers():
    for model, optimizers in ((3, None), (None, {}), (None, 3), (None, optim.SGD([nn.Parameter(np.ones(1))], []))):
        run = Run()
        run.net, run.optimizers = model or run.net, run.optimizers if optimizers is None else optimizers
        with pytest.raises(TypeError, match=r"fit needs an nn.Module and a dict of optimisers, such as \{'all': SGD.*got"):
            run.fit()


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


# ---- numbers and schedules ----

SGD_NUMBERS = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}
STEP_NUMBERS = {
    optim.Step: {**SGD_NUMBERS, "kick": 0.1, "rescale": 1.0, "lookahead": 0.1, "shrink": 0.1},
    optim.AdamStep: {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.1},
    optim.LionStep: {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.1}, optim.MuonStep: SGD_NUMBERS}


def once(**options):
    return schedules.constant(0.1, **options)


def adam():
    return optim.AdamW([nn.Parameter(np.ones(2))], [optim.AdamStep(0.1)])


TAKES_NUMBERS = {  # name: (function, {argument: a good value})
    **{kind.__name__: (kind, numbers) for kind, numbers in STEP_NUMBERS.items()},
    "constant": (schedules.constant, SGD_NUMBERS),
    "step_decay": (lambda **k: schedules.step_decay(milestones=[2], **k), {**SGD_NUMBERS, "factor": 0.1}),
    "cosine": (schedules.cosine, {**SGD_NUMBERS, "steps": 5, "final": 0.1}),
    "exponential": (schedules.exponential, {**SGD_NUMBERS, "growth": 1.1}),
    "warmup": (lambda steps: schedules.warmup(steps, once()), {"steps": 3}),
    "by_name": (lambda **k: schedules.by_name("cosine", **k), {**SGD_NUMBERS, "steps": 5, "final": 0.1}),
    "remove_weight_decay": (lambda band: equivalence.remove_weight_decay(once(), band=band), {"band": 2.0}),
    "add_weight_decay": (lambda **k: equivalence.add_weight_decay(once(), **k), {"weight_decay": 0.1, "shrink": 0.1}),
    "adam_with_decay": (lambda **k: equivalence.adam_with_decay([optim.AdamStep(0.1)], **k), {"weight_decay": 0.1}),
    "lion_with_decay": (lambda **k: equivalence.lion_with_decay([optim.LionStep(0.1)], **k), {"weight_decay": 0.1}),
    "adam_exponential": (equivalence.adam_exponential, STEP_NUMBERS[optim.AdamStep]),
    "fixed_point": (equivalence.fixed_point, {**SGD_NUMBERS, "momentum": 0.1}),
    **{f.__name__: (lambda steps, lr, f=f, **k: f([(steps, lr)], **k), {"steps": 3, **SGD_NUMBERS, "momentum": 0.1})
       for f in (equivalence.texp, equivalence.texp_plus_plus, equivalence.texp_minus_minus, equivalence.instant_drops)},
    "undecayed": (lambda band: equivalence.undecayed(adam(), band=band), {"band": 2.0}),
    "decayed": (lambda weight_decay: equivalence.decayed(adam(), weight_decay), {"weight_decay": 0.1}),
    "ema": (lambda mu, scale: equivalence.ema(mu, 1.0, scale, 1.0, scale), {"mu": 0.5, "scale": 1.0}),
    "lookahead": (lambda alpha, scale: equivalence.lookahead(alpha, 1.0, 1.0, 1.0, scale), {"alpha": 0.5, "scale": 1.0}),
    "clip_global_norm": (lambda max_norm: equivalence.clip_global_norm([adam()], max_norm), {"max_norm": 1.0}),
    "transport": (lambda degree, **k: equivalence.transport({}, {}, degree, **k),
                  {"degree": 1, "previous": 1.0, "scale": 1.0, "after": 0.5}),
    "predicted_angular_update": (monitor.predicted_angular_update, SGD_NUMBERS),
    "predicted_norm": (monitor.predicted_norm, {**SGD_NUMBERS, "gradient_square": 1.0}),
    "time_to_equilibrium": (monitor.time_to_equilibrium, SGD_NUMBERS),
    "BatchNorm": (lambda **k: nn.BatchNorm(4, **k), {"eps": 0.1, "momentum": 0.1}),
    "LayerNorm": (lambda eps: nn.LayerNorm(4, eps), {"eps": 0.1}), "RMSNorm": (lambda eps: nn.RMSNorm(4, eps), {"eps": 0.1}),
    "GroupNorm": (lambda eps: nn.GroupNorm(2, 4, eps), {"eps": 0.1})}
ONE_PER_STEP = ("add_weight_decay", "adam_with_decay", "lion_with_decay")  # take an array, too


class ATruthOfTorch:
    """What a 0-d tensor of bool looks like."""

    dtype, ndim = "torch.bool", 0

    def __float__(self):
        return 1.0


NO_NUMBERS = [ATruthOfTorch(), "0.1", b"1", True, np.True_, np.array(True), 1j, {}, object(), np.array("1"), np.array([1.0])]


def taken(value):
    """Steps of a schedule as a list, anything else as it is."""
    return list(islice(value, 3)) if hasattr(value, "__next__") else value


@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_what_is_no_number_is_refused_by_its_name(name):
    function, good = TAKES_NUMBERS[name]
    for argument in good:
        for bad in NO_NUMBERS:
            if name in ONE_PER_STEP and getattr(bad, "ndim", 0):
                continue
            with pytest.raises(TypeError, match=rf"{argument}(_\w+)? must be a number, got .* of type {type(bad).__name__}"):
                taken(function(**{**good, argument: bad}))


@pytest.mark.parametrize("name", TAKES_NUMBERS)
def test_numbers_beyond_floats_are_out_of_range_and_numbers_of_other_kinds_are_numbers(name):
    function, good = TAKES_NUMBERS[name]
    expected = taken(function(**good))
    for argument, value in good.items():
        if argument != "degree":
            with pytest.raises((ValueError, OverflowError)):
                taken(function(**{**good, argument: -(10**400)}))
        for same in (np.float64(value), np.array(value), Fraction(value)):
            again = taken(function(**{**good, argument: same}))
            assert type(again) is type(expected)
            if isinstance(again, (list, tuple, float)):
                assert again == expected


def test_numbers_of_steps_are_whole():
    for bad in (True, 1.5, "3", None, -1):
        with pytest.raises(ValueError, match="steps must be a whole number of at least 0"):
            equivalence.frame_after(once(), bad)
        with pytest.raises(ValueError, match="steps must be a whole number of at least 0"):
            equivalence.scale_after(once(), bad)
    for bad in (True, 1.5, "3", None, 0):
        with pytest.raises(ValueError, match="count must be a whole number of at least 1"):
            equivalence.swa(bad, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_are_above_0(bad):
    with pytest.raises(ValueError, match="the average's scale must be a finite number above 0"):
        equivalence.ema(0.5, 1.0, bad, 1.0, 1.0)
    with pytest.raises(ValueError, match="scale must be a finite number above 0"):
        equivalence.lookahead(0.5, 1.0, 1.0, 1.0, bad)
    for name in ("previous", "scale", "after"):
        with pytest.raises(ValueError, match="scale, previous and after must be finite numbers above 0"):
            equivalence.transport({}, {}, 1, **({"previous": 1.0, "scale": 1.0, "after": 1.0} | {name: bad}))


TAKES_SCHEDULES = [
    lambda s: schedules.warmup(2, s), lambda s: schedules.like(optim.AdamStep(0.1), s), schedules.nesterov, schedules.decoupled,
    equivalence.remove_weight_decay, lambda s: equivalence.add_weight_decay(s, 0.1), lambda s: equivalence.frame_after(s, 1),
    lambda s: equivalence.scale_after(s, 1), equivalence.adam_without_decay, lambda s: equivalence.adam_with_decay(s, 0.1),
    equivalence.lion_without_decay, lambda s: equivalence.lion_with_decay(s, 0.1)]


@pytest.mark.parametrize("function", TAKES_SCHEDULES)
def test_a_schedule_is_an_iterable_of_step_objects(function):
    for bad in (0.1, "0.1", None, {"lr": 0.1}, np.array(0.1)):
        with pytest.raises(TypeError, match=r"a schedule must be an iterable of step objects, such as .*constant\(0.1\), got "):
            taken(function(bad))
    for bad in ([0.1], [None], np.array([0.1])):
        with pytest.raises(TypeError, match="step 0 of the schedule must be of the class .*, got"):
            taken(function(bad))


@pytest.mark.parametrize("function", [schedules.nesterov, schedules.decoupled, equivalence.remove_weight_decay])
def test_a_schedule_of_another_optimiser_is_refused_at_its_first_step(function):
    with pytest.raises(TypeError, match=r"step 0 of the schedule must be of the class Step, got AdamStep"):
        taken(function(iter([optim.AdamStep(0.1)])))


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.Lion, optim.Muon])
def test_an_optimiser_needs_parameters_and_a_schedule(kind):
    w = nn.Parameter(np.ones((2, 2)))
    for bad in (0.1, "0.1", None, {"lr": 0.1}):
        with pytest.raises(TypeError, match=f"{kind.__name__}: schedule must be an iterable of step objects, .*, got"):
            kind([w], bad)
        with pytest.raises(TypeError, match=f"{kind.__name__}: parameters must be a list of nn.Parameter, .*, got"):
            kind(bad, once())
    with pytest.raises(TypeError, match="parameters must be a list of nn.Parameter, .* item 1 is array"):
        kind([w, np.ones((2, 2))], once())


def test_milestones_and_phases_are_lists():
    with pytest.raises(TypeError, match="milestones must be a list of step numbers, got 5 of type int"):
        schedules.step_decay(0.1, 5)
    with pytest.raises(TypeError, match="a milestone must be a number, got '5' of type str"):
        schedules.step_decay(0.1, ["5"])
    with pytest.raises(TypeError, match="phases must be a list of .steps, lr., got 5"):
        equivalence.texp(5, momentum=0.0, weight_decay=0.1)
    for bad in ([5], [(5,)], ["ab"], [(1, 2, 3)]):
        with pytest.raises(ValueError, match="phases must be a list of .steps, lr. with whole numbers of steps"):
            equivalence.texp(bad, momentum=0.0, weight_decay=0.1)
    with pytest.raises(TypeError, match="like: step must be a step object, such as AdamStep.1e-3., got 0.1"):
        schedules.like(0.1, once())


FRAMES = {
    equivalence.Frame: [lambda f: equivalence.remove_weight_decay(once(), frame=f),
                        lambda f: equivalence.frame_after(once(), 2, frame=f),
                        lambda f: equivalence.add_weight_decay(once(), 0.1, frame=f)],
    AdamFrame: [lambda f: equivalence.adam_without_decay([optim.AdamStep(0.1)], frame=f),
                lambda f: equivalence.adam_with_decay([optim.AdamStep(0.1)], 0.1, frame=f)],
    LionFrame: [lambda f: equivalence.lion_without_decay([optim.LionStep(0.1)], frame=f),
                lambda f: equivalence.lion_with_decay([optim.LionStep(0.1)], 0.1, frame=f)]}


@pytest.mark.parametrize(("kind", "function"), [(kind, f) for kind, functions in FRAMES.items() for f in functions])
def test_a_frame_is_one_and_its_numbers_are_in_range(kind, function):
    for bad in (None, 1.0, "Frame", (1.0, 0.0, 1.0), {}, optim.Step(0.1)):
        with pytest.raises(TypeError, match=rf"frame must be a {kind.__name__}, such as {kind.__name__}\(\), got .* of type"):
            taken(function(bad))
    for name, default in kind._field_defaults.items():
        for bad in ("1", None, True, [1.0]):
            with pytest.raises((TypeError, ValueError), match=f"frame: {name} must be a (whole )?number"):
                taken(function(kind(**{name: bad})))
        for bad in [math.nan, math.inf, *([0.0, -1.0] if default else [-1.5] if name == "steps" else [])]:
            with pytest.raises(ValueError, match=f"frame: {name} must be a (finite|whole) number.*, got {bad}"):
                taken(function(kind(**{name: bad})))
    assert taken(function(kind(np.float64(1.0)))) == taken(function(kind()))
