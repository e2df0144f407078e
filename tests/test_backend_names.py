"""Array libraries by name, in Python and on the command line, and what is said of one that is not there."""

import numpy as np
import pytest
from backend_runs import assert_close, network
from cupy_double import in_place_of_cupy

from minibn import backend, experiment, nn, plots
from minibn.__main__ import main
from minibn.experiment import Experiment
from minibn.training import fit


def test_to_takes_a_name(library):
    net = network("mlp").to(library.name, device=library.device)
    assert all(map(library.is_home_of, net.arrays()))
    assert {backend.dtype_name(x) for x in net.to(dtype="float32").arrays()} == {"float32"}
    with pytest.raises(ValueError, match='dtype must be "float32" or "float64", got .int32'):
        net.to(dtype="int32")
    assert all(map(library.is_home_of, net.arrays()))
    assert {type(x) for x in net.to("numpy").arrays()} == {np.ndarray}


def test_arrays_of_two_libraries_and_no_arrays_have_no_namespace():
    strict = pytest.importorskip("array_api_strict")
    ours, theirs = np.ones(2), strict.ones(2)
    assert backend.array_namespace(ours, ours) is backend.library("numpy")[0]
    for arrays in [(ours, theirs), (theirs, ours), ()]:
        with pytest.raises(TypeError):
            backend.array_namespace(*arrays)


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
