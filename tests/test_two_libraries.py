"""Arrays of two libraries in one place, and NumPy's dtypes that PyTorch lacks."""

import copy
from itertools import permutations

import numpy as np
import pytest

from minibn import backend, data, models, nn, schedules, training
from minibn.optim import SGD

torch = pytest.importorskip("torch", reason="these are about PyTorch beside NumPy; install it with: pip install -e '.[torch]'")
LIBRARIES = {"numpy": np.asarray, "torch": torch.asarray}


@pytest.mark.parametrize(("one", "other"), list(permutations(LIBRARIES)))
def test_the_message_names_both_libraries(one, other):
    """Where the dtypes have one name, "float32 and float32" would help nobody."""
    x, dy, logits = np.zeros((4, 3), "f4"), np.zeros((4, 2), "f4"), np.zeros((4, 2), "f4")
    linear = nn.Linear(3, 2, rng=np.random.default_rng(0)).to(one)
    with pytest.raises(TypeError, match=rf"Linear.*: the library of its parameters is {one}, that of its input is {other}; move"):
        linear(LIBRARIES[other](x))
    with pytest.raises(TypeError, match=rf"the library of its parameters is {one}, that of its input is {other}"):
        nn.BatchNorm(3, affine=False).to(one)(LIBRARIES[other](x))
    linear(LIBRARIES[one](x))
    with pytest.raises(TypeError, match=rf"backward: the library of its output is {one}, that of dy is {other}"):
        linear.backward(LIBRARIES[other](dy))
    copy.deepcopy(linear).backward(LIBRARIES[one](dy))
    for loss, scores, labels in ((nn.CrossEntropy(), logits, np.zeros(4, int)), (nn.Logistic(), logits[:, 0], np.ones(4, int))):
        with pytest.raises(TypeError, match=rf"the library of its scores is {one}, that of the labels is {other}"):
            loss(LIBRARIES[one](scores), LIBRARIES[other](labels))


@pytest.mark.parametrize("kind", ["u8", "u4", "u2", "u1", ">i8", ">i4", ">u2"])
def test_labels_of_any_integers_train_a_model_on_torch_as_on_numpy(kind):
    x, y = data.synthetic(20, size=4, rng=np.random.default_rng(0), dtype="float64")
    losses = []
    for library, labels, images in (("numpy", y, x), ("torch", y.astype(kind), x.astype(">f8"))):
        net = models.mlp((8,), in_features=16, rng=np.random.default_rng(0), dtype="float64").to(library)
        optimizers = {"all": SGD(net.parameters(), schedules.constant(0.1))}
        history = training.fit(net, optimizers, images, labels, epochs=2, batch_size=5,
                               rng=np.random.default_rng(0), validation=(images, labels), progress=False)
        losses.append(history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_a_number_that_torch_cannot_hold_is_refused():
    there = torch.zeros(1)
    assert backend.move(np.array([2**63 - 1], "u8"), there).tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="a uint64 above the largest int64 cannot be moved to PyTorch"):
        backend.move(np.array([1, 2**63], "u8"), there)
