"""Schedules as CSV: every bit comes back, spreadsheets' ways of writing it are read, and what may be a mistake is refused."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibn import export
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
