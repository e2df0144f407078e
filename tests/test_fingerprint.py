"""A checkpoint knows its data, up to rounding; that other data are refused is in test_checkpoint.py."""

import numpy as np
from test_checkpoint import go

from minibn.training import fingerprint


def test_the_fingerprint_of_data_is_the_same_in_every_library(library):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2500, 3)).astype("float32"), rng.integers(3, size=2500)
    assert fingerprint.of(library.array(x), library.array(y)) == fingerprint.of(x, y.astype("int32"))


def test_rounding_makes_no_other_data_and_a_checkpoint_without_a_fingerprint_goes_on(tmp_path, monkeypatch):
    go(tmp_path / "c.npz", max_steps=3)
    monkeypatch.setattr(fingerprint, "of", lambda x, y, f=fingerprint.of: f(x * (1 + 1e-6), y))
    go(tmp_path / "c.npz", max_steps=4)
    monkeypatch.setattr(fingerprint, "of", lambda x, y: None)
    go(tmp_path / "c.npz", max_steps=5)
    monkeypatch.undo()
    assert len(go(tmp_path / "c.npz")[0]) == 8
