"""Training where the model is: data come from the host or are there already, and a saved run goes on elsewhere."""

import numpy as np
import pytest
from backend_runs import Run, arrays, assert_close
from conftest import others

from minibn import backend, data, nn
from minibn.training import evaluate, predict, update_bn


@others
def test_training_moves_batches_from_the_host_to_the_model(library):
    results = []
    for where in (None, library):
        run = Run(where)
        history = run.fit(augment=data.crop_flip, validation=(run.x, run.y))
        update_bn(run.net, run.x, batch_size=20)
        logits = predict(run.net, run.x, batch_size=20)
        assert isinstance(logits, np.ndarray)
        loss, accuracy = evaluate(run.net, run.x, run.y, batch_size=20)
        assert type(loss) is type(accuracy) is float
        assert {type(value) for column in history.columns.values() for value in column} == {int, float}
        results.append({**history.columns, **arrays(run.net), "logits": logits, "end": [loss, accuracy]})
    assert all(map(library.is_home_of, run.net.arrays()))
    assert_close(*results, 1e-9)


@others
def test_data_that_are_with_the_model_stay_there(library):
    results = []
    for home in (lambda x: x, library.array):
        run = Run(library)
        x, y = home(run.x), home(run.y)
        history = run.fit(x, y, augment=data.crop_flip)
        update_bn(run.net, x)
        logits = predict(run.net, x)
        results.append({**history.columns, "logits": backend.to_numpy(logits), "end": evaluate(run.net, x, y)})
    assert library.is_home_of(logits)
    assert_close(*results, 1e-15)
    mixed = [evaluate(run.net, run.x, y), evaluate(run.net, x, run.y)]
    np.testing.assert_allclose(mixed, [results[0]["end"]] * 2, rtol=1e-12)


@others
def test_a_model_of_buffers_alone_says_where_it_is(library):
    x = np.random.default_rng(0).standard_normal((9, 2))
    norms = [nn.BatchNorm(2, affine=False, dtype="float64") for _ in range(2)]
    norms[1].to(library.xp, device=library.device)
    for norm in norms:
        update_bn(norm, x, batch_size=4)
    np.testing.assert_allclose(predict(norms[1], x), predict(norms[0], x), rtol=1e-12)


@others
@pytest.mark.parametrize("there", [True, False])
def test_a_run_saved_on_one_library_goes_on_on_another(library, there, tmp_path):
    whole = Run()
    expected = whole.fit()
    first, second = Run(library if there else None), Run(None if there else library)
    first.fit(path=tmp_path / "c.npz", max_steps=5)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as file:
        assert {array.dtype.name for array in file.values() if isinstance(array, np.ndarray)} <= {"float64", "int64", "uint8"}
    history = second.fit(path=tmp_path / "c.npz")
    assert_close({**history.columns, **second.net.state_dict()} if there else history.columns,
                 {**expected.columns, **whole.net.state_dict()} if there else expected.columns, 1e-9)


def test_optimisers_made_before_the_move_are_refused():
    pytest.importorskip("array_api_strict")
    run = Run()
    run.net.to("array_api_strict")
    with pytest.raises(ValueError, match="the optimiser of group 'invariant' was made before its parameters moved"):
        run.fit()
