"""Every layer's backward pass is the derivative of its forward pass, and bad input is refused."""

import math

import numpy as np
import pytest
from common import NETWORKS, NORMS, PAIRS
from hypothesis import assume, given
from hypothesis import strategies as st

from minibn import backend, models, nn
from minibn.testing import check_degree, check_gradient, check_layer, check_libraries, distinct

pytestmark = pytest.mark.usefixtures("arithmetic")  # by the equations themselves, and in many chunks
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 3)


@pytest.mark.parametrize(("layer", "fan_in"), [(lambda rng: nn.Linear(64, 500, rng=rng), 64),
                                               (lambda rng: nn.Conv2d(8, 300, (3, 5), rng=rng), 8 * 15)])
def test_weights_start_with_variance_two_over_fan_in(layer, fan_in):
    """He et al., 2015: 32,000 and more draws, so the sample variance is within 5 % of the true one."""
    w = layer(np.random.default_rng(0)).weight.data
    assert w.var() == pytest.approx(2 / fan_in, rel=0.05)
    assert abs(w.mean()) < 4 * math.sqrt(2 / fan_in / w.size)


@given(seeds, sizes, sizes, sizes, st.booleans())
def test_linear(seed, n, inside, outside, bias):
    rng = np.random.default_rng(seed)
    check_layer(nn.Linear(inside, outside, bias, rng=rng, dtype="float64"), distinct(rng, (n, inside)), rng=rng)


@given(seeds, st.data())
def test_conv(seed, data):
    rng = np.random.default_rng(seed)
    n, inside, outside = (data.draw(sizes) for _ in range(3))
    kernel, stride = ((data.draw(sizes), data.draw(sizes)) for _ in range(2))
    padding = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))  # also more than the kernel's size
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    assume(all(size + 2 * p >= k for size, p, k in zip((height, width), padding, kernel, strict=True)))
    conv = nn.Conv2d(inside, outside, kernel, stride, padding, data.draw(st.booleans()), rng=rng, dtype="float64")
    x = distinct(rng, (n, height, width, inside))
    check_gradient(conv, x, rng=rng)
    check_libraries(conv, x, rng=rng)
    inside = np.pad(np.ones((height, width)), [(p, p) for p in padding])
    seen = np.lib.stride_tricks.sliding_window_view(inside, kernel)[:: stride[0], :: stride[1]].reshape(-1, kernel[0] * kernel[1])
    if padding == (0, 0) or len(np.unique(seen, axis=0)) > 1:
        check_degree(conv, x, rng=rng)  # if all outputs see the same part of the padding, it is as if there were none


@given(seeds, st.sampled_from(sorted(NORMS)), st.booleans(), st.sampled_from([0.0, 1e-5, 0.1]), st.booleans(), st.data())
def test_normalisation(seed, norm, affine, eps, image, data):
    rng = np.random.default_rng(seed)
    channels, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    shape = (n, data.draw(sizes), data.draw(sizes), channels) if image else (n, channels)
    layer = NORMS[norm](channels, eps=eps, affine=affine, dtype="float64")
    sets = layer._sets(np.empty(shape))
    assume(sets.shape[1] * sets.shape[3] >= 3)  # of two numbers one is +1, the other -1, and dx is 0
    if affine:
        layer.weight.data, layer.bias.data = rng.standard_normal((2, channels))
    check_layer(layer, distinct(rng, shape), rng=rng)


@given(seeds, st.booleans())
def test_batch_norm_in_evaluation_mode(seed, image):
    rng = np.random.default_rng(seed)
    layer = nn.BatchNorm(3, dtype="float64")
    layer(distinct(rng, (4, 2, 2, 3)))
    check_layer(layer.eval(), distinct(rng, (2, 2, 2, 3) if image else (2, 3)), rng=rng)


@given(seeds, st.sampled_from([nn.ReLU(), nn.Flatten(), nn.GlobalAvgPool(), nn.AvgPool2d(1), nn.AvgPool2d(2), nn.AvgPool2d(3),
                               nn.MaxPool2d(1), nn.MaxPool2d(2), nn.MaxPool2d(3)]),
       sizes, st.integers(3, 5), st.integers(3, 5), sizes)
