"""What the explorer's page shows for one `Settings`, as HTML text: sentences, numbers and charts.

`shown` computes everything. Every number in a sentence has a name there, and on the page:
`<b data-name="...">`.
"""

import math
from html import escape
from typing import Any, NamedTuple

import numpy as np

from minibn.explore import chart, toys
from minibn.explore.chart import Line, number
from minibn.explore.runs import BETA2, Pair, Settings, equilibrium, largest_weight_decay, on_landscape, on_noise, usual

LATE = 4  # means are taken over the last 1/LATE of the steps


class Shown(NamedTuple):
    """What the charts and sentences need: `shown(settings)`."""

    settings: Settings
    schedule: list[Any]  # the usual one
    noise: Pair
    norm: np.ndarray  # |w| and angle per step in equilibrium, at the measured steps
    angle: np.ndarray
    landscape: Pair
    numbers: dict[str, float]  # that the page states, by name


def shown(settings: Settings) -> Shown:
    """Run everything for these settings.

    Example:
        >>> found = shown(Settings()).numbers
        >>> round(found["lr-converted"] / found["lr-usual"]), round(float(found["norm-predicted"]), 2)
        (68, 2.66)
    """
    noise, schedule = on_noise(settings), usual(settings)
    norm, angle = equilibrium(settings, noise.usual)
    return Shown(settings, schedule, noise, norm, angle, on_landscape(settings),
                 _numbers(settings, noise, norm, angle, max(step.lr for step in schedule)))


