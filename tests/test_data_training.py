"""Data, training loop, history and checkpoints: exact resumption, and nothing saved is ever lost."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import backend, checkpoint, data, models, nn, schedules
from minibn.equivalence import remove_weight_decay
from minibn.history import History
from minibn.optim import SGD
from minibn.training import DivergenceError, evaluate, fit, predict, update_bn

# ---- data ----


def test_digits():
    split = data.digits("float64")
    assert split.x_train.shape == (1437, 8, 8, 1)
    assert split.x_test.shape == (360, 8, 8, 1)
    assert split.x_train.mean() == pytest.approx(0, abs=1e-12)
    assert split.x_train.std() == pytest.approx(1)
    counts = np.bincount(np.concatenate([split.y_train, split.y_test]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    again = data.digits("float32")
    np.testing.assert_array_equal(again.y_test, split.y_test)
    assert again.x_train.dtype == np.float32


def test_digits_are_those_of_scikit_learn():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    split, bunch = data.digits("float64"), load_digits()
    ours = np.concatenate([split.x_train, split.x_test]).reshape(1797, 64)
    theirs = bunch.data
    scale, shift = np.ptp(theirs) / np.ptp(ours), theirs.min() - ours.min() * np.ptp(theirs) / np.ptp(ours)
    ours = np.rint(ours * scale + shift)
    labelled = np.column_stack([ours, np.concatenate([split.y_train, split.y_test])])
    expected = np.column_stack([theirs, bunch.target])
    np.testing.assert_array_equal(labelled[np.lexsort(labelled.T)], expected[np.lexsort(expected.T)])


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 2**32 - 1))
def test_batches_hold_every_example_once(n, batch_size, drop_last, seed):
    x, y = np.arange(n * 2.0).reshape(n, 2), np.arange(n)
    if batch_size > n:
        with pytest.raises(ValueError, match=f"between 1 and the number of examples, {n}; got {batch_size}"):
            data.batches(x, y, batch_size, rng=np.random.default_rng(seed))
        return
    parts = list(data.batches(x, y, batch_size, rng=np.random.default_rng(seed), drop_last=drop_last))
    seen = np.concatenate([part for _, part in parts])
    assert len(set(seen.tolist())) == len(seen) == (n // batch_size * batch_size if drop_last else n)
    for bx, by in parts:
        np.testing.assert_array_equal(bx, x[by])
        assert len(by) == batch_size or (not drop_last and bx is parts[-1][0])


def test_synthetic_images_can_be_learnt():
    x, y = data.synthetic(200, num_classes=3, rng=np.random.default_rng(0))
    assert x.shape == (200, 8, 8, 1)
    assert x.dtype == np.float32
    centres = np.stack([x[y == k].mean(axis=0) for k in range(3)])
    nearest = ((x[:, None] - centres) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    assert (nearest == y).mean() > 0.95


def test_empty_and_unequal_data():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"x must hold examples along its first axis.*got the shape \(0, 2\)"):
        data.batches(np.empty((0, 2)), np.empty(0), 1, rng=rng)
    with pytest.raises(ValueError, match="same number of examples, got 3 and 2"):
        data.batches(np.ones((3, 2)), np.ones(2), 1, rng=rng)
    with pytest.raises(ValueError, match="count, size, channels and num_classes must be at least 1, got 0, 8, 1, 10"):
        data.synthetic(0, rng=rng)


# ---- training ----


class Run:
    """A small training run with two groups, one of them with a converted, endlessly growing schedule."""

    def __init__(self, dtype="float32", lr=0.1):
        self.x, self.y = data.synthetic(50, size=4, rng=np.random.default_rng(5), dtype=dtype)
        self.net = models.vgg((4, "M", 4), in_channels=1, rng=np.random.default_rng(0), dtype=dtype)
        weights = [p for p in self.net.parameters() if p.data.ndim == 4]
        rest = [p for p in self.net.parameters() if p.data.ndim != 4]
        self.rng = np.random.default_rng(1)

        def schedule():
            return schedules.warmup(7, schedules.cosine(lr, 30, momentum=0.9, weight_decay=5e-3))

        self.optimizers = {"conv": SGD(weights, remove_weight_decay(schedule(), band=1.1)), "rest": SGD(rest, schedule())}

    def fit(self, **options):
        options = {"epochs": 4, "batch_size": 16, "drop_last": False, "progress": False} | options  # 16 steps
        return fit(self.net, self.optimizers, self.x, self.y, rng=self.rng, **options)

    def everything(self, history):
        return {**self.net.state_dict(), **{f"{k}/{i}": v for k, s in self.optimizers.items() for i, v in enumerate(s.velocity)},
                **{name: history[name] for name in history.columns}, "generator": str(self.rng.bit_generator.state)}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@settings(max_examples=15)
@given(st.integers(1, 15), st.integers(1, 6), st.integers(1, 15), st.booleans())
def test_stopped_and_resumed_is_bit_for_bit_the_unbroken_run(tmp_path_factory, stop, every, second_stop, drop_last):
    whole = Run()
    expected = whole.everything(whole.fit(drop_last=drop_last))
    path = tmp_path_factory.mktemp("run") / "run.npz"
    for last in (stop, second_stop, None):
        run = Run()
        if path.exists():
            run.rng.random(3)  # whatever state it is in, the checkpoint's counts
        history = run.fit(path=path, every=every, max_steps=last, drop_last=drop_last)
    assert_same_bits(run.everything(history), expected)


class Killed(BaseException):
    """What SIGKILL would do, at any line."""


@settings(max_examples=15)
@given(st.integers(0, 11), st.integers(1, 5))
def test_killed_at_a_random_step_and_resumed(tmp_path_factory, at, every):
    expected = (whole := Run()).everything(whole.fit(epochs=3))
    path = tmp_path_factory.mktemp("run") / "run.npz"
    run = Run()
    backward, calls = run.net.backward, []

    def dying(dy):
        calls.append(None)
        if len(calls) > at:
            raise Killed
        return backward(dy)

    run.net.backward = dying
    with pytest.raises(Killed):
        run.fit(path=path, every=every, epochs=3)
    assert path.exists() == (at >= every)
    run = Run()
    assert_same_bits(run.everything(run.fit(path=path, every=every, epochs=3)), expected)


def test_threads_do_not_change_a_bit():
    results = []
    for threads in (1, 2):
        run = Run()
        results.append(run.everything(run.fit(threads=threads)))
    assert_same_bits(*results)


def test_a_block_of_threads_is_of_its_own_thread():
    """As on a Dask worker with several threads: where one run ends, it does not take the pool of another with it."""
    x = np.zeros((8, 2**18), dtype=np.float32)  # 8 chunks
    both = threading.Barrier(2, timeout=60)

    def where(_):
        return threading.get_ident()

    def meet(_):
        both.wait()  # until a second thread is at work too
        return threading.get_ident()

    with backend.threads(2), ThreadPoolExecutor(1) as other:
        assert len(set(backend.map_chunks(meet, x, x.shape[1]))) == 2
        own = other.submit(threading.get_ident).result()
        assert set(other.submit(backend.map_chunks, where, x, x.shape[1]).result()) == {own}
        run = Run()
        other.submit(run.fit, epochs=1, threads=1).result()
        assert len(set(backend.map_chunks(meet, x, x.shape[1]))) == 2
    assert set(backend.map_chunks(where, x, x.shape[1])) == {threading.get_ident()}


def test_an_error_in_a_chunk_is_raised_and_stops_the_rest():
    x = np.zeros((64, 2**18), dtype=np.float32)  # 64 chunks

    def fail(s):
        done.append(s.start)
        if s.start == 3:
            raise ValueError("chunk 3")

    for threads in (1, 2):
        done = []
        with backend.threads(threads), pytest.raises(ValueError, match="chunk 3"):
            backend.map_chunks(fail, x, x.shape[1])
        assert len(done) < 64


def test_training_learns_and_history_holds_what_happened(capsys):
    run = Run("float64")
    history = run.fit(epochs=10, progress=True, description="the bar")
    assert len(history) == 40
    assert history["loss"][-4:].mean() < 0.8 * history["loss"][:4].mean()
    assert list(history.columns) == ["step", "loss", "accuracy", "lr/conv", "norm/conv", "effective_lr/conv",
                                     "angle/conv", "predicted_angle/conv", "lr/rest", "norm/rest", "effective_lr/rest",
                                     "angle/rest", "predicted_angle/rest"]
    assert history["norm/rest"][-1] == pytest.approx(np.sqrt(sum(np.sum(p.data**2) for p in run.optimizers["rest"].parameters)))
    np.testing.assert_allclose(history["effective_lr/rest"][1:], history["lr/rest"][1:] / history["norm/rest"][:-1] ** 2)
    bar = capsys.readouterr().err
    for what in ("the bar", "loss=", "acc=", "lr/conv=", "40/40"):
        assert what in bar


def test_effective_lr_counts_a_rescale():
    """Rescaling changes lr and norm in one step, and so not the effective lr."""
    histories = []
    for band in (None, 1.1):
        run = Run("float64")
        schedule = schedules.constant(0.1, momentum=0.9, weight_decay=5e-3)
        run.optimizers["conv"].schedule = remove_weight_decay(schedule, band=band)
        histories.append(run.fit(epochs=8))
    one, other = histories
    assert one["lr/conv"][-1] != other["lr/conv"][-1]
    np.testing.assert_allclose(one["effective_lr/conv"], other["effective_lr/conv"], rtol=1e-4)  # eps = 1e-5


def test_divergence_names_step_group_lr_and_checkpoint(tmp_path):
    path = tmp_path / "run.npz"
    run = Run()
    run.fit(path=path, max_steps=3)
    saved = path.read_bytes()
    run = Run()
    good = run.optimizers["rest"].schedule
    run.optimizers["rest"].schedule = chain(islice(good, 3), schedules.constant(1e38))
    message = r"step [345]: .* group 'rest' with lr 1e\+38; the last good checkpoint is .*run.npz"
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
        run.fit(path=path, every=1000)
    assert path.read_bytes() == saved


def test_divergence_without_a_checkpoint():
    run = Run()
    run.x[:] = 1e38  # finite, but the first convolution is not
    message = "step 0: the loss is nan after an update of nothing yet; there is no checkpoint"
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
        run.fit()


def test_training_arguments():
    for options, message in (({"epochs": 0}, "epochs and every must be at least 1, got 0 and 100"),
                             ({"batch_size": 51}, "number of examples, 50; got 51"),
                             ({"threads": 0}, "count must be at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            Run().fit(**options)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    Run().fit(path=path, max_steps=1)
    other = Run()
    other.optimizers = {"all": SGD(other.net.parameters(), schedules.constant(0.1))}
    with pytest.raises(ValueError, match=r"has the groups \['conv', 'rest'\], not \['all'\]"):
        other.fit(path=path)
    other = Run()
    other.net = models.vgg((4,), in_channels=1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="state does not fit Sequential: missing"):
        other.fit(path=path)


# ---- evaluation ----


def test_predict_and_evaluate_use_running_statistics_and_keep_the_mode():
    run = Run("float64")
    run.fit(epochs=1)
    before = run.net.state_dict()
    loss, accuracy = evaluate(run.net, run.x, run.y, batch_size=7)
    logits = predict(run.net, run.x)
    assert run.net.training
    assert_same_bits(before, run.net.state_dict())
    assert accuracy == (logits.argmax(axis=1) == run.y).mean()
    assert loss == pytest.approx(nn.CrossEntropy()(run.net.eval()(run.x), run.y), rel=1e-12)
    with pytest.raises(ValueError, match="at least one example"):
        predict(run.net, run.x[:0])


def test_update_bn_takes_plain_averages():
    norm = nn.BatchNorm(1, dtype="float64")
    x = np.random.default_rng(0).standard_normal((20, 2, 2, 1))
    update_bn(norm, x, batch_size=5)
    means = [x[i : i + 5].mean() for i in range(0, 20, 5)]
    variances = [x[i : i + 5].var(ddof=1) for i in range(0, 20, 5)]
    assert norm.running_mean[0] == pytest.approx(np.mean(means), rel=1e-12)
    assert norm.running_var[0] == pytest.approx(np.mean(variances), rel=1e-12)
    assert norm.momentum == 0.1


def test_update_bn_of_less_than_a_batch():
    norm = nn.BatchNorm(1, dtype="float64")
    x = np.random.default_rng(0).standard_normal((20, 1))
    update_bn(norm, x)
    assert norm.running_mean[0] == pytest.approx(x.mean())


# ---- checkpoints and history ----


def test_a_checkpoint_comes_back(tmp_path):
    arrays, facts = {"a/b.c": np.arange(3.0), "d": np.float32([[1]])}, {"generator": {"state": 2**127}, "list": [1, "two"]}
    checkpoint.save(tmp_path / "c.npz", arrays, facts)
    loaded, same = checkpoint.load(tmp_path / "c.npz")
    assert_same_bits(loaded, arrays)
    assert same == facts
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@settings(max_examples=300)
@given(st.data())
def test_truncated_or_tampered_checkpoints_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("c") / "c.npz"
    values = np.arange(100.0)
    checkpoint.save(path, {"a": values}, {"steps": 1})
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        arrays, facts = checkpoint.load(path)
    except ValueError as error:
        assert "is not a whole minibn checkpoint" in str(error)  # noqa: PT017 - the other way out is fine too
    else:
        assert_same_bits(arrays, {"a": values})  # the flipped bit was a time stamp, or the like
        assert facts == {"steps": 1}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole minibn checkpoint"):
        checkpoint.load(path)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    checkpoint.save(path, {"a": np.ones(3)}, {})
    old = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="checkpoint not written .No space left on device.; what was saved before is untouched"):
        checkpoint.save(path, {"a": np.zeros(3)}, {})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_history_goes_to_csv_and_back_with_all_bits(tmp_path):
    history = History()
    for step, loss in enumerate([0.1, 1 / 3, 1e-300, float("inf")]):
        history.append({"step": step, "loss": loss})
    history.write_csv(tmp_path / "h.csv")
    again = History.read_csv(tmp_path / "h.csv")
    assert again.columns == history.columns
    text = (tmp_path / "h.csv").read_text()
    (tmp_path / "h.csv").write_text(text[: text.rindex(",")])
    with pytest.raises(ValueError, match="is not a whole History"):
        History.read_csv(tmp_path / "h.csv")
    with pytest.raises(ValueError, match=r"must have the columns \['step', 'loss'\], got \['step'\]"):
        history.append({"step": 4})


def test_pandas_reads_a_history_as_it_is(tmp_path):
    """Whole steps, all else floats; NaN at the steps without validation."""
    run = Run()
    history = run.fit(validation=(run.x, run.y), epochs=2, max_steps=7)  # epochs of 4 steps: the second does not end
    history.write_csv(tmp_path / "history.csv")
    table = pandas.read_csv(tmp_path / "history.csv")
    assert list(table.columns) == list(history.columns)
    assert table.dtypes.astype(str).to_dict() == dict.fromkeys(history.columns, "float64") | {"step": "int64"}
    assert table["test_loss"].notna().tolist() == [False, False, False, True, False, False, False]
    for name in history.columns:
        np.testing.assert_allclose(table[name], history[name], rtol=1e-15, err_msg=name)


class Squares(nn.Module):
    """Mean square of the difference between logits (N, K) and onehot(y)."""

    def __call__(self, logits, labels):
        self._keep(logits - np.eye(logits.shape[1], dtype=logits.dtype)[labels])
        return np.mean(self._kept[0] ** 2)

    def backward(self):
        (difference,) = self._take(None)
        return 2 * difference / difference.size


def test_validation_is_by_the_loss_that_is_trained():
    rng = np.random.default_rng(0)
    net, x, y = nn.Linear(4, 3, rng=rng), rng.standard_normal((32, 4)).astype("float32"), rng.integers(3, size=32)
    history = fit(net, {"all": SGD(net.parameters(), schedules.constant(0.1))}, x, y, epochs=1, batch_size=8, rng=rng,
                           loss=Squares(), validation=(x, y), progress=False)
    assert history["test_loss"][-1] == pytest.approx(Squares()(net(x), y))


def test_accuracy_of_scores_is_that_of_their_signs():
    net = nn.Sequential(nn.Linear(1, 1, bias=False, rng=np.random.default_rng(0)), Column())
    net[0].weight.data[...] = 1
    x, y = np.array([[1.0], [2], [-1], [-3]], dtype="float32"), np.array([1, -1, -1, -1])
    assert evaluate(net, x, y, loss=nn.Logistic())[1] == 0.75


class Column(nn.Module):
    """(N, 1) -> (N,)."""

    def forward(self, x):
        return x[:, 0]


def test_evaluation_leaves_each_module_in_its_own_mode():
    rng = np.random.default_rng(0)
    net, x = nn.Sequential(nn.BatchNorm(4), nn.BatchNorm(4)), rng.standard_normal((8, 4)).astype("float32")
    net[0].eval()  # frozen
    predict(net, x)
    update_bn(net, x)
    assert [module.training for module in (net, net[0], net[1])] == [True, False, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not():
    code = """
import os, signal, warnings
import numpy as np
from minibn import backend
warnings.simplefilter("ignore")
x = np.zeros((8, 2**18), dtype=np.float32)
with backend.threads(2):
    backend.map_chunks(lambda s: None, x, x.shape[1])
    child = os.fork()
    if not child:
        signal.alarm(30)
        backend.map_chunks(lambda s: None, x, x.shape[1])
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
