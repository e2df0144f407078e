"""The benchmarks run, and their contenders train the same network; what they measure decides nothing here."""

import json
import re
import subprocess
import sys
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


@pytest.mark.parametrize("name", ["train_step", "layers", "scaling", "overhead"])
def test_a_benchmark_prints_its_table(name):
    pytest.importorskip("torch")
    command = [sys.executable, f"benchmarks/{name}.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 5
    numbers = [re.match(r"([\d.,e+-]+) \(", cell) for row in rows[1:] for cell in row[1:]]
    measured = [float(number[1].replace(",", "")) for number in numbers if number]
    assert measured
    assert min(measured) > 0
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"<!-- {name}: written by python benchmarks/{name}.py --write -->\n" in page
    assert f"<!-- end of {name} -->" in page


def test_the_cost_of_a_report_is_counted():
    """Three passes for the tensors that are invariant alone, and some for each normalisation."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "benchmarks/report.py", "--model", "ResNet-14, width 16"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, tensors, forward, backward, seconds, memory = json.loads(done.stdout)
    assert tensors == 53
    assert 3 < backward < tensors
    assert backward < forward < 2 * tensors
    assert float(seconds) > 0
    assert float(memory) > 0
    assert "<!-- report: written by python benchmarks/report.py --write -->" in (ROOT / "benchmarks/README.md").read_text("utf-8")
