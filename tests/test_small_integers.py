"""Small integers of NumPy, whose arithmetic wraps around, count as Python's."""

import numpy as np
import pytest
from runs import Run

from minibn import data
from minibn.training import fit, predict, update_bn


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint64])
def test_whole_numbers_of_numpy_do_not_wrap_around(kind, tmp_path):
    """3 epochs of 100 steps are more than a uint8 holds, and so are all images."""
    run = Run()
    x, y = np.concatenate([run.x] * 4), np.concatenate([run.y] * 4)
    history = fit(run.net, run.optimizers, x, y, rng=run.rng, progress=False, epochs=kind(3), batch_size=kind(2))
    assert len(history) == 300
    assert predict(run.net, x, batch_size=kind(100)).shape[0] == 200
    update_bn(run.net, x, batch_size=kind(100))
    assert sum(len(b) for _, b in data.batches(x, y, kind(100), rng=run.rng)) == 200
    whole = Run().fit(epochs=8, every=kind(9), path=tmp_path / "c.npz", max_steps=kind(20))
    assert len(whole) == 20
    assert data.synthetic(kind(100), size=kind(20), rng=run.rng)[0].shape == (100, 20, 20, 1)
    assert data.crop_flip(np.ones((2, 4, 4, 1)), rng=run.rng, padding=kind(100)).shape == (2, 4, 4, 1)
