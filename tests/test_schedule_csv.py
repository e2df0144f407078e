"""Schedules as CSV: every bit comes back, spreadsheets' ways of writing it are read, and what may be a mistake is refused."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import export
from minibn.__main__ import main
from minibn.optim import AdamStep, LionStep, MuonStep, Step

STEPS = st.builds(Step, st.floats(0, 1e300), st.floats(0, 1), st.floats(0, 1), st.floats(-1e300, 1e300),
                  st.integers(-300, 300).map(lambda e: 2.0**e), st.floats(-0.99, 1e3), st.floats(0, 0.99))


@given(st.lists(STEPS, max_size=5))
def test_csv_gives_every_bit_back(steps):
    file = io.StringIO()
    export.write_csv(steps, file)
    file.seek(0)
    assert [dataclasses.astuple(s) for s in export.read_csv(file)] == [dataclasses.astuple(s) for s in steps]


@pytest.mark.parametrize("kind", [AdamStep, LionStep, MuonStep])
def test_csv_of_every_optimiser_gives_every_bit_back(kind):
    rng = np.random.default_rng(0)
    steps = [kind(**dict(zip(kind.limits, rng.random(len(kind.limits)), strict=True))) for _ in range(5)]
    export.write_csv(steps, text := io.StringIO())
    assert text.getvalue().splitlines()[0] == ",".join(["step", *kind.limits])
    assert list(export.read_csv(text.getvalue().splitlines(), kind)) == steps


def test_csv_of_another_optimiser_is_refused():
    for columns, kind, fitting in (("lr,beta1,beta2,eps", Step, "AdamStep"), ("lr,momentum,kick", AdamStep, "Step"),
                                   ("step,lr,beta1,beta2", MuonStep, "AdamStep")):
        with pytest.raises(ValueError, match=f"another optimiser's steps, not of a {kind.__name__}: read it as {fitting};"):
            export.read_csv([columns + "\n", "1,2,3,4\n"], kind)
    for column, field in (("b1", "beta1"), ("beta", "beta1"), ("epsilon", "eps"), ("wd", "weight_decay")):
        with pytest.raises(ValueError, match=f"{column!r} must be called {field!r}"):
            export.read_csv([f"lr,{column}\n"], AdamStep)
    with pytest.raises(TypeError, match="write_csv needs steps of one optimiser; step 1 is Step"):
        export.write_csv([AdamStep(0.1), Step(0.1)], io.StringIO())


@pytest.mark.parametrize(("text", "message"), [
    ("", "must name its columns"),
    ("step,momentum\n0,0.9\n", "must name its columns"), ("lr,momentun\n", "'momentun' must be called 'momentum'"),
    ("lr,lr\n", "must name its columns"), ("lr,momentum\n0.1\n", "line 2 of the schedule, '0.1', has 1"),
    ("lr\n0.1\nfast\n", "line 3 of the schedule, 'fast'"), ("lr\nnan\n", "line 2 .*; got lr=nan"), ("lr\n-1\n", "lr=-1.0"),
])
def test_bad_csv(text, message):
    with pytest.raises(ValueError, match=message):
        list(export.read_csv(text.splitlines()))


@pytest.mark.parametrize("text", [
    "\ufefflr,momentum\r\n0.1,0.9\r\n", "lr,momentum\n0.1,0.9\n\n\n", "\nlr,momentum\n\n0.1,0.9", "lr,momentum,,\n0.1,0.9,,\n",
    ",lr,momentum\n0,0.1,0.9\n", "Unnamed: 0,lr,momentum\n0,0.1,0.9\n",
    "momentum, lr\n .9, 1e-1\n", '"lr","momentum"\n"0.1","0.9"\n',
    "step,lr,momentum\r0,0.1,0.9\r", "\ufefflr;momentum\r\n0,1;0,9\r\n", "lr;momentum\n.1;0.9\n", "lr\tmomentum\n0.1\t0.9\n",
    "\ufeff\nlr,momentum\n0.1,0.9\n"])
def test_csv_of_spreadsheets_and_pandas(text):
    assert list(export.read_csv(io.StringIO(text, newline=""))) == [Step(0.1, 0.9)]


@pytest.mark.parametrize("text", ["lr;momentum\n1.000,5;0\n", "lr\tmomentum\n0,1\t0\n", "lr\n0,1\n"])
def test_a_comma_that_may_mean_thousands_is_not_guessed(text):
    with pytest.raises(ValueError, match="line 2 of the schedule, .*(is not a number|has 2 numbers for 1)"):
        list(export.read_csv(text.splitlines()))


@pytest.mark.parametrize("given", ["schedule.csv", Path("schedule.csv")])
def test_a_path_is_not_the_lines_of_a_file(given):
    with pytest.raises(TypeError, match="the schedule must be an open text file or a list of lines, got .*; give open"):
        export.read_csv(given)
    with pytest.raises(TypeError, match="the schedule must have lines of text, got bytes; open the file in text mode"):
        export.read_csv(io.BytesIO(b"lr\n0.1\n"))


def test_another_column_is_passed_over_with_a_warning():
    with pytest.warns(UserWarning, match=r"the columns \['note'\] of the schedule are ignored"):
        steps = list(export.read_csv(["lr,note\n", '0.1,"start, slowly"\n']))
    assert steps == [Step(0.1)]


@pytest.mark.parametrize(("line", "message"), [
    ("1_000", "'1_000' is not a number"), ("\u0661", "is not a number"),
    ("1" * 200_000, "line 2 of the schedule is not CSV: field"),
    ('"0.1', "line 2 of the schedule is not CSV"), ("0.1,0.9", "has 2 numbers for 1 columns"), ("0x10", "is not a number")])
def test_lines_that_are_mistakes(line, message):
    with pytest.raises(ValueError, match=message) as error:
        list(export.read_csv(["lr\n", line + "\n"]))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("name", "field"), [("weight_decy", "weight_decay"), ("Momentum", "momentum"), ("wd", "weight_decay"),
                                             ("weight decay", "weight_decay"), ("re-scale", "rescale")])
def test_a_column_that_is_almost_a_field_is_refused_and_not_passed_over(name, field):
    with pytest.raises(ValueError, match=f"{name!r} must be called {field!r}"):
        export.read_csv([f"lr,{name}\n", "0.1,0.9\n"])


@pytest.mark.parametrize("text", ["step,lr\n0,0.1\n1,0.2\n", "lr,step\n0.1,1\n0.2,2\n", "step,lr\n0.0,0.1\n1.0,0.2\n",
                                  "step,lr,log10_lr\n0,0.1,5\n1,0.2,5\n"])
def test_a_column_that_counts_the_steps_from_0_or_1_is_no_more_than_that(text):
    assert list(export.read_csv(text.splitlines())) == [Step(0.1), Step(0.2)]


@pytest.mark.parametrize(("steps", "line", "message"), [
    ("0 100 200", 3, "its step is 100 and not 1"), ("2 0 1", 2, "its step is 2 and not 0"),
    ("0 1 3", 4, "its step is 3 and not 2"), ("1 2 2", 4, "its step is 2 and not 3"), ("0 1 1", 4, "its step is 1 and not 2"),
    ("1 0", 3, "its step is 0 and not 2"), ("-1 0", 2, "its step is -1 and not 0"), ("0 0.5", 3, "'0.5' is not a whole number"),
    ("0 x", 3, "'x' is not a number")])
def test_a_table_that_does_not_have_each_step_in_order_is_refused(steps, line, message):
    with pytest.raises(ValueError, match=rf"line {line} of the schedule, .*: {message}"):
        list(export.read_csv(["step,lr", *(f"{step},0.1" for step in steps.split())]))


def test_a_gap_is_refused_on_the_command_line_too(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("step,lr\n0,0.1\n100,0.01\n")
    with pytest.raises(SystemExit):
        main(["convert", "--read", str(tmp_path / "s.csv")])
    assert "its step is 100 and not 1; give a line for each step, in order, or leave the column out" in capsys.readouterr().err


def test_a_file_that_was_closed_before_it_was_read_is_named_as_that(tmp_path):
    (tmp_path / "s.csv").write_text("lr\n0.1\n")
    with (tmp_path / "s.csv").open() as file:
        steps = export.read_csv(file)
    with pytest.raises(ValueError, match="the schedule is read as it is used, and its file was closed before that; use it while"):
        list(steps)
    with pytest.raises(ValueError, match="the schedule is read as it is used, and its file was closed"):
        export.read_csv(file)
    with (tmp_path / "s.csv").open() as file:
        assert list(export.read_csv(file)) == [Step(0.1)]
    (tmp_path / "s.csv").write_bytes(b"lr\n\xff\n")
    with (tmp_path / "s.csv").open(encoding="utf-8") as file, pytest.raises(UnicodeDecodeError):
        export.read_csv(file)  # another error stays what it is


def test_a_schedule_is_written_to_an_open_text_file(tmp_path):
    for bad in ("s.csv", tmp_path / "s.csv", io.BytesIO(), io.FileIO(tmp_path / "s.csv", "w")):
        with pytest.raises(TypeError, match=r"write_csv: file must be an open text file, such as open\('schedule.csv', 'w'\), "):
            export.write_csv([Step(0.1)], bad)
