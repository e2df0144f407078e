"""Layers and networks of sizes that cannot be are refused when they are made, by the name of the argument."""

import numpy as np
import pytest

from minibn import models, nn

RNG = np.random.default_rng(0)
CONV = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "stride": 1, "padding": 1, "rng": RNG}
NETWORK = {"num_classes": 4, "rng": RNG}
IMAGES = {**NETWORK, "in_channels": 4, "depth": 8, "width": 4}
MADE = {
    nn.Conv2d: CONV, nn.Linear: {"in_features": 4, "out_features": 4, "rng": RNG}, nn.MaxPool2d: {"kernel_size": 4},
    nn.AvgPool2d: {"kernel_size": 4}, nn.BatchNorm: {"num_features": 4}, nn.GroupNorm: {"num_groups": 4, "num_features": 4},
    nn.LayerNorm: {"num_features": 4}, nn.InstanceNorm: {"num_features": 4}, nn.RMSNorm: {"num_features": 4},
    nn.Embedding: {"num_embeddings": 4, "embedding_dim": 4, "rng": RNG},
    nn.Positions: {"max_length": 4, "num_features": 4, "rng": RNG},
    nn.GatedMLP: {"num_features": 4, "hidden": 4, "rng": RNG},
    nn.CausalSelfAttention: {"num_features": 4, "num_heads": 4, "num_kv_heads": 4, "rng": RNG},
    models.mlp: {"in_features": 4, **NETWORK}, models.vgg: {"layers": (4, "M"), "in_channels": 4, **NETWORK},
    models.resnet: IMAGES, models.preresnet: IMAGES,
    models.gpt: {"vocabulary": 4, "length": 4, "width": 16, "depth": 4, "heads": 4, "kv_heads": 4, "rng": RNG}}
SIZES = [(make, name) for make, given in MADE.items() for name in given if name not in ("rng", "layers")]
NO_SIZES = [2.0, 2.5, -3, "2", b"2", True, float("nan"), float("inf"), np.float64(4), np.array([2, 2, 2]), {}, 1j]


@pytest.mark.parametrize(("make", "name"), SIZES, ids=lambda x: getattr(x, "__name__", x))
def test_what_is_no_size_is_refused_by_its_name(make, name):
    for bad in [*NO_SIZES, *([0] if name != "padding" else [])]:
        with pytest.raises(ValueError, match=rf"^{make.__name__}: {name} must be a whole number") as error:
            make(**{**MADE[make], name: bad})
        assert any(word in str(error.value) for word in (repr(bad), "two, (height, width)"))


@pytest.mark.parametrize(("make", "name"), SIZES, ids=lambda x: getattr(x, "__name__", x))
def test_whole_numbers_of_numpy_are_sizes(make, name):
    given = MADE[make]
    for kind in (np.int64, np.uint8, np.array):
        assert repr(make(**{**given, name: kind(given[name])})) == repr(make(**given))


@pytest.mark.parametrize("make", [make for make in MADE if make not in (nn.MaxPool2d, nn.AvgPool2d)], ids=lambda x: x.__name__)
def test_an_array_larger_than_any_memory_is_refused_at_once(make):
    name = {models.vgg: "in_channels", nn.GroupNorm: "num_features"}.get(make, next(iter(MADE[make])))
    with pytest.raises(ValueError, match=r"=1\d{36}.* would need more than any memory; give smaller|must divide num_features"):
        make(**{**MADE[make], name: 16**30})


@pytest.mark.parametrize("bad", [0.5, 5, "4", None, {"4": 1}])
def test_widths_are_a_list(bad):
    with pytest.raises(TypeError, match="mlp: hidden must be a list of widths, got"):
        models.mlp(bad, rng=RNG)
    with pytest.raises(TypeError, match="vgg: layers must be a list of numbers of channels"):
        models.vgg(bad, rng=RNG)
    with pytest.raises(ValueError, match="mlp: a width in hidden must be a whole number of at least 1, got"):
        models.mlp([bad if bad != 5 else 0], rng=RNG)
    with pytest.raises(ValueError, match="vgg: an entry of layers other than \"M\" must be a whole number of at least 1, got"):
        models.vgg([bad if bad != 5 else 0], rng=RNG)


@pytest.mark.parametrize("make", [models.mlp, models.vgg, models.resnet, models.preresnet, models.gpt])
@pytest.mark.parametrize("bad", ["batch", None, nn.RMSNorm(4)])
def test_a_network_takes_the_class_of_its_norms(make, bad):
    with pytest.raises(TypeError, match=f"^{make.__name__}: norm must be a normalisation class, such as nn.BatchNorm, got"):
        make(**{**MADE[make], "norm": bad})


@pytest.mark.parametrize("make", MADE, ids=lambda x: x.__name__)
def test_seeds_dtypes_and_words_in_place_of_yes_or_no_are_refused(make):
    given = MADE[make]
    if "rng" in given:
        for bad in (0, None, np.random):
            with pytest.raises(TypeError, match="rng must be a numpy.random.Generator, such as"):
                make(**{**given, "rng": bad})
    if make not in (nn.MaxPool2d, nn.AvgPool2d):
        for bad in ("int64", "float16", np.float32, None):
            with pytest.raises(ValueError, match='dtype must be "float32" or "float64", got'):
                make(**{**given, "dtype": bad})
    for flag in {"bias", "affine"} & set(make.__init__.__code__.co_varnames if isinstance(make, type) else ()):
        with pytest.raises(ValueError, match=f"{flag} must be True or False, got 'no'"):
            make(**{**given, flag: "no"})


def test_modules_are_made_of_modules():
    for bad in (3, nn.ReLU, None, np.ones(2)):
        with pytest.raises(TypeError, match="Residual takes modules, got .* as 'branch'"):
            nn.Residual(bad)
        with pytest.raises(TypeError, match="Unembedding: embedding must be the Embedding whose table it shares, got"):
            nn.Unembedding(bad)
    with pytest.raises(TypeError, match="Residual takes modules, got 3 as 'shortcut'"):
        nn.Residual(nn.ReLU(), 3)
    for bad in (3, None, [1.0], np.ma.masked_array([1.0])):
        with pytest.raises(TypeError, match="data (must be an array|is a masked array)"):
            nn.Parameter(bad)


@pytest.mark.parametrize("bad", ["no", "False", [], 2])
def test_each_position_is_none_true_or_false(bad):
    """The string "no" would count as True, which is another normalisation."""
    with pytest.raises(ValueError, match="each_position must be True or False, got"):
        nn.LayerNorm(4, each_position=bad)
    assert [nn.LayerNorm(4, each_position=good).per for good in (None, False, True)] == ["image", "image", "position"]