def test_layers_without_parameters(seed, layer, n, height, width, channels):
    rng = np.random.default_rng(seed)
    check_layer(layer, distinct(rng, (n, height, width, channels)), rng=rng)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_whole_networks(name, norm):
    """Differences along random directions: whole networks have too many numbers for one at a time."""
    rng = np.random.default_rng(3)
    net = NETWORKS[name](in_channels=3, norm=NORMS[norm], eps=1e-5, rng=rng, dtype="float64")
    x, y, loss, h = rng.standard_normal((3, 8, 8, 3)), rng.integers(10, size=3), nn.CrossEntropy(), 1e-6
    loss(net(x), y)
    dx = net.backward(loss.backward())
    arrays = [("the input", x, dx)] + [(key, p.data, p.grad) for key, p in net.named_parameters()]
    for key, array, gradient in arrays:
        direction, values = rng.standard_normal(array.shape), []
        for offset in (h, -2 * h):
            array += offset * direction
            values.append(loss(net(x), y))
        array += h * direction
        measured = (values[0] - values[1]) / (2 * h)
        scale = max(np.linalg.norm(gradient) * np.linalg.norm(direction), 1e-2)
        assert abs(measured - np.sum(gradient * direction)) < 1e-6 * scale, key


@given(st.sampled_from(sorted(NORMS)), st.booleans(), st.floats(-1e6, 1e6))
def test_a_constant_channel_gives_zeros(norm, affine, value):
    layer = NORMS[norm](2, eps=0.0, affine=affine, dtype="float64")
    y = layer(np.full((3, 4, 4, 2), value))
    assert np.all(y == 0)
    assert np.all(layer.backward(np.random.default_rng(0).standard_normal(y.shape)) == 0)


def loss_and_gradient(loss, library, scores, labels):
    """As NumPy; both were where the scores are."""
    value = loss(library.array(np.array(scores)), library.array(np.array(labels)))
    gradient = loss.backward()
    assert library.is_home_of(value)
    assert library.is_home_of(gradient)
    assert value.shape == ()
    return backend.read([value])[0], backend.to_numpy(gradient)


def test_cross_entropy(library):
    rng = np.random.default_rng(0)
    z, y, loss = rng.standard_normal((5, 4)), np.array([0, 3, 1, 1, 2]), nn.CrossEntropy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    value, gradient = loss_and_gradient(loss, library, z, y)
    assert value == pytest.approx(-np.log(p[np.arange(5), y]).mean(), rel=1e-14)
    np.testing.assert_allclose(gradient, (p - np.eye(4)[y]) / 5, rtol=0, atol=1e-16)
    assert loss_and_gradient(loss, library, [[8e307, -8e307]], [0])[0] == 0.0
    assert loss_and_gradient(loss, library, [[1e5, 0.0]], [1])[0] == 1e5  # no overflow


def test_logistic(library):
    loss, s, y = nn.Logistic(), np.array([-1.0, 0.5, 2.0]), np.array([1, -1, 1])
    value, gradient = loss_and_gradient(loss, library, s, y)
    assert value == pytest.approx(np.log1p(np.exp(-y * s)).mean(), rel=1e-14)
    np.testing.assert_allclose(gradient, -y / (1 + np.exp(y * s)) / 3, rtol=1e-14)
    value, gradient = loss_and_gradient(loss, library, [-1e5, 1e5], [1, 1])
    assert value == 5e4
    np.testing.assert_array_equal(gradient, [-0.5, 0.0])


