"""Every demo's quick version holds its claims; the runner renews the pictures and claims of the documentation."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_idx import make_fashion, write_fashion

ROOT = Path(__file__).parent.parent
NAMES = [script.stem for script in sorted((ROOT / "demos").glob("[0-9]*.py"))]

SPEC = importlib.util.spec_from_file_location("demos_main", ROOT / "demos" / "__main__.py")
demos = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demos)


def run(*flags):
    return subprocess.run([sys.executable, "-m", "demos", *flags], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", NAMES)
def test_demo(name, tmp_path):
    done = subprocess.run([sys.executable, f"demos/{name}.py", "--quick", "--output", str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode == demos.SKIPPED:
        pytest.skip(done.stderr[done.stderr.index("needs"):].splitlines()[0])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    verdict = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert verdict["claims"]
    assert all(claim["holds"] for claim in verdict["claims"])
    assert verdict["claims"][0]["measured"] in done.stdout
    for picture in (f"{name}.png", f"{name}-small.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_demos_on_other_images(tmp_path):
    write_fashion(tmp_path / "images", make_fashion(train=130, test=20))
    flags = ["--quick", "--data", "fashion-mnist", "--path", str(tmp_path / "images"), "--output", str(tmp_path)]
    done = run("03_texp", "08_normalisers", *flags, "--no-checksum")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "1 of 1 demos hold" in done.stdout
    assert "losses of 6 steps" in done.stdout  # 3 epochs of 2 batches
    assert "needed uint8 of (60000, 28, 28)" in run("03_texp", *flags).stderr
    assert "these demos take no other images" in run("08_normalisers", *flags).stderr
    assert "--data fashion-mnist needs --path" in run("--data", "fashion-mnist").stderr


def test_names_that_are_no_demos():
    done = run("nonsense")
    assert done.returncode == 2
    assert "no demo has 'nonsense' in its name; there are 01_scale_invariance" in done.stderr


def test_the_documentation_has_picture_and_claims_of_every_demo():
    claims = json.loads((ROOT / "docs" / "gallery" / "claims.json").read_text(encoding="utf-8"))
    assert list(claims) == NAMES
    for name in NAMES:
        assert (ROOT / "docs" / "gallery" / f"{name}.png").exists()
        assert all(claim["measured"] for claim in claims[name]["claims"])


def test_the_gallery_is_renewed_for_the_demos_that_ran_and_kept_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "GALLERY", tmp_path / "gallery")
    (tmp_path / "gallery").mkdir()
    old = {NAMES[0]: {"title": "a", "claims": []}, NAMES[1]: {"title": "b", "claims": []}, "99_gone": {}}
    (tmp_path / "gallery" / "claims.json").write_text(json.dumps(old), encoding="utf-8")
    verdict = {"title": "new.", "claims": [{"claim": "c", "measured": "α = 1", "holds": True}], "seconds": 1}
    (tmp_path / f"{NAMES[1]}.json").write_text(json.dumps(verdict), encoding="utf-8")
    (tmp_path / f"{NAMES[1]}-small.png").write_bytes(b"picture")
    demos.renew_gallery(tmp_path, [NAMES[1]])
    renewed = json.loads((tmp_path / "gallery" / "claims.json").read_text(encoding="utf-8"))
    assert renewed == {NAMES[0]: old[NAMES[0]], NAMES[1]: {"title": "new", "claims": [{"claim": "c", "measured": "α = 1"}]}}
    assert (tmp_path / "gallery" / f"{NAMES[1]}.png").read_bytes() == b"picture"


def test_a_claim_that_does_not_hold_fails_the_demo(tmp_path):
    code = "import lab; lab.claim('pigs fly', 'no pig', False); lab.finish('x', 'Pigs.', lab.figure()[0])"
    done = subprocess.run([sys.executable, "-c", code, "--output", str(tmp_path)], cwd=ROOT / "demos",
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "verdict:  DOES NOT HOLD" in done.stdout
    assert json.loads((tmp_path / "x.json").read_text())["claims"][0]["holds"] is False
