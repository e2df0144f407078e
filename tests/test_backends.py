"""The same lines on every array library, where the model is and with no wait for a GPU, on any
number of threads; and `import minibn` stays light."""

import ast
import configparser
import importlib
import math
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from common import NETWORKS, NORMS
from conftest import others
from cupy_double import in_place_of_cupy
from packaging.requirements import Requirement

from minibn import backend, data, experiment, kernels, models, monitor, nn, plots, schedules
from minibn.__main__ import main
from minibn.equivalence import remove_weight_decay
from minibn.experiment import Experiment
from minibn.optim import SGD, Step
from minibn.training import DivergenceError, convert, evaluate, fit, predict, recorder, train_step, update_bn
from minibn.training.evaluation import accuracy


def network(name="vgg", norm="batch", dtype="float64", eps=0.0):
    return NETWORKS[name](norm=NORMS[norm], eps=eps, rng=np.random.default_rng(0), dtype=dtype)


def arrays(module):
    """Parameters, buffers and gradients of a module, as NumPy."""
    grads = {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    return {name: backend.to_numpy(x) for name, x in {**module.state_dict(), **grads}.items()}


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


# ---- every layer, loss, network and update is that of NumPy ----

KW = {"dtype": "float64"}
LAYERS = {"Linear": lambda rng: nn.Linear(3, 4, rng=rng, **KW), "BatchNorm": lambda rng: nn.BatchNorm(3, **KW),
          "Conv2d": lambda rng: nn.Conv2d(3, 2, (3, 2), (2, 1), (1, 0), True, rng=rng, **KW),
          "Conv2d 1x1": lambda rng: nn.Conv2d(3, 2, 1, rng=rng, **KW), "LayerNorm": lambda rng: nn.LayerNorm(3, eps=0.0, **KW),
          "BatchNorm in evaluation": lambda rng: nn.BatchNorm(3, **KW).eval(),
          "GroupNorm": lambda rng: nn.GroupNorm(3, 3, affine=False, **KW), "InstanceNorm": lambda rng: nn.InstanceNorm(3, **KW),
          "ReLU": lambda rng: nn.ReLU(), "Flatten": lambda rng: nn.Flatten(), "GlobalAvgPool": lambda rng: nn.GlobalAvgPool(),
          "AvgPool2d": lambda rng: nn.AvgPool2d(2), "MaxPool2d": lambda rng: nn.MaxPool2d(2),
          "Residual": lambda rng: nn.Sequential(nn.Residual(nn.Conv2d(3, 3, 1, rng=rng, **KW), nn.ReLU()))}


@others
@pytest.mark.parametrize("name", LAYERS)
def test_layers(library, name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3) if name == "Linear" else (2, 5, 5, 3))
    results = []
    for there in (False, True):
        layer = LAYERS[name](np.random.default_rng(1))
        if there:
            layer.to(library.xp, device=library.device)
        y = layer(library.array(x) if there else x)
        dx = layer.backward(y * y)
        assert not there or all(map(library.is_home_of, (y, dx, *layer.arrays(), *(p.grad for p in layer.parameters()))))
        results.append({"y": backend.to_numpy(y), "dx": backend.to_numpy(dx), **arrays(layer)})
    assert_close(*results, 1e-13)


def steps(name, norm, library=None, count=4):
    """Losses of a few steps, then weights and evaluation-mode outputs, all as NumPy; one group has a converted schedule."""
    rng = np.random.default_rng(1)
    net = network(name, norm)
    x, y = rng.standard_normal((6, 8, 8, 1)), rng.integers(10, size=6)
    if library:
        net.to(library.xp, device=library.device)
        x, y = library.array(x), library.array(y)
    usual = {"momentum": 0.9, "weight_decay": 0.01}
    weights, rest = ([p for p in net.parameters() if (p.data.ndim > 1) == wanted] for wanted in (True, False))
    optimizers = [SGD(weights, remove_weight_decay(schedules.constant(0.1, **usual), band=1.001)),  # rescales often
                  SGD(rest, schedules.nesterov(schedules.constant(0.1, **usual)))]
    loss, losses = nn.CrossEntropy(), []
    for _ in range(count):
        net.zero_grad()
        losses.append(loss(net(x), y))
        net.backward(loss.backward())
        for sgd in optimizers:
            sgd.step()
    return {"losses": backend.read(losses), **arrays(net), "outputs": backend.to_numpy(net.eval()(x))}


