"""Without PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_minibn_does_not_import_torch():
    code = "import minibn, sys; assert 'torch' not in sys.modules; sys.modules['torch'] = None; import minibn.pytorch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: minibn.pytorch needs PyTorch; install it with")


def test_demos_that_lack_it_are_skipped(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-m", "demos", "pytorch", "--quick", "--output", str(tmp_path)], cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "skipped: needs PyTorch; install it with: pip install torch" in done.stderr
    assert "0 of 2 demos hold, skipped 14_pytorch, 19_pytorch_gpt: see" in done.stdout
