"""Labels that are none are refused, or on a GPU, where nobody looks at them, make loss and gradient NaN."""

import math

import numpy as np
import pytest
from backend_runs import Run

from minibn import backend, nn

BAD_LABELS = [(np.array([0, 1, 10, 2]), ValueError, "labels from 0 to 9 for 10 classes, got 0 to 10"),
              (np.array([0, 1, -1, 2]), ValueError, "labels from 0 to 9 for 10 classes, got -1 to "),
              (np.array([0.0, 1.0, 2.0, 3.0]), TypeError, "integer labels, got .*float64")]


@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS)
def test_bad_labels(library, labels, error, message):
    loss, logits = nn.CrossEntropy(), library.array(np.zeros((4, 10)))
    if error is TypeError or backend.is_on_host(logits):
        with pytest.raises(error, match=message):
            loss(logits, library.array(labels))
    with pytest.raises(error, match=message):
        loss.check(logits, library.array(labels))
    run = Run(library)
    run.y = np.resize(run.y, 50).astype(labels.dtype)
    run.y[-4:] = labels  # wherever the shuffle puts them, the first step finds them
    with pytest.raises(error, match=message):
        run.fit(max_steps=1)


def test_a_wrong_label_on_a_gpu_makes_loss_and_gradient_nan(far):
    loss = nn.CrossEntropy()
    for wrong in (-1, 10):
        assert math.isnan(loss(np.zeros((2, 10)), np.array([3, wrong])))
        assert np.isnan(loss.backward()).any(axis=1).tolist() == [False, True]
    loss = nn.Logistic()
    with np.errstate(invalid="ignore"):
        assert math.isnan(loss(np.zeros(2), np.array([1, 0])))
        assert np.isnan(loss.backward()).tolist() == [False, True]
    assert far == []
    with pytest.raises(ValueError, match="Logistic needs labels -1 and"):
        loss.check(np.zeros(2), np.array([1, 0]))
    run = Run()
    run.y[7] = 10
    with pytest.raises(ValueError, match="labels from 0 to 9 for 10 classes, got 0 to 10"):
        run.fit()


def test_small_integers_count_more_classes_than_they_hold(library):
    """uint8 labels and 300 classes: class 44 is not class 300 too."""
    z = np.random.default_rng(0).standard_normal((3, 300))
    labels = np.array([0, 44, 255], dtype="uint8")
    loss = nn.CrossEntropy()
    assert backend.read([loss(library.array(z), library.array(labels))])[0] == pytest.approx(
        nn.CrossEntropy()(z, labels.astype(int)), rel=1e-14)
    assert np.count_nonzero(backend.to_numpy(loss.backward()) < 0) == 3