@others
@pytest.mark.parametrize(("name", "norm"), [*((name, "batch") for name in NETWORKS), ("preresnet", "layer"), ("mlp", "group")])
def test_networks(library, name, norm):
    assert_close(steps(name, norm, library), steps(name, norm), 1e-9)


@others
def test_a_seed_gives_the_same_start(library):
    one, other = network("preresnet", dtype="float32"), network("preresnet", dtype="float32")
    other.to(library.xp, device=library.device)
    assert_close(arrays(one), arrays(other), 0)


# ---- the theorem ----


def test_usual_and_converted_are_one_run(library):
    """Of a whole network, with and without weight decay: losses apart by rounding, at most 1e-13 in 8 steps."""
    def schedule():
        return schedules.warmup(3, schedules.cosine(0.1, 9, momentum=0.9, weight_decay=5e-3))

    x, y = data.synthetic(32, rng=np.random.default_rng(0), dtype="float64")
    losses = []
    for converted in (True, False):
        net = network("preresnet").to(library.xp, device=library.device)
        groups = convert(net, schedule()).optimizers
        if not converted:
            groups = {name: SGD(sgd.parameters, schedule()) for name, sgd in groups.items()}
        history = fit(net, groups, x, y, epochs=4, batch_size=16, rng=np.random.default_rng(0), progress=False)
        losses.append(history["loss"])
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert 0 < np.abs(losses[0] - losses[1]).max() < 1e-13


# ---- training from data on the host ----


class Run:
    """A small training run of two groups, on host data; the model is at `library`, or stays NumPy's."""

    def __init__(self, library=None, lr=0.1, **options):
        self.x, self.y = data.synthetic(50, rng=np.random.default_rng(5), dtype="float64")
        self.net = network("vgg")
        if library:
            self.net.to(library.xp, device=library.device)
        self.optimizers = convert(self.net, schedules.warmup(3, schedules.constant(lr, momentum=0.9, weight_decay=5e-3)),
                                  band=1.01).optimizers
        self.options = {"epochs": 2, "batch_size": 16, "progress": False, "drop_last": False, **options}  # 8 steps

    def fit(self, x=None, y=None, **options):
        rng = np.random.default_rng(1)
        return fit(self.net, self.optimizers, self.x if x is None else x, self.y if y is None else y, rng=rng,
                   **{**self.options, **options})


@others
def test_training_moves_batches_from_the_host_to_the_model(library):
    results = []
    for where in (None, library):
        run = Run(where)
        history = run.fit(augment=data.crop_flip, validation=(run.x, run.y))
        update_bn(run.net, run.x, batch_size=20)
        logits = predict(run.net, run.x, batch_size=20)
        assert isinstance(logits, np.ndarray)
        loss, accuracy = evaluate(run.net, run.x, run.y, batch_size=20)
        assert type(loss) is type(accuracy) is float
        assert {type(value) for column in history.columns.values() for value in column} == {int, float}
        results.append({**history.columns, **arrays(run.net), "logits": logits, "end": [loss, accuracy]})
    assert all(map(library.is_home_of, run.net.arrays()))
    assert_close(*results, 1e-9)


@others
def test_data_that_are_with_the_model_stay_there(library):
    results = []
    for home in (lambda x: x, library.array):
        run = Run(library)
        x, y = home(run.x), home(run.y)
        history = run.fit(x, y, augment=data.crop_flip)
        update_bn(run.net, x)
        logits = predict(run.net, x)
        results.append({**history.columns, "logits": backend.to_numpy(logits), "end": evaluate(run.net, x, y)})
    assert library.is_home_of(logits)
    assert_close(*results, 1e-15)
    mixed = [evaluate(run.net, run.x, y), evaluate(run.net, x, run.y)]
    np.testing.assert_allclose(mixed, [results[0]["end"]] * 2, rtol=1e-12)