LAYERS = {
    "Linear": (lambda: nn.Linear(3, 2, rng=np.random.default_rng(0)), (4, 3), (4, 5)),
    "Conv2d": (lambda: nn.Conv2d(3, 2, 3, rng=np.random.default_rng(0)), (4, 5, 5, 3), (4, 3, 5, 5)),
    "BatchNorm": (lambda: nn.BatchNorm(3), (4, 5, 5, 3), (4, 5, 5, 2)),
    "LayerNorm": (lambda: nn.LayerNorm(3), (4, 5, 5, 3), (4, 5, 5, 2)),
    "GroupNorm": (lambda: nn.GroupNorm(1, 3), (4, 5, 5, 3), (4, 5, 5, 2)),
    "InstanceNorm": (lambda: nn.InstanceNorm(3), (4, 5, 5, 3), (4, 5, 5, 2)),
    "GlobalAvgPool": (nn.GlobalAvgPool, (4, 5, 5, 3), (4, 5)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (4, 5, 5, 3), (4, 5)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (4, 5, 5, 3), (4, 1, 1, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_errors_name_the_layer_and_both_shapes(name):
    make, good, bad = LAYERS[name]
    layer = make()
    with pytest.raises(RuntimeError, match=f"{name}.*backward was called before forward"):
        layer.backward(np.zeros(good, dtype="float32"))
    with pytest.raises(ValueError, match=rf"{name}.*got \({bad[0]}, {bad[1]}"):
        layer(np.zeros(bad, dtype="float32"))
    with pytest.raises(ValueError, match=f"{name}.*no axis may be empty"):
        layer(np.zeros((0, *good[1:]), dtype="float32"))
    y = layer(np.random.default_rng(0).standard_normal(good).astype("float32"))
    with pytest.raises(ValueError, match=rf"{name}.*dy of the output's shape \({', '.join(map(str, y.shape))}\), got \(9, 9\)"):
        layer.backward(np.zeros((9, 9), dtype="float32"))
    layer.backward(y)
    with pytest.raises(RuntimeError, match="backward was called before forward"):
        layer.backward(y)  # every backward needs a forward of its own
    if list(layer.named_parameters()):
        with pytest.raises(TypeError, match=f"{name}.*has float32 parameters but its input is float64"):
            layer(np.zeros(good))


@pytest.mark.parametrize(("make", "message"), [
    (lambda rng: nn.Linear(0, 2, rng=rng), "Linear: in_features must be a whole number of at least 1, got 0"),
    (lambda rng: nn.Linear(2, 2, rng=rng, dtype="int64"), 'dtype must be "float32" or "float64", got \'int64\''),
    (lambda rng: nn.Conv2d(1, 1, 3, stride=0, rng=rng), "Conv2d: stride must be a whole number of at least 1, got 0"),
    (lambda rng: nn.Conv2d(1, 1, 3, padding=-1, rng=rng), "Conv2d: padding must be a whole number of at least 0, got -1"),
    (lambda rng: nn.GroupNorm(2, 3), "GroupNorm: num_groups must divide num_features, got 2 and 3"),
    (lambda rng: nn.BatchNorm(3, eps=-1e-5), "BatchNorm: eps must be a finite number of at least 0, got -1e-05"),
    (lambda rng: nn.BatchNorm(3, momentum=2), "momentum must lie between 0 and 1, got 2"),
    (lambda rng: nn.MaxPool2d(0), "MaxPool2d: kernel_size must be a whole number of at least 1, got 0"),
    (lambda rng: models.preresnet(9, rng=rng), "depth must be 6n \\+ 2 .*, got 9"),
])
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.random.default_rng(0))


@pytest.mark.parametrize(("logits", "labels", "error", "message"), [
    ((2, 3), [0, 3], ValueError, "labels from 0 to 2 for 3 classes, got 0 to 3"),
    ((2, 3), [-1, 0], ValueError, "got -1 to 0"),
    ((2, 3), [0], ValueError, "one label for each of the 2 rows of logits, got \\(1,\\)"),
    ((2, 3), [0.0, 1.0], TypeError, "integer labels, got float64"),
    ((0, 3), [], ValueError, "no axis may be empty"),
])
def test_bad_labels(logits, labels, error, message):
    with pytest.raises(error, match=message):
        nn.CrossEntropy()(np.zeros(logits), np.array(labels))


def test_bad_labels_of_logistic():
    with pytest.raises(ValueError, match="labels -1 and \\+1"):
        nn.Logistic()(np.zeros(2), np.array([0, 1]))
    with pytest.raises(ValueError, match="shape \\(2,\\), got \\(3,\\)"):
        nn.Logistic()(np.zeros(2), np.ones(3))


def test_more_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least its kernel's size"):
        nn.Conv2d(1, 1, 5, rng=rng)(np.zeros((1, 3, 3, 1), dtype="float32"))
    with pytest.raises(ValueError, match="would normalise over one number"):
        nn.BatchNorm(2)(np.zeros((1, 2), dtype="float32"))
    with pytest.raises(ValueError, match=r"adds its branch's \(2, 3\) to its shortcut's \(2, 2\)"):
        nn.Residual(nn.Linear(2, 3, rng=rng))(np.zeros((2, 2), dtype="float32"))
    with pytest.raises(TypeError, match="Sequential takes modules, got 3"):
        nn.Sequential(3)
    shared = nn.Linear(2, 2, rng=rng)
    with pytest.raises(ValueError, match="are the same Parameter"):
        nn.Sequential(shared, shared).parameters()


def test_state_dict_goes_back_and_checks_what_it_is_given():
    one = models.preresnet(8, rng=np.random.default_rng(0))
    two = models.preresnet(8, rng=np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((2, 8, 8, 3)).astype("float32")
    one(x)  # moves the running statistics too
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(one.eval()(x), two.eval()(x))
    state = two.state_dict()
    state["head.weight"] = state["head.weight"].T
    with pytest.raises(ValueError, match=r"head.weight must have shape \(64, 10\), got \(10, 64\)"):
        one.load_state_dict(state)
    del state["head.weight"], state["norm.running_mean"]
    with pytest.raises(ValueError, match=r"missing \['head.weight', 'norm.running_mean'\], unknown \[\]"):
        one.load_state_dict(state)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 3, padding=1, rng=np.random.default_rng(0)), nn.BatchNorm(3), nn.ReLU(),
                                   nn.MaxPool2d(1), nn.AvgPool2d(1)], ids=str)
