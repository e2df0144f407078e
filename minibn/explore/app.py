# /// script
# [tool.marimo.display]
# theme = "system"
# ///
"""The explorer's page: sliders, and the two runs that they describe. Start it with `minibn explore`.

This is a marimo app: each function is a cell, and marimo runs those again whose arguments changed.
All that is computed is in `runs`, all that is shown in `page`; run this file as a script and it
does one round of both.
"""

import marimo

app = marimo.App(width="full", app_title="minibn: weight decay is a learning-rate schedule", css_file="explore.css")

with app.setup:
    import marimo as mo

    from minibn.explore import chart, page, runs
    from minibn.schedules import NAMES

    DIGITS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)


@app.cell
def introduction():
    mo.Html("""<div class="explore"><h1>Weight decay is a learning-rate schedule</h1>
<p>The length of the weights before a normalisation layer does not matter. Only their direction does. Weight decay makes
the weights shorter, so it cannot change what the network computes. It changes how far the next steps turn the weights.
A larger learning rate does the same.</p>
<p>So this page always shows two runs. The usual run has weight decay. The converted run has none, and a learning rate
that minibn computes. They are the same training, step by step. Move a slider and watch.</p></div>""")
    return


@app.cell
def choices():
    optimizer = mo.ui.dropdown(list(runs.KINDS), value="SGD", label="optimizer", allow_select_none=False)
    schedule = mo.ui.dropdown(NAMES, value="constant", label="schedule of lr", allow_select_none=False)
    return optimizer, schedule


@app.cell
def sliders(optimizer):
    _start = runs.Settings.of(optimizer.value)
    _round = [float(f"{digit}e{exponent}") for exponent in range(-4, 2) for digit in DIGITS]

    def slider(label, steps, value):
        return mo.ui.slider(steps=steps, value=value, label=label, show_value=True, full_width=True)

    lr = slider("learning rate (lr)", [x for x in _round if 1e-3 <= x <= 1], _start.lr)
    momentum = slider("momentum (β1 of AdamW, Lion)", [0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98], _start.momentum)
    weight_decay = slider("weight decay", [0, *_round, 100.0], _start.weight_decay)
    return lr, momentum, slider, weight_decay


@app.cell
def warm_up():
    warmup = mo.ui.slider(0, 100, 5, value=0, label="warm-up, steps", show_value=True, full_width=True)
    return (warmup,)


@app.cell
def last_lr(schedule, slider):
    _first = {"constant": 1.0, "step": 0.1, "cosine": 0.01, "exponential": 30.0}[schedule.value]
    _steps = [1.0] if schedule.value == "constant" else [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
    end = slider("last lr / first lr", _steps, _first) if len(_steps) > 1 else None
    return (end,)


@app.cell
def controls(end, lr, momentum, optimizer, schedule, warmup, weight_decay):
    _shown = [optimizer, schedule, lr, weight_decay, momentum, warmup, *([end] if end is not None else [])]
    mo.Html(f'<div class="explore"><div class="controls">{"".join(f"<div>{control}</div>" for control in _shown)}</div></div>')
    return


@app.cell
def compute(end, lr, momentum, optimizer, schedule, warmup, weight_decay):
    settings = runs.Settings(optimizer.value, lr.value, momentum.value, weight_decay.value, warmup.value, schedule.value,
                             end.value if end is not None else 1.0)
    found = page.shown(settings)
    return (found,)


@app.cell
def results(found):
    mo.Html(f"""<div class="explore">{page.verdict(found)}<div class="key">{chart.KEY}</div>{page.panels(found)}
<p>The first four charts show 64 weights for {found.settings.steps} steps. Their gradient is pure noise, as it is late in
training. As in every normalised network, the gradient is orthogonal to the weights. The shorter the weights, the larger the
gradient.</p>
<h2>How far weight decay may go</h2>{page.limit(found)}
<h2>The same in Python</h2>{page.code_block(found.settings)}</div>""")
    return


if __name__ == "__main__":
    app.run()