@others
def test_a_model_of_buffers_alone_says_where_it_is(library):
    x = np.random.default_rng(0).standard_normal((9, 2))
    norms = [nn.BatchNorm(2, affine=False, dtype="float64") for _ in range(2)]
    norms[1].to(library.xp, device=library.device)
    for norm in norms:
        update_bn(norm, x, batch_size=4)
    np.testing.assert_allclose(predict(norms[1], x), predict(norms[0], x), rtol=1e-12)


@others
@pytest.mark.parametrize("there", [True, False])
def test_a_run_saved_on_one_library_goes_on_on_another(library, there, tmp_path):
    whole = Run()
    expected = whole.fit()
    first, second = Run(library if there else None), Run(None if there else library)
    first.fit(path=tmp_path / "c.npz", max_steps=5)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as file:
        assert {array.dtype.name for array in file.values() if isinstance(array, np.ndarray)} <= {"float64", "int64", "uint8"}
    history = second.fit(path=tmp_path / "c.npz")
    assert_close({**history.columns, **second.net.state_dict()} if there else history.columns,
                 {**expected.columns, **whole.net.state_dict()} if there else expected.columns, 1e-9)


def test_optimisers_made_before_the_move_are_refused():
    pytest.importorskip("array_api_strict")
    run = Run()
    run.net.to("array_api_strict")
    with pytest.raises(ValueError, match="the optimiser of group 'invariant' was made before its parameters moved"):
        run.fit()


# ---- nothing waits for a GPU ----


