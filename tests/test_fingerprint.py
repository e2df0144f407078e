"""A checkpoint knows its data, up to rounding, and its model; that others are refused is in test_checkpoint.py, too."""

import inspect
from functools import partial

import numpy as np
import pytest
from test_checkpoint import go

from minibn import data, nn, schedules
from minibn.optim import SGD
from minibn.training import checkpoint, fingerprint, fit


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


SIZES = {"num_features": (8, 16), "num_groups": (2, 4), "eps": (0.5, 0.25), "momentum": (0.5, 0.25), "affine": (True, False),
         "in_features": (4, 8), "out_features": (4, 8), "in_channels": (4, 8), "out_channels": (4, 8), "kernel_size": (3, 5),
         "stride": (1, 2), "padding": (0, 1), "bias": (True, False), "each_position": (True, False), "num_heads": (2, 4),
         "num_kv_heads": (2, 1), "qk_norm": (nn.RMSNorm, partial(nn.RMSNorm, eps=1e-3)), "rope": (100.0, 10.0),
         "num_embeddings": (4, 8), "embedding_dim": (4, 8), "max_length": (4, 8), "hidden": (4, 8)}
LAYERS = [layer for layer in map(nn.__dict__.get, nn.__all__) if inspect.isclass(layer) and issubclass(layer, nn.Module)
          and layer not in (nn.Module, nn.Sequential, nn.Residual, nn.Unembedding)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_model_is_known_by_every_setting_of_every_layer(layer):
    """By its settings, or by the shapes and names of its parameters, which a checkpoint compares as well."""
    def known(**changed):
        made = layer(**{**given, **changed})
        return fingerprint.of_model(made), {name: array.shape for name, array in made.state_dict().items()}

    names = [name for name in inspect.signature(layer).parameters if name not in ("rng", "dtype")]
    if issubclass(layer, (nn.AvgPool2d, nn.MaxPool2d)):
        names.remove("stride")  # which is kernel_size
    rng = {"rng": np.random.default_rng(0)} if "rng" in inspect.signature(layer).parameters else {}
    given = {name: SIZES[name][0] for name in names} | rng
    assert known() == known()
    assert known()[0]["class"] == layer.__name__
    for name in names:
        assert known(**{name: SIZES[name][1]}) != known(), name


class Own(nn.Module):
    """A layer of a user's own."""

    def __init__(self, power=2.0, function=np.tanh):
        self.power, self.function, self._calls, self.mask = power, function, 0, np.ones(3)

    def forward(self, x):
        self._calls += 1
        return self.keep(self.function(x), x)

    def backward(self, dy):
        (x,) = self.kept(dy)
        return dy / np.cosh(x) ** 2


def test_numbers_and_functions_of_a_layer_of_ones_own_are_settings():
    assert fingerprint.of_model(Own()) == {"class": "Own", "power": 2.0, "function": "tanh"}
    assert fingerprint.of_model(Own(3, np.sin)) == {"class": "Own", "power": 3, "function": "sin"}


def train(path, *, layers=None, order=(0, 1, 2, 3), group=("a.weight", "b.weight"), validation=slice(10), steps=None, own=2.0,
          augment=None):
    digits, rng = data.digits(), np.random.default_rng(0)
    made = {"flat": nn.Flatten(), "a": nn.Linear(64, 64, rng=rng), "own": Own(own), "b": nn.Linear(64, 64, rng=rng)}
    net = nn.Sequential(**{name: made[name] for name in layers or made})
    parameters = [net[name] for name in ("a", "b")]
    parameters = [array for layer in parameters for array in (layer.weight, layer.bias)]
    optimizers = {"all": SGD([parameters[i] for i in order], schedules.constant(0.01, momentum=0.9))}
    return fit(net, optimizers, digits.x_train[:64], digits.y_train[:64], epochs=1, batch_size=16, rng=np.random.default_rng(0),
               path=path, max_steps=steps, validation=(digits.x_test[validation], digits.y_test[validation]), augment=augment,
               groups={"g": group}, progress=False)


@pytest.mark.parametrize(("change", "message"), [
    ({"own": 3.0}, "model.own.power was 2.0, now 3.0"),
    ({"layers": ("flat", "b", "own", "a")}, "model.parts.1 was 'a', now 'b'; model.parts.3 was 'b', now 'a'"),
    ({"order": (2, 1, 0, 3)}, "parameters.all.0 was 'a.weight', now 'b.weight'; parameters.all.2 was 'b.weight', now 'a.weight'"),
    ({"group": ("a.weight", "b.bias")}, "parameters.g.1 was 'b.weight', now 'b.bias'"),
    ({"validation": slice(10, 20)}, "the examples of the validation data are others than those that it was evaluated on"),
    ({"validation": slice(11)}, r"validation_shape.*was \[10, 8, 8, 1\], now \[11, 8, 8, 1\]"),
    ({"augment": partial(data.crop_flip, padding=2)}, "augment.padding was 1, now 2")])
def test_another_network_validation_set_or_order_of_parameters_is_refused(tmp_path, change, message):
    given = {"augment": partial(data.crop_flip, padding=1)}
    whole = train(None, **given)
    train(tmp_path / "c.npz", steps=2, **given)
    with pytest.raises(ValueError, match=f"is of another run: .*{message}"):
        train(tmp_path / "c.npz", **given | change)
    resumed = train(tmp_path / "c.npz", **given | {"group": {"b.weight", "a.weight"}})  # a set has no order
    np.testing.assert_array_equal(whole["loss"], resumed["loss"])


def test_a_checkpoint_of_a_version_that_did_not_save_the_network_goes_on(tmp_path):
    train(tmp_path / "c.npz", steps=2)
    arrays, facts = checkpoint.load(tmp_path / "c.npz")
    for name in ("model", "parameters", "validation_shape", "validation_data"):
        del facts["run"][name]
    checkpoint.save(tmp_path / "c.npz", arrays, facts)
    assert len(train(tmp_path / "c.npz")) == 4