def _numbers(settings, noise, norm, angle, highest):
    lrs = [run.lr[-1] if len(run.lr) else math.nan for run in noise]
    late = slice(-max(1, len(noise.usual.measured) // LATE), None)
    return {"gap": noise.gap, "lr-usual": lrs[0], "lr-converted": lrs[1],
            "norm-usual": noise.usual.norm[-1], "norm-converted": noise.converted.norm[-1],
            "norm-predicted": norm[-1], "norm-measured": math.sqrt(np.mean(noise.usual.norm[noise.usual.measured[late]] ** 2)),
            "angle-predicted": angle[-1], "angle-measured": math.sqrt(np.mean(noise.usual.angle[late] ** 2)),
            "effective-usual": noise.usual.effective_lr[-1],
            "product": highest * settings.weight_decay, "largest-product": highest * largest_weight_decay(settings),
            "largest-weight-decay": largest_weight_decay(settings), "refused-step": len(noise.converted.lr)}


class _Named(dict):
    """For `str.format_map`: {name} becomes the number of that name, marked."""

    def __missing__(self, name):
        raise KeyError(f"the page has no number called {name!r}")

    def __getitem__(self, name):
        return f'<b data-name="{name}">{number(super().__getitem__(name))}</b>'


def _filled(text, found):
    """The text with {name} replaced by the number of that name."""
    return text.format_map(_Named(found.numbers))


def verdict(found: Shown) -> str:
    """The sentence above the charts: whether the two runs are one training, and with which numbers."""
    refused = found.noise.converted.refused
    if not refused:
        return _filled('<div class="big">Both runs turn the weights in the same way: the largest angle between them is {gap} '
                       "radians, which is rounding. At the end lr is {lr-usual} with weight decay and {lr-converted} without; "
                       "the weights are {norm-usual} and {norm-converted} long.</div>", found)
    alone = ("goes on alone, until its weights leave the range of floating-point numbers." if found.noise.usual.refused else
             "goes on alone.")
    why = ("the converted run leaves the range of floating-point numbers. In training minibn rescales the weights now and "
           "then, so that this does not happen." if "float range" in refused else
           "weight decay would carry the weights through zero. lr × weight decay is {product}; with this schedule it may be "
           f"at most {{largest-product}}. The usual run {alone}")
    return _filled('<div class="big refused">Here no run without weight decay trains in the same way. At step '
                   f"{{refused-step}} {why}</div>", found)


def panels(found: Shown) -> str:
    """Six charts of both runs: lr, |w|, effective lr and angle per step of the 64 weights, then the two weights, drawn."""
    settings, (a, b), norm, n = found.settings, found.noise, found.norm, found.numbers
    steps, degree = settings.steps, found.schedule[0].degree
    effective = np.array([found.schedule[t].lr for t in a.measured]) / norm ** (degree + 1)
    unit = "lr / |w|²" if degree else "lr / |w|"

    def both(x, y):
        return [Line(kind, x(run), y(run)) for kind, run in (("usual", a), ("converted", b))]

    def measured(run):
        return run.measured

    shape = {"constant": "For a constant lr it grows exponentially: a straight line on this logarithmic axis.",
             "exponential": "A growing lr and weight decay are two forms of the same thing."}.get(
                 settings.schedule, "Where your schedule falls, the converted one falls too, or grows more slowly.")
    balance = ("There is no formula for their balance with these settings." if math.isnan(n["norm-predicted"]) else
               "The formula for the last lr says that they balance near {norm-predicted}. Measured late in the run: "
               "{norm-measured}.")
    turning = ("" if math.isnan(n["angle-predicted"]) else
               "Predicted for the last lr: {angle-predicted} radians. Measured late in the run: {angle-measured}.")
    return _grid([
        (chart.chart("Learning rate (lr)", both(lambda run: range(len(run.lr)), lambda run: run.lr), steps=steps),
         f"Usual: your schedule. Converted: the schedule that makes up for the missing weight decay. {shape}"),
        (chart.chart("Length of the weights, |w|", [*both(lambda run: range(len(run.norm)), lambda run: run.norm),
                                                    Line("predicted", a.measured, norm)], steps=steps),
         f"Weight decay makes the usual weights shorter, steps make them longer. {balance}"),
        (chart.chart(f"Effective learning rate, {unit}", [*both(measured, lambda run: run.effective_lr),
                                                          Line("predicted", a.measured, effective)], steps=steps),
         "This is what trains a normalised network. The two curves differ only by the weight decay of a single step. The "
         "usual one ends at {effective-usual}."),
        (chart.chart("Angle per step, in radians", [*both(measured, lambda run: run.angle),
                                                    Line("predicted", a.measured, found.angle)], steps=steps, floor=1e-12),
         f"How far each step turns the weights: the same in both runs. {turning}"),
        *_drawn(found.landscape)], found)


def _drawn(pair):
    """Both runs of two weights, in the plane and as directions."""
    paths = list(zip(("usual", "converted"), (run.weights for run in pair), strict=True))
    reaches = [run.norm.max() for run in pair]
    reach = 1.08 * min(max(reaches), 2.5 * reaches[0])
    steps = len(pair.usual.lr)
    left = " The converted run leaves the picture." if reaches[1] > reach else ""
    ended = f" The converted run ends at step {len(pair.converted.lr)}." if pair.converted.refused else ""
    return [
        (chart.plane("Two weights only, w₁ and w₂", paths, toys.landscape, reach=reach, marks=5, rays=True),
         f"Another loss, {steps} steps. The stronger the green, the lower the loss, which depends on the direction only. Every "
         f"fifth step is marked: there, both runs lie on one ray from the middle.{left}{ended}"),
        (chart.plane("Their direction, step by step", [(kind, _spiral(path, steps + 1)) for kind, path in paths],
                     toys.landscape, reach=1.08, marks=5, rays=False),
         "These two runs again, without their lengths. Each point lies in the direction of the weights, and further out with "
         f"every step. The two curves lie on top of each other.{ended}")]


def _spiral(path, steps):
    """Unit vectors of the weights, times the part of the steps that is over."""
    length = np.linalg.norm(path, axis=1, keepdims=True)
    return path / np.where(length == 0, 1, length) * ((np.arange(len(path)) + 1) / steps)[:, None]


def limit(found: Shown) -> str:
    """How far weight decay may go, and what happens beyond."""
    return _grid([
        (chart.gauge("lr × weight decay", found.numbers["product"], found.numbers["largest-product"]),
         "At the highest lr it is {product}. Up to {largest-product} (weight decay {largest-weight-decay}) the schedule can be "
         "converted. Beyond this limit, weight decay carries the weights through zero, and no learning rate can do that: "
         f"the usual run still trains, but it cannot be converted. {_why(found.settings)}")], found, "panels wide")


def _why(settings):
    if settings.optimizer == "SGD" and settings.momentum:
        return "Momentum makes weight decay overshoot, so the limit is far below 1."
    return "At 1 a step of weight decay leaves nothing of the weights."


def code(settings: Settings) -> str:
    """The lines of Python that make the two schedules of the page.

    Example:
        >>> print(code(Settings()))
        from minibn import schedules
        from minibn.equivalence import remove_weight_decay
        <BLANKLINE>
        usual = schedules.constant(0.1, momentum=0.9, weight_decay=0.01)
        converted = remove_weight_decay(usual)
    """
    s = settings
    kind, numbers_of = {
        "constant": ("constant", ""), "step": ("step_decay", f", [{s.steps // 2}, {s.steps * 3 // 4}], {s.end**0.5!r}"),
        "cosine": ("cosine", f", {s.steps}, {s.lr * s.end!r}"), "exponential": ("exponential", f", {s.end ** (1 / s.steps)!r}"),
    }[s.schedule]
    made = f"schedules.{kind}({s.lr!r}{numbers_of}"
    warm = (f"schedules.warmup({s.warmup}, ", ")") if s.warmup else ("", "")
    if s.optimizer == "SGD":
        return (f"from minibn import schedules\nfrom minibn.equivalence import remove_weight_decay\n\n"
                f"usual = {warm[0]}{made}, momentum={s.momentum!r}, weight_decay={s.weight_decay!r}){warm[1]}\n"
                f"converted = remove_weight_decay(usual)")
    step = {"AdamW": "AdamStep", "Lion": "LionStep", "Muon": "MuonStep"}[s.optimizer]
    betas = f"{s.momentum!r}" + (f", {BETA2[s.optimizer]!r}" if s.optimizer in BETA2 else "")
    return (f"from minibn import schedules\nfrom minibn.equivalence import undecayed\n"
            f"from minibn.optim import {s.optimizer}, {step}\n\n"
            f"lrs = {warm[0]}{made}){warm[1]}\n"
            f"usual = ({step}(s.lr, {betas}, weight_decay={s.weight_decay!r}) for s in lrs)\n"
            f"converted = undecayed({s.optimizer}(weights, usual))  # weights: the parameters that are scale-invariant")


def code_block(settings: Settings) -> str:
    """`code`, as HTML."""
    return f'<pre data-name="code">{escape(code(settings))}</pre>'


def _grid(pairs, found, css="panels"):
    """Pictures with their captions, whose {names} become numbers."""
    figures = [f"<figure>{svg}<figcaption>{_filled(text, found)}</figcaption></figure>" for svg, text in pairs]
    return f'<div class="{css}">{"".join(figures)}</div>'
