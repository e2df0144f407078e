"""The benchmarks run, and their contenders train the same network; what they measure decides nothing here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["train_step", "layers", "scaling", "overhead"])
def test_a_benchmark_prints_its_table(name):
    pytest.importorskip("torch")
    command = [sys.executable, f"benchmarks/{name}.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| minibn" in done.stdout or "minibn" in done.stdout.splitlines()[0] or "`import minibn`" in done.stdout
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"<!-- {name}: written by python benchmarks/{name}.py --write -->\n" in page
    assert f"<!-- end of {name} -->" in page
