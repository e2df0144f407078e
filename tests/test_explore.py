"""The explorer: its runs are the library's, its page states their numbers, and a browser shows them after a slider moves."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibn import explore, schedules
from minibn.__main__ import main
from minibn.equivalence import remove_weight_decay
from minibn.explore import chart, page, runs, toys
from minibn.explore.browser import chromium
from minibn.explore.runs import KINDS, Settings
from minibn.nn import Parameter

APP = Path(explore.__file__).with_name("app.py")
legal = st.builds(Settings, st.sampled_from(list(KINDS)), st.sampled_from([0.01, 0.1, 0.3]), st.sampled_from([0.0, 0.5, 0.9]),
                  st.sampled_from([0.0, 0.001, 0.01, 0.02]), st.sampled_from([0, 5]), st.sampled_from(schedules.NAMES),
                  st.sampled_from([0.01, 0.1, 1.0]), st.just(40)).filter(runs.accepted)


# What it computes.

@given(legal)
@settings(max_examples=25)
def test_the_two_runs_turn_alike_on_both_losses(s):
    for pair in (runs.on_noise(s), runs.on_landscape(s)):
        assert not pair.converted.refused
        assert pair.gap < 1e-9
        usual, converted = pair
        scale = usual.norm / converted.norm
        one_decay = (scale[1:] / scale[:-1])[usual.measured]  # |w| is from before the step, and the converted lr from within it
        np.testing.assert_allclose(converted.effective_lr * one_decay, usual.effective_lr, rtol=1e-9)


@pytest.mark.parametrize("optimizer", KINDS)
def test_without_the_conversion_they_do_not(optimizer):
    """The control: leave weight decay out and keep lr as it is."""
    s = Settings.of(optimizer)
    with_decay, without = runs.on_noise(s).usual, runs.on_noise(replace(s, weight_decay=0.0)).usual
    assert runs.Pair(with_decay, without).gap > 0.05


def test_the_converted_lr_is_that_of_the_library():
    s = Settings(schedule="step", warmup=10, end=0.25)
    stream = schedules.warmup(10, schedules.step_decay(0.1, [100, 150], 0.5, momentum=0.9, weight_decay=0.01))
    expected = [step.lr for step in islice(remove_weight_decay(stream, band=None), 200)]
    assert list(runs.on_noise(s).converted.lr) == expected


@pytest.mark.parametrize("optimizer", KINDS)
def test_equilibrium_is_where_the_formulas_say(optimizer):
    """Within 15 %: one run of 200 steps, weight decay of a few per cent per step. tests/test_monitor.py has the sharp test."""
    found = page.shown(Settings.of(optimizer)).numbers
    assert found["norm-measured"] == pytest.approx(found["norm-predicted"], rel=0.15)
    assert found["angle-measured"] == pytest.approx(found["angle-predicted"], rel=0.15)


@pytest.mark.parametrize("optimizer", KINDS)
def test_the_largest_weight_decay_is_where_the_library_begins_to_refuse(optimizer):
    s = replace(Settings.of(optimizer), schedule="cosine", warmup=3, steps=60)
    largest = runs.largest_weight_decay(s)
    assert runs.accepted(replace(s, weight_decay=0.999 * largest))
    assert not runs.accepted(replace(s, weight_decay=1.001 * largest))
    if optimizer != "SGD":
        assert largest * max(step.lr for step in runs.usual(s)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("optimizer", "weight_decay"), [("SGD", 0.1), ("AdamW", 30.0)])
def test_beyond_it_the_usual_run_goes_on_alone(optimizer, weight_decay):
    s = replace(Settings.of(optimizer), weight_decay=weight_decay)
    found = page.shown(s)
    ended = len(found.noise.converted.lr)
    assert "through zero" in found.noise.converted.refused
    assert len(found.noise.usual.lr) == 200 > ended
    assert f'At step <b data-name="refused-step">{ended}</b> weight decay would carry' in page.verdict(found)
    assert "The usual run goes on alone." in page.verdict(found)


def test_a_run_ends_before_its_numbers_leave_float_range():
    far = page.shown(replace(Settings.of("Lion"), lr=1.0, weight_decay=100.0))
    assert 1e90 < np.abs(far.noise.usual.weights).max() < 1e100
    assert "until its weights leave the range of floating-point numbers" in page.verdict(far)
    near = page.shown(replace(Settings.of("AdamW"), lr=0.3, momentum=0.5, weight_decay=3.0))
    assert "the converted run leaves the range of floating-point numbers" in page.verdict(near)


@pytest.mark.parametrize("loss", ["landscape", "noise"])
def test_the_gradients_of_the_toys_are_those_of_their_losses(loss):
    xi = toys.draws(3, 2)[1]
    losses = {"landscape": (lambda w: toys.landscape(np.arctan2(w[1], w[0])), toys.landscape_gradient),
              "noise": (lambda w: xi @ w / np.linalg.norm(w), lambda w: toys.noise_gradient(w, xi))}
    value, gradient = losses[loss]
    w, h = np.array([-0.35, 1.1]), 1e-6
    numeric = [(value(w + h * e) - value(w - h * e)) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(gradient(w), numeric, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(gradient(4 * w) * 4, gradient(w), rtol=1e-14)
    assert abs(gradient(w) @ w) < 1e-15


# What the page says.

@given(legal)
@settings(max_examples=15)
def test_the_code_on_the_page_makes_the_schedules_of_the_page(s):
    names = {"weights": [Parameter(np.ones((2, 2)))]}
    exec(page.code(s), names)
    given, made = runs.on_noise(s), names["converted"]
    if s.optimizer == "SGD":
        converted = [step.lr for step in islice(made, s.steps)]
    else:
        names["weights"][0].grad = np.ones((2, 2))
        converted = [made.step().lr for _ in range(s.steps)]
    assert converted == list(given.converted.lr)


def test_every_number_of_the_sentences_is_one_of_the_run():
    found = page.shown(Settings(schedule="cosine", end=0.01))
    text = page.verdict(found) + page.panels(found) + page.limit(found)
    stated = dict(re.findall(r'<b data-name="([\w-]+)">([^<]*)</b>', text))
    assert stated == {name: chart.number(found.numbers[name]) for name in stated}
    assert {"gap", "lr-converted", "norm-predicted", "angle-measured", "largest-weight-decay"} <= stated.keys()
    with pytest.raises(KeyError, match="no number called 'nothing'"):
        page._filled("{nothing}", found)


def test_where_there_is_no_formula_the_page_says_so():
    text = page.panels(page.shown(replace(Settings.of("Muon"), momentum=0.5)))
    assert "no formula for their balance" in text
    assert "Predicted for the last lr" not in text


def test_a_curve_is_broken_where_there_is_no_number():
    drawn = chart.chart("c", [chart.Line("usual", range(5), [1.0, 10.0, np.nan, 0.0, 1.0])], steps=4)
    path = re.search(r'<path class="usual" d="([^"]*)"', drawn)[1]
    points = re.findall(r"([ML])([\d.]+) ([\d.]+)", path)
    assert [pen for pen, *_ in points] == ["M", "L", "M"]
    assert points[0][2] == points[2][2]
    assert float(points[0][2]) > float(points[1][2])  # SVG counts from the top


def test_points_of_the_two_runs_are_on_one_ray_and_spirals_on_each_other():
    usual, converted = (run.weights for run in runs.on_landscape(Settings()))
    angles = [np.arctan2(w[:, 1], w[:, 0]) for w in (usual, converted)]
    np.testing.assert_allclose(*angles, atol=1e-12)
    np.testing.assert_allclose(page._spiral(usual, 41), page._spiral(converted, 41), atol=1e-12)
    assert np.linalg.norm(converted[-1]) > 1.05 * np.linalg.norm(usual[-1])


# The command, without a browser.

def test_without_marimo_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["explore", "--headless"])
    assert stopped.value.code == 2
    assert "the explorer needs marimo; install it with: pip install marimo" in capsys.readouterr().err


needs_marimo = pytest.mark.skipif(find_spec("marimo") is None, reason="needs marimo: pip install marimo")


@needs_marimo
def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit):
            main(["explore", "--headless", "--port", str(taken.getsockname()[1])])
    assert "cannot be used" in (message := capsys.readouterr().err)
    assert "give another one with --port" in message


@needs_marimo
def test_the_app_runs_as_a_script():
    done = subprocess.run([sys.executable, APP], capture_output=True, text=True, timeout=60, env=here(), check=False)
    assert (done.returncode, done.stderr) == (0, "")


def here():
    """The environment for a process that imports this package."""
    return {**os.environ, "PYTHONPATH": str(APP.parents[2])}


# In a browser.

@contextmanager
def server():
    """Address of `minibn explore`, in a process of its own."""
    command = [sys.executable, "-m", "minibn", "explore", "--headless", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here()) as process:
        try:
            yield re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(20) == 130
            finally:
                process.kill()


@needs_marimo
@pytest.mark.skipif(not chromium(), reason="needs Chromium and playwright: apt-get install chromium, pip install playwright")
def test_in_a_browser_a_moved_slider_changes_the_numbers_to_what_the_functions_say():
    """SGD, then AdamW with another weight decay, then beyond the limit; nothing is asked of another computer. 15 s: a browser."""
    from playwright.sync_api import expect, sync_playwright

    with server() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 400, "height": 900})
        asked, errors = [], []
        view.on("request", lambda request: asked.append(request.url))
        view.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        view.on("pageerror", lambda error: errors.append(str(error)))

        def shows(s):
            """Wait until the page shows the code of these settings, then compare every number."""
            found = page.shown(s)
            expect(view.locator("[data-name=code]")).to_have_text(page.code(s), timeout=60_000)
            for element in view.locator("b[data-name]").all():
                assert element.inner_text() == chart.number(found.numbers[element.get_attribute("data-name")])
            return view.locator("b[data-name]").count()

        def slide(label, key, times):
            thumb = view.locator("marimo-slider", has_text=label).get_by_role("slider")
            thumb.focus()
            for _ in range(times):
                thumb.press(key)

        view.goto(address)
        assert shows(Settings()) > 10
        slide("learning rate", "ArrowLeft", 2)
        shows(Settings(lr=0.05))
        view.locator("select").nth(0).select_option("AdamW")
        s = Settings.of("AdamW")
        shows(s)
        view.locator("select").nth(1).select_option("exponential")
        slide("warm-up", "ArrowRight", 2)
        shows(replace(s, schedule="exponential", end=30.0, warmup=10))
        slide("weight decay", "End", 1)
        shows(replace(s, schedule="exponential", end=30.0, warmup=10, weight_decay=100.0))
        expect(view.locator(".refused")).to_be_visible()
        assert view.evaluate("document.documentElement.scrollWidth") == 400
        browser.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert not errors


def test_a_port_is_one_of_this_computers():
    for bad in (-1, 65536, "8000", None, 1.5):
        with pytest.raises(ValueError, match="port must be (from 0 to 65535|a whole number of at least 0), got"):
            explore.serve(bad)
