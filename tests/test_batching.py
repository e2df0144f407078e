"""What the data functions refuse, and that they say what was given and what was needed."""

import numpy as np
import pandas
import pytest

from minibn import data, models, schedules
from minibn.training import convert, evaluate, fit, predict, update_bn

X, Y = np.ones((6, 4, 4, 1), np.float32), np.arange(6)


def refuse(error, message, x=X, y=Y, batch_size=2):
    with pytest.raises(error, match=message):
        data.batches(x, y, batch_size, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("x", "message"), [
    (X.tolist(), r"x must be an array of NumPy, CuPy or PyTorch, got builtins.list; give np.asarray\(x\)"),
    (pandas.DataFrame(X.reshape(6, 16)), r"got pandas.*DataFrame; give np.asarray\(x\)"),
    (None, "got builtins.NoneType"),
    (np.ma.masked_array(X, X > 2), r"x is a masked array, and its mask would be lost; give x.filled\(value\)"),
])
def test_what_is_not_an_array(x, message):
    refuse(TypeError, message, x=x)
    with pytest.raises(TypeError, match=message):
        data.crop_flip(x, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match="^images "):
        data.check_array("images", x)


@pytest.mark.parametrize("x", [X[:0], np.float32(1), X[..., :0]])
def test_no_examples_or_nothing_in_them(x):
    refuse(ValueError, r"x must hold examples along its first axis, and at least one number; got the shape \(", x=x)
    with pytest.raises(ValueError, match="x must hold examples"):
        data.crop_flip(x, rng=np.random.default_rng(0))


def test_labels_of_another_number():
    refuse(ValueError, "x and y must hold the same number of examples, got 6 and 5", y=Y[:5])
    refuse(TypeError, "y must be an array", y=Y.tolist())


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, None, "2"])
def test_batch_sizes_that_are_no_sizes(batch_size):
    refuse(ValueError, f"batch_size must be a whole number of at least 1, got {batch_size!r}", batch_size=batch_size)


def test_a_whole_number_of_any_kind_is_a_batch_size():
    assert len(list(data.batches(X, Y, np.int32(3), rng=np.random.default_rng(0)))) == 2
    assert data.check_batch_size(np.int32(3)) == 3


@pytest.mark.parametrize(("x", "padding", "message"), [
    (X[0], 4, r"crop_flip needs images \(N, H, W, C\), got"),
    (X, -1, "crop_flip: padding must be a whole number of at least 0, got -1"),
    (X, 1.5, "crop_flip: padding must be a whole number of at least 0, got 1.5")])
def test_what_cannot_be_cropped(x, padding, message):
    with pytest.raises(ValueError, match=message):
        data.crop_flip(x, rng=np.random.default_rng(0), padding=padding)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found_where_it_is(value):
    x, y = X.copy(), Y.astype(float)
    data.check_examples(x, y)
    x[4, 1, 2, 0] = x[5] = value
    with pytest.raises(ValueError, match=rf"not finite: x\[4, 1, 2, 0\] is {value}, the first of 17\."):
        data.check_examples(x, y)
    y[3] = value
    with pytest.raises(ValueError, match=rf"not finite: y\[3\] is {value}, the first of 1\."):
        data.check_examples(X, y)


@pytest.mark.filterwarnings("error")
def test_infinities_of_both_signs_are_found_and_numbers_near_the_largest_are_not():
    x = np.array([np.inf, -np.inf])
    with pytest.raises(ValueError, match=r"x\[0\] is inf, the first of 2"):
        data.check_examples(x, np.arange(2))
    data.check_examples(np.full(9, 3e38, np.float32), np.arange(9))  # their sum is infinite, they are not


def test_fit_names_the_data_when_a_pixel_is_not_a_number():
    """Not the learning rate, which a NaN loss is otherwise blamed on."""
    net = models.vgg((4,), in_channels=1, rng=np.random.default_rng(0))
    x = X.copy()
    x[3, 0, 0, 0] = np.nan
    options = {"epochs": 1, "batch_size": 2, "rng": np.random.default_rng(0), "progress": False}
    with pytest.raises(ValueError, match=r"the data has numbers that are not finite: x\[3, 0, 0, 0\] is nan"):
        fit(net, convert(net, schedules.constant(0.1)).optimizers, x, Y, **options)


@pytest.mark.parametrize("function", [predict, update_bn, lambda net, x, **options: evaluate(net, x, Y[: len(x)], **options)])
def test_evaluation_refuses_what_training_refuses(function):
    net = models.vgg((4,), in_channels=1, rng=np.random.default_rng(0))
    for x, error, message in ((X.tolist(), TypeError, "x must be an array"), (X[:0], ValueError, "x must hold examples"),
                              (np.ma.masked_array(X), TypeError, "x is a masked array")):
        with pytest.raises(error, match=message):
            function(net, x)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {size}"):
            function(net, X, batch_size=size)


def test_a_pixel_that_is_not_a_number_is_not_evaluated_to_nan():
    net = models.vgg((4,), in_channels=1, rng=np.random.default_rng(0))
    x = X.copy()
    x[2, 1, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite: x\[2, 1, 1, 0\] is nan"):
        evaluate(net, x, Y)
    with pytest.raises(ValueError, match="same number of examples, got 6 and 5"):
        evaluate(net, X, Y[:5])