def test_a_step_of_training_reads_nothing():
    """On PyTorch's device "meta", whose arrays have no numbers: whoever reads one gets an error."""
    torch = pytest.importorskip("torch")
    for name, norm in [("preresnet", "batch"), ("vgg", "layer")]:
        net = network(name, norm).to("torch", device="meta")
        groups = convert(net, schedules.nesterov(schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)), band=1.01).optimizers
        x, y = torch.zeros((4, 8, 8, 1), dtype=torch.float64, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
        watched = recorder.watch(net, groups, {})
        for _ in range(4):
            before = recorder.weights(watched)
            outputs, value = train_step(net, nn.CrossEntropy(), groups.values(), x, y)
            row = {"loss": value, "accuracy": accuracy(outputs, y), **recorder.measure(watched, before)}
        unread = [name for name, value in row.items() if not isinstance(value, int | float)]
        assert unread == ["loss", "accuracy", *(f"{what}/{group}" for group in groups for what in
                                                ("norm", "effective_lr", "angle"))]
        assert {row[name].device.type for name in unread} == {"meta"}
    loss = nn.Logistic()
    assert loss(torch.zeros(3, device="meta"), torch.ones(3, device="meta")).ndim == 0
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        backend.read([row["loss"]])


@pytest.fixture
def far(monkeypatch):
    """NumPy arrays taken for those of a GPU; returns a list of how many rows of the history were fetched at a time."""
    def read(numbers):
        if len(numbers) > 2:  # those of the labels and of an evaluation are two
            fetched.append(sum(isinstance(n, int) for n in numbers))  # the number of the step
        return original(numbers)

    monkeypatch.setattr(backend, "is_on_host", lambda x: False)
    fetched, original = [], backend.read
    monkeypatch.setattr(backend, "read", read)
    return fetched


@pytest.mark.parametrize(("options", "rows"), [
    ({}, [8]), ({"path": "c.npz", "every": 3}, [3, 3, 2]), ({"validation": True}, [4, 4]), ({"max_steps": 5}, [5])])
def test_numbers_are_fetched_at_checkpoints_epochs_and_the_end(options, rows, far, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run()
    if "validation" in options:
        options = {"validation": (run.x, run.y)}
    assert len(run.fit(**options)) == sum(rows)
    assert far == rows


@pytest.mark.parametrize(("progress", "rows"), [(True, [4, 4]), (False, [8])])
def test_numbers_are_fetched_at_the_rate_of_the_progress_bar(progress, rows, far, monkeypatch, capsys):
    clock = iter(np.arange(0, 9, 0.03))  # a step takes 0.03 s
    monkeypatch.setattr(recorder.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Run().fit(progress=progress)
    assert far == rows
    assert ("8/8" in capsys.readouterr().err) == progress


def test_rows_fetched_late_are_the_same_rows(far, monkeypatch):
    late = Run().fit()
    monkeypatch.undo()
    at_once = Run().fit()
    assert_close(late.columns, at_once.columns, 0)


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("when", ["at once", "late"])
def test_divergence_is_reported_for_the_step_where_it_began(when, every, tmp_path, request):
    if when == "late":
        request.getfixturevalue("far")
    path, run = tmp_path / "c.npz", Run()
    sgd = run.optimizers["rest"]
    sgd.schedule = chain(islice(sgd.schedule, 5), schedules.constant(1e308))
    saved = "there is no" if every > 5 else "the last good"
    message = rf"step 5: a weight is not finite .* group 'rest' with lr 1e\+308; {saved} checkpoint"
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
        run.fit(path=path, every=every)
    if every > 5:
        assert not path.exists()
    else:
        resumed = Run()
        assert len(history := resumed.fit(path=path, max_steps=5)) == 5
        assert np.all(np.isfinite(history["loss"]))


@pytest.mark.parametrize("when", ["at once", "late"])
def test_a_loss_that_is_not_finite_is_reported_with_the_rates_before_it(when, request):
    if when == "late":
        request.getfixturevalue("far")
    run = Run()
    forward, calls = run.net.forward, []
    run.net.forward = lambda x: forward(x) * (math.nan if (calls.append(None) or len(calls)) == 4 else 1.0)
    message = r"step 3: the loss is nan after .*'invariant' with lr .*'rest' with lr 0.075; there is no"
    with pytest.raises(DivergenceError, match=message):
        run.fit()


# ---- labels ----

BAD_LABELS = [(np.array([0, 1, 10, 2]), ValueError, "labels from 0 to 9 for 10 classes, got 0 to 10"),
              (np.array([0, 1, -1, 2]), ValueError, "labels from 0 to 9 for 10 classes, got -1 to "),
              (np.array([0.0, 1.0, 2.0, 3.0]), TypeError, "integer labels, got .*float64")]


@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS)
def test_bad_labels(library, labels, error, message):
    loss, logits = nn.CrossEntropy(), library.array(np.zeros((4, 10)))
    if error is TypeError or backend.is_on_host(logits):
        with pytest.raises(error, match=message):
            loss(logits, library.array(labels))
    with pytest.raises(error, match=message):
        loss.check(logits, library.array(labels))
    run = Run(library)
    run.y = np.resize(run.y, 50).astype(labels.dtype)
    run.y[-4:] = labels  # wherever the shuffle puts them, the first step finds them
    with pytest.raises(error, match=message):
        run.fit(max_steps=1)


def test_a_wrong_label_on_a_gpu_makes_loss_and_gradient_nan(far):
    loss = nn.CrossEntropy()
    for wrong in (-1, 10):
        assert math.isnan(loss(np.zeros((2, 10)), np.array([3, wrong])))
        assert np.isnan(loss.backward()).any(axis=1).tolist() == [False, True]
    loss = nn.Logistic()
    with np.errstate(invalid="ignore"):
        assert math.isnan(loss(np.zeros(2), np.array([1, 0])))
        assert np.isnan(loss.backward()).tolist() == [False, True]
    assert far == []
    with pytest.raises(ValueError, match="Logistic needs labels -1 and"):
        loss.check(np.zeros(2), np.array([1, 0]))
    run = Run()
    run.y[7] = 10
    with pytest.raises(ValueError, match="labels from 0 to 9 for 10 classes, got 0 to 10"):
        run.fit()


def test_small_integers_count_more_classes_than_they_hold(library):
    """uint8 labels and 300 classes: class 44 is not class 300 too."""
    z = np.random.default_rng(0).standard_normal((3, 300))
    labels = np.array([0, 44, 255], dtype="uint8")
    loss = nn.CrossEntropy()
    assert backend.read([loss(library.array(z), library.array(labels))])[0] == pytest.approx(
        nn.CrossEntropy()(z, labels.astype(int)), rel=1e-14)
    assert np.count_nonzero(backend.to_numpy(loss.backward()) < 0) == 3


# ---- monitor ----


def test_monitor_stays_on_the_device(library):
    before, after = [np.array([3.0, 0.0]), np.array([[4.0]])], [np.array([0.0, 3.0]), np.array([[4.0]])]
    there, zeros = [library.array(x) for x in before], [library.array(np.zeros(2)), library.array(np.zeros((1, 1)))]
    with np.errstate(all="raise"):
        values = {"norm": (kernels.norm(there), 5.0), "lr": (monitor.effective_lr(Step(0.1), there), 0.1 / 25),
                  "angle": (monitor.angular_update(there, [library.array(x) for x in after]), math.acos(16 / 25)),
                  "no angle": (monitor.angular_update(there, zeros), 0.0),
                  "no angle either": (monitor.angular_update(zeros, there), 0.0),
                  "no norm": (kernels.norm(zeros), 0.0), "infinite": (monitor.effective_lr(Step(0.1), zeros), math.inf),
                  "at lr 0 too": (monitor.effective_lr(Step(0.0), zeros), math.inf)}
    for what, (value, expected) in values.items():
        assert library.is_home_of(value), what
        assert backend.dtype_name(value) == "float64", what
        assert value.shape == (), what
        assert backend.read([value]) == pytest.approx([expected], rel=1e-14), what
        assert library.name != "numpy" or isinstance(value, float), what


def test_float32_weights_of_any_size(library):
    weights = [library.array(np.full(4, 1e30, dtype="float32")), library.array(np.zeros(3, dtype="float32"))]
    turned = [library.array(np.array([1e30, 1e30, 1e30, -1e30], dtype="float32")), weights[1]]
    assert backend.read([kernels.norm(weights), monitor.angular_update(weights, turned)]) == pytest.approx([2e30, math.pi / 3])


def test_unit_vectors_of_float32_weights_are_float32(library):
    """So that no array is twice as large as the weights."""
    x, y = np.random.default_rng(0).standard_normal((2, 99)).astype("float32")
    u, v = x / np.float32(np.linalg.norm(x.astype(float))), y / np.float32(np.linalg.norm(y.astype(float)))
    expected = 2 * math.atan2(*(np.linalg.norm(z.astype(float)) for z in (u - v, u + v)))
    measured, = backend.read([monitor.angular_update([library.array(x)], [library.array(y)])])
    assert measured == pytest.approx(expected, rel=1e-13)


# ---- libraries by name, and on the command line ----


def test_to_takes_a_name(library):
    net = network("mlp").to(library.name, device=library.device)
    assert all(map(library.is_home_of, net.arrays()))
    assert {backend.dtype_name(x) for x in net.to(dtype="float32").arrays()} == {"float32"}
    with pytest.raises(ValueError, match='dtype must be "float32" or "float64", got .int32'):
        net.to(dtype="int32")
    assert all(map(library.is_home_of, net.arrays()))
    assert {type(x) for x in net.to("numpy").arrays()} == {np.ndarray}


def test_a_name_brings_its_device():
    strict = pytest.importorskip("array_api_strict")
    for device in (None, strict.Device("CPU_DEVICE")):
        net = network("mlp").to("array_api_strict", device=device)
        assert {x.device for x in net.arrays()} == {device or strict.Device("device1")}


def test_move(library):
    x = np.arange(3, dtype="int32")
    there = library.array(x)
    moved = backend.move(x, library.array(np.zeros(1)))
    assert library.is_home_of(moved)
    assert backend.dtype_name(moved) == "int32"
    assert backend.to_numpy(moved).tolist() == [0, 1, 2]
    assert backend.move(there, moved) is there
    assert backend.move(x, None) is x


def test_move_to_another_device_of_the_same_library():
    strict = pytest.importorskip("array_api_strict")
    one, other = (strict.asarray([1.0], device=strict.Device(name)) for name in ("CPU_DEVICE", "device1"))
    assert backend.move(one, other).device == other.device


def test_what_forward_kept_does_not_survive_a_move():
    layer = nn.Linear(2, 2, rng=np.random.default_rng(0))
    layer(np.zeros((1, 2), dtype="float32"))
    with pytest.raises(RuntimeError, match="backward was called before forward"):
        layer.to(dtype="float64").backward(np.zeros((1, 2)))


COMMANDS = [["--quiet"], ["train", "--quiet"], ["sweep", "--quiet", "--workers", "1"]]


def refused(flags, capsys):
    """What the command line says when it ends with status 2."""
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_library_that_is_not_installed(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    for name, advice in {"cupy": "'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'", "torch": "torch"}.items():
        assert refused([*command, "--backend", name], capsys) == (
            f"minibn: backend {name!r} was asked for but is not installed: pip install {advice}")


@pytest.mark.parametrize("command", COMMANDS)
def test_cupy_without_a_gpu(command, capsys, tmp_path, monkeypatch):
    """Also with CuPy in the extras' version, where that is installed: see the test of the names."""
    class NoGPU:
        @staticmethod
        def ones(shape):
            raise OSError("cudaErrorInsufficientDriver: the driver is too old\nfor this")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backend, "find_spec", lambda name: name)
    monkeypatch.setattr(backend, "import_module", lambda name: {"array_api_compat.cupy": NoGPU}[name])
    assert refused([*command, "--backend", "cupy"], capsys) == (
        "minibn: backend 'cupy' was asked for but finds no GPU it can use here (OSError: cudaErrorInsufficientDriver: the driver "
        "is too old): run it where there is an NVIDIA GPU with a driver for this CuPy, or choose 'numpy' or 'torch'")


def test_the_first_run_of_cupy_announces_that_it_compiles(capsys, tmp_path, monkeypatch):
    """Once per process, and not where some thirty kernels are compiled already."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    with in_place_of_cupy():
        for kernels_there, lines in ((2, 1), (30, 0)):
            for i in range(kernels_there):
                (tmp_path / f"{i}.cubin").touch()
            backend._announce_compilation.cache_clear()
            backend.library("cupy")
            backend.library("cupy")
            out, err = capsys.readouterr()
            assert out == ""
            assert [line.split(",")[0] for line in err.splitlines()] == [
                "minibn: CuPy compiles its kernels at their first use"] * lines


def test_unknown_libraries():
    with pytest.raises(ValueError, match=r"backend must be one of \['numpy', 'cupy', 'torch', 'array_api_strict'\], got 'jax'"):
        network().to("jax")
    with pytest.raises(ValueError, match=r"backend must be one of \['numpy', 'cupy', 'torch'\], got 'jax'"):
        Experiment(backend="jax")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_an_experiment_saved_on_one_library_goes_on_on_another(optimizer, backend_name, tmp_path, monkeypatch):
    options = {"model": "mlp", "epochs": 2, "batch": 512, "dtype": "float64", "optimizer": optimizer, "convert": True}  # 4 steps
    path = tmp_path / "c.npz"

    def everything(run):
        return {**run.history.columns, "logits": run.logits, "end": [run.train_loss, run.test_accuracy]}

    expected = everything(experiment.run(Experiment(**options), progress=False))
    there = experiment.run(Experiment(**options, backend=backend_name), progress=False)
    assert {backend.array_namespace(x) for x in there.model.arrays()} == {backend.library(backend_name)[0]}
    assert_close(everything(there), expected, 1e-11)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", lambda *args, **kw: fit(*args, **kw, max_steps=2))
        experiment.run(Experiment(**options, backend=backend_name), checkpoint=path, progress=False)
    assert_close(everything(experiment.run(Experiment(**options), checkpoint=path, progress=False)), expected, 1e-11)


def test_the_command_line(backend_name, tmp_path, capsys, monkeypatch):
    """Without pictures: they are drawn from a History, which is NumPy's."""
    monkeypatch.setattr(plots, "compare", lambda *_, **__: None)
    common = ["--epochs", "1", "--quiet", "--backend", backend_name]
    assert main([*common, "--batch", "512", "--output", str(tmp_path)]) == 0
    assert "the same run" in capsys.readouterr().out
    assert main(["train", *common, "--model", "mlp", "--output", str(tmp_path)]) == 0
    assert f'"backend": "{backend_name}"' in (tmp_path / "result.json").read_text()


# ---- which names are used ----

PACKAGE = Path(backend.__file__).parent
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "pytorch"]  # which is about one library


def names_of_the_namespace(source):
    """Every NAME in `xp.NAME` and `array_namespace(…).NAME`, with dots where there are several."""
    def base(node):
        return (isinstance(node, ast.Name) and node.id == "xp") or (
            isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "array_namespace")

    for node in ast.walk(ast.parse(source)):
        chain_, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain_.append(inner.attr)
            inner = inner.value
        if chain_ and base(inner):
            yield ".".join(reversed(chain_))


def test_the_walk_over_the_source_finds_names():
    source = "xp.linalg.qr(x); array_namespace(x, y).exp(xp.pi); z = backend.array_namespace(z).sin(1); np.cos(x); xp(1).tan"
    assert set(names_of_the_namespace(source)) == {"linalg.qr", "linalg", "exp", "pi", "sin"}
    assert len({name for path in SOURCES for name in names_of_the_namespace(path.read_text(encoding="utf-8"))}) > 30


@pytest.mark.parametrize("namespace", ["array_api_strict", "array_api_compat.numpy", "array_api_compat.torch",
                                       "array_api_compat.cupy"])
def test_every_name_exists_everywhere(namespace):
    """CuPy's names can be looked up without a GPU."""
    pytest.importorskip(namespace.removeprefix("array_api_compat."))
    xp = importlib.import_module(namespace)
    for path in SOURCES:
        for name in names_of_the_namespace(path.read_text(encoding="utf-8")):
            found = xp
            for part in name.split("."):
                found = getattr(found, part, None)
            assert found is not None, f"{path.name} uses xp.{name}"


def test_the_cupy_that_was_looked_at_is_that_of_the_extras():
    pytest.importorskip("cupy")
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    extras = [Requirement(setup["options.extras_require"][extra].strip()) for extra in ("cuda12", "cuda13")]
    assert importlib.import_module("cupy").__version__ in extras[0].specifier & extras[1].specifier
    assert all("<" in str(extra.specifier) for extra in extras)
    assert all(extra.extras == {"ctk"} for extra in extras)  # CUDA's libraries, for machines that have only the driver
    lines = (PACKAGE.parent / ".ci" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (in_ci,) = (Requirement(line) for line in lines if line.startswith("cupy"))
    assert (in_ci.specifier, in_ci.extras) == (extras[0].specifier, set())  # names only: no gigabytes


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name not in ("backend.py", "optax.py")],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_backend_names_a_library(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert not imported & {"array_api_compat", "array_api_strict", "array_api_extra", "cupy", "torch", "jax", "tensorflow", "mlx"}


# ---- threads ----


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(norm, dtype):
    def run(threads):
        rng = np.random.default_rng(0)
        net = models.preresnet(8, norm=NORMS[norm], rng=rng, dtype=dtype)
        x, y = rng.standard_normal((96, 16, 16, 3)).astype(dtype), rng.integers(10, size=96)
        loss = nn.CrossEntropy()
        with kernels.threads(threads):
            value = loss(net(x), y)
            dx = net.backward(loss.backward())
        return [value, dx, *(p.grad for p in net.parameters())]

    expected = run(1)
    for threads in (2, 3):
        for one, other in zip(expected, run(threads), strict=True):
            np.testing.assert_array_equal(one, other)


def test_import_is_light():
    code = "import sys, minibn; print(*[m for m in ('matplotlib', 'torch', 'cupy', 'dask') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
