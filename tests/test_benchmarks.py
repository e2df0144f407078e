"""The benchmarks run, and their contenders train the same network; what they measure decides nothing here."""

import importlib
import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from minibn import models

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("depth", [8, 14])
def test_contenders_train_the_same_network(depth, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import contenders

    ours, theirs = models.preresnet(depth, width=4, rng=np.random.default_rng(0)), contenders.torch_preresnet(depth, 4)
    x, _ = contenders.images(4)
    with torch.no_grad():
        for (_, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            q.copy_(torch.tensor(p.data.transpose(3, 2, 0, 1).copy() if p.data.ndim == 4 else p.data.T.copy()))
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def run(name, capsys, monkeypatch):
    """What `python benchmarks/NAME.py --quick` prints, as a list of the table's rows; in this process, which is faster."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick"])
    importlib.import_module(name).main()
    lines = capsys.readouterr().out.splitlines()
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"<!-- {name}: written by python benchmarks/{name}.py --write -->\n" in page
    assert f"<!-- end of {name} -->" in page
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "---" not in line]


@pytest.mark.parametrize("name", ["train_step", "versions", "layers", "scaling", "overhead", "launches"])
def test_a_benchmark_prints_its_table(name, capsys, monkeypatch):
    rows = run(name, capsys, monkeypatch)
    assert len(rows) == 5 if name == "versions" else len(rows) > 5  # two versions, with one thread and with two
    numbers = [re.match(r"([\d.,e+-]+)( \(|$)", cell) for row in rows[1:] for cell in row[1:]]
    measured = [float(number[1].replace(",", "")) for number in numbers if number and number[1] != "-"]
    assert measured
    assert min(measured) >= 0
    assert max(measured) > 0


def test_the_gpu_benchmark_runs_on_the_stand_in_and_says_so(capsys, monkeypatch):
    """Each row about CuPy is computed and none is an error; the others say that there is no GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("gpu"), "why_no_gpu", lambda: "no GPU here")
    rows = {row[0]: row for row in run("gpu", capsys, monkeypatch)[1:]}
    assert "waits: 0" in rows["waits in a step on CuPy"][-1]
    assert "same bits twice: True" in rows["NumPy's numbers on CuPy, float64"][-1]
    assert float(rows["step: minibn on CuPy"][1]) > 0
    assert "no GPU" in rows["tests marked gpu"][-1]
    assert not any("error" in row[-1] for row in rows.values())


def test_without_a_gpu_the_gpu_benchmark_stops_with_a_sentence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "no GPU here")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"^gpu\.py: no GPU here\. With --quick it runs here, on a stand-in"):
        gpu.main()


def test_the_cost_of_a_report_is_counted():
    """Three passes for the tensors that are invariant alone, and some for each normalisation."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "benchmarks/report.py", "--model", "ResNet-14, width 16"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, tensors, forward, backward, seconds, of_cpu, memory = json.loads(done.stdout)
    assert tensors == 53
    assert 3 < backward < tensors
    assert backward < forward < 2 * tensors
    assert float(seconds) > 0
    assert float(of_cpu) > 0
    assert float(memory) >= 0
    assert "<!-- report: written by python benchmarks/report.py --write -->" in (ROOT / "benchmarks/README.md").read_text("utf-8")


def test_without_a_free_threaded_python_the_lock_benchmark_stops_with_a_sentence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: 0)
    monkeypatch.setattr(sys, "argv", ["lock.py"])
    with pytest.raises(SystemExit, match=r"^lock\.py: .* always has the lock\. Give a free-threaded Python"):
        importlib.import_module("lock").main()
