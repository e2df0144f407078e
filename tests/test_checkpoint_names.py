"""Names of optimisers in a checkpoint: what could not be read again is refused before the first step."""

import numpy as np
import pytest

from minibn import data, models, schedules
from minibn.optim import SGD
from minibn.training import fit


def run(path, names, **options):
    x, y = data.synthetic(32, size=2, rng=np.random.default_rng(1))
    net = models.mlp((4,), in_features=4, rng=np.random.default_rng(0))
    weights = net.parameters()
    optimizers = {name: SGD([w], schedules.constant(0.1, momentum=0.9)) for name, w in zip(names, weights, strict=False)}
    return net, fit(net, optimizers, x, y, epochs=1, batch_size=8, rng=np.random.default_rng(2), path=path, progress=False,
                    **options)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("c", "a/velocity", "a"), ("a/b", "a/b/c", "c")])
def test_a_name_below_another_one_is_refused_before_the_first_step(tmp_path, names):
    with pytest.raises(ValueError, match="a checkpoint cannot tell the optimisers 'a(/b)?' and 'a/.*' apart; rename one"):
        run(tmp_path / "c.npz", names, max_steps=1)
    assert not list(tmp_path.iterdir())
    run(None, names, max_steps=1)  # without a checkpoint they are no trouble


@pytest.mark.parametrize("names", [("a", "ab"), ("a/b", "a/c"), ("a/b", "ab", "b")])
def test_other_names_that_begin_alike_go_on_from_a_checkpoint(tmp_path, names):
    run(tmp_path / "c.npz", names, max_steps=2)
    net, history = run(tmp_path / "c.npz", names)
    whole, expected = run(None, names)
    assert np.array_equal(history["loss"], expected["loss"])
    for one, other in zip(net.parameters(), whole.parameters(), strict=True):
        assert np.array_equal(one.data, other.data)
