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
