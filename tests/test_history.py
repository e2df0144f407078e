"""History: to CSV and back."""

import numpy as np
import pandas
import pytest
from runs import Run

from minibn.training import History


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


def test_numbers_of_numpy_survive_the_csv(tmp_path):
    history = History({"step": np.arange(2), "loss": np.float32([0.1, 1 / 3])})
    history.append({"step": np.int64(2), "loss": np.float32(0.7)})
    history.write_csv(tmp_path / "h.csv")
    again = History.read_csv(tmp_path / "h.csv")
    assert again.columns == history.columns == {"step": [0, 1, 2], "loss": [float(np.float32(x)) for x in (0.1, 1 / 3, 0.7)]}


@pytest.mark.parametrize("columns", [{}, {"step": []}])
def test_a_history_without_rows_comes_back_without_rows(tmp_path, columns):
    History(columns).write_csv(tmp_path / "h.csv")
    assert History.read_csv(tmp_path / "h.csv").columns == {"step": []}


@pytest.mark.parametrize("text", ["\ufeffstep,loss\n0,0.5\n1,nan\n", "step,loss\r\n0,0.5\r\n\r\n1,nan\r\n\r\n",
                                  "step,loss,\n0,0.5,\n1,nan,\n",
                                  ",step,loss\n0,0,0.5\n1,1,\n", "step, loss\n0.0, 5e-1\n1.0,NaN\n"],
                         ids=["mark", "windows", "commas", "pandas", "spaces"])
def test_a_history_that_other_programs_saved(tmp_path, text):
    (tmp_path / "h.csv").write_text(text, encoding="utf-8", newline="")
    history = History.read_csv(tmp_path / "h.csv")
    assert repr(history.columns) == "{'step': [0, 1], 'loss': [0.5, nan]}"


@pytest.mark.parametrize("name", ["", " a", "a ", "index", "Unnamed: 0", "\ufeffa"])
def test_a_name_that_would_not_come_back_is_refused_before_the_file_is_touched(tmp_path, name):
    (tmp_path / "h.csv").write_bytes(b"old")
    with pytest.raises(ValueError, match="would not come back from CSV"):
        History({name: [1.0], "b": [2.0]}).write_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a;b", "lr/\u03b3", "a b"])
def test_any_other_name_comes_back(tmp_path, name):
    for columns in ({name: [1.0], "b": [1.0]}, {"step": [0], name: [1.0]}):
        History(columns).write_csv(tmp_path / "h.csv")
        assert History.read_csv(tmp_path / "h.csv").columns == columns


def test_steps_come_back_exactly_or_not_at_all(tmp_path):
    History({"step": [2**60 + 1]}).write_csv(tmp_path / "h.csv")
    assert History.read_csv(tmp_path / "h.csv").columns == {"step": [2**60 + 1]}
    (tmp_path / "h.csv").write_text("step\n0.5\n")
    with pytest.raises(ValueError, match="line 2, column 'step': '0.5' is not a whole number"):
        History.read_csv(tmp_path / "h.csv")


@pytest.mark.parametrize("content", [b"", b"\n", b"step,loss\n0\n", b"step,loss\n0,fast\n", b"step,step\n0,1\n", b"step\ninf\n",
                                     b"loss\n" + b"1" * 200_000 + b"\n", b'loss\n"1\n', b"\xff\xfes\x00", b"loss\n1_0\n"])
def test_what_is_no_history_is_a_one_line_error(tmp_path, content):
    (tmp_path / "h.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"h.csv is not a whole History: ") as error:
        History.read_csv(tmp_path / "h.csv")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_columns_of_other_lengths_and_other_things_than_numbers_are_refused():
    with pytest.raises(ValueError, match="must have one length, got {'a': 1, 'b': 2}"):
        History({"a": [1], "b": [1, 2]})
    with pytest.raises(TypeError, match="the column 'a' of a History holds numbers, got 'x'"):
        History().append({"a": "x"})