def test_dy_of_another_dtype_is_refused(layer):
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype("float32")
    layer(x)
    with pytest.raises(TypeError, match="backward needs dy of dtype .*float32.*, got int64"):
        layer.backward(np.ones(x.shape, dtype="int64"))


def test_input_that_is_not_floating_is_refused():
    for layer in (nn.AvgPool2d(2), nn.GlobalAvgPool(), nn.LayerNorm(3, affine=False)):
        with pytest.raises(TypeError, match="needs an input of floating dtype, got int64"):
            layer(np.ones((2, 4, 4, 3), dtype="int64"))


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_channel_gives_beta_however_large(dtype, eps):
    layer = nn.BatchNorm(2, eps=eps, dtype=dtype)
    layer.bias.data[...] = 0.5
    y = layer(np.full((3, 4, 4, 2), 1e6, dtype=dtype))
    np.testing.assert_allclose(y, 0.5, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_no_plain_array_is_refused_by_every_layer(name):
    make, shape, _ = LAYERS[name]
    x = np.ones(shape, dtype="float32")
    for bad, message in ((x.tolist(), "x must be an array of NumPy, CuPy or PyTorch, got builtins.list; give np.asarray"),
                         (None, "x must be an array"), ("x", "x must be an array"),
                         (np.ma.masked_array(x), "x is a masked array, and its mask would be lost")):
        for layer in (make(), nn.Sequential(make()), nn.Residual(make())):
            with pytest.raises(TypeError, match=message):
                layer(bad)


def test_flatten_needs_examples():
    for bad in (np.zeros((0, 3)), np.zeros((2, 0)), np.array(1.0)):
        with pytest.raises(ValueError, match=r"Flatten\(\) needs input of shape \(N, …\), of which no axis is empty, got"):
            nn.Flatten()(bad)
