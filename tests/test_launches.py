"""Budgets of a training step on a GPU, held on the strict stand-in for CuPy: launches, waits, traffic, memory.

A PreResNet-32 at batch 128 would take a minute here, so `benchmarks/launches.py` counts two small
batches and says how each count grows with the batch.
"""

import re
import sys
from pathlib import Path

import pytest

from minibn import backend
from minibn.kernels import device

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import launches  # noqa: E402

BUDGETS = {"a bare step": launches.Cost(1300, 12e9, 0, 500e6), "a step of `fit`": launches.Cost(1500, 12e9, 0, 500e6)}


def over(costs):
    """The kinds of cost, such as "launches of a bare step", that are above their budget."""
    return {f"{kind} of {name}" for name, budget in BUDGETS.items() for kind in budget._fields
            if getattr(costs[name], kind) > getattr(budget, kind)}


@pytest.fixture(scope="module")
def costs():
    return launches.scaled(**launches.FULL)


def test_a_step_keeps_its_budgets(costs):
    assert over(costs) == set()


def test_the_table_in_the_benchmarks_page_is_that_of_the_code(costs):
    """An additional launch shows here even where the budget has room. Renew it by `benchmarks/launches.py --write`."""
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name, cost in costs.items():
        row = re.search(rf"^\| \*\*{re.escape(name)}\*\* \| ([\d,]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
        assert row, f"benchmarks/README.md has no row for {name}"
        launched, traffic, waits, peak = (float(cell.replace(",", "")) for cell in row.groups())
        assert (launched, waits) == (cost.launches, cost.waits)
        assert cost.bytes / 1e9 == pytest.approx(traffic, abs=0.006)
        assert cost.peak / 1e6 == pytest.approx(peak, rel=0.02)


WASTE = {  # what each ReLU might do for nothing: (function, budgets that break)
    "joins": (lambda xp, y: xp.concat([y, y]), {"bytes"}),
    "three additions": (lambda xp, y: y + 0.0 + 0.0 + 0.0, {"launches", "bytes"}),
    "looks at a number": (lambda xp, y: float(y[0, 0, 0, 0]), {"waits"})}


@pytest.mark.parametrize("what", WASTE)
def test_waste_in_one_kind_of_layer_breaks_a_budget(what, monkeypatch):
    """The control of the tests above."""
    (waste, broken), relu = WASTE[what], device.relu

    def wasteful(x):
        y = relu(x)
        waste(backend.array_namespace(y), y)
        return y

    monkeypatch.setattr(device, "relu", wasteful)
    assert {f"{kind} of a bare step" for kind in broken} <= over(launches.scaled(**launches.FULL, small=(1, 2)))


def test_every_test_that_needs_cupy_runs_on_the_stand_in_too():
    """GPU tests are those of two fixtures; each has the stand-in beside CuPy. So no other file may mark a test itself."""
    import conftest

    others = [getattr(param, "values", [param])[0] for param in conftest.OTHERS]
    assert {"cupy", "cupy-double"} <= set(others)
    text = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")}
    assert [name for name, code in text.items() if "mark" + ".gpu" in code] == ["conftest.py"]
    with_cupy = re.findall(r"params=\[(.*\"cupy\".*)\]", text["conftest.py"])
    assert with_cupy
    assert all('"cupy-double"' in params for params in with_cupy)
