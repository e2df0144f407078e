"""Charts as SVG text, drawn with no library, so that a page of them is ready in milliseconds and follows the page's colours.

Colours, light and dark, are in `explore.css`. Every curve differs from the others by more than its
colour: the usual run is wide and pale, the converted one thin and dashed, a prediction dotted.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 36

KINDS = {"usual": "usual: with weight decay", "converted": "converted: without weight decay", "predicted": "predicted"}
KEY = "".join(f'<span><svg viewBox="0 0 38 12"><path class="{kind}" d="M2 6H36"/></svg>{text}</span>'
              for kind, text in KINDS.items())


class Line(NamedTuple):
    """One curve: kind is "usual", "converted" or "predicted"; y may hold NaN."""

    kind: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


def chart(title: str, lines: Sequence[Line], *, steps: int, floor: float = 0.0) -> str:
    """Curves over the number of steps, with a logarithmic vertical axis.

    Args:
        title: above the chart; it names what the vertical axis shows.
        lines: the curves. Numbers that are not finite or not above 0 leave a gap.
        steps: right end of the horizontal axis.
        floor: the vertical axis does not go below this.

    Returns:
        an <svg> element.

    Example:
        >>> chart("norm", [Line("usual", [0, 1], [1.0, 10.0])], steps=1).count("<path")
        1
    """
    y = np.concatenate([np.asarray(line.y, dtype=float) for line in lines]) if lines else np.ones(1)
    y = y[np.isfinite(y) & (y > floor)]
    low, high = (math.log10(y.min()), math.log10(y.max())) if len(y) else (-1.0, 1.0)
    pad = max(0.06 * (high - low), 0.08)
    low, high = low - pad, high + pad

    def across(x):
        return LEFT + (WIDTH - LEFT - RIGHT) * x / steps

    def up(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(value) - low) / (high - low)

    parts = [_text(LEFT - 44, 18, title, css="title")]
    for tick in log_ticks(low, high):
        parts += [f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>',
                  _text(LEFT - 6, up(tick) + 4, number(tick), "end")]
    for x in (0, steps // 2, steps):
        anchor = {0: "start", steps: "end"}.get(x, "middle")
        parts.append(_text(across(x), HEIGHT - BOTTOM + 17, "step 0" if x == 0 else x, anchor))
    for line in lines:
        parts.append(_path(line.kind, [(across(x), up(y)) if y > floor and math.isfinite(y) else None
                                       for x, y in zip(line.x, line.y, strict=True)]))
    return _svg(WIDTH, HEIGHT, title, parts)


def plane(title: str, paths: Sequence[tuple[str, np.ndarray]], loss: Callable[[np.ndarray], np.ndarray], *, reach: float,
          marks: int, rays: bool) -> str:
    """Paths of two weights over a loss that depends on their angle only.

    Args:
        title: above the picture.
        paths: (kind, (T, 2)) of each run.
        loss: angle in radians -> loss, drawn as sectors; the stronger, the lower.
        reach: how far from the origin the picture goes; paths may leave it.
        marks: a point at every so many steps.
        rays: draw a line from the origin through the points of each marked step.

    Returns:
        an <svg> element.

    Example:
        >>> plane("w", [("usual", np.ones((3, 2)))], np.cos, reach=2.0, marks=2, rays=False).count("<circle")
        3
    """
    middle, radius = WIDTH / 2, WIDTH / 2 - 6
    top = TOP + radius

    def at(point):
        return middle + radius * point[0] / reach, top - radius * point[1] / reach

    edges = np.linspace(0, 2 * np.pi, 145)
    values = loss((edges[1:] + edges[:-1]) / 2)
    strength = 0.62 * (1 - (values - values.min()) / (np.ptp(values) or 1)) ** 1.5
    parts = [_text(8, 18, title, css="title")]
    for a, b, opacity in zip(edges[:-1], edges[1:], strength, strict=True):
        (x1, y1), (x2, y2) = (at((reach * math.cos(c), reach * math.sin(c))) for c in (a, b))
        parts.append(f'<path class="ground" style="fill-opacity:{opacity:.3f}" '
                     f'd="M{middle} {top}L{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}Z"/>')
    parts.append(f'<circle class="ring" cx="{middle}" cy="{top}" r="{radius}"/>')
    for t in range(0, max(len(path) for _, path in paths), marks) if rays else ():
        points = [path[t] for _, path in paths if t < len(path)]
        parts.append(_path("ray", [at((0, 0)), at(max(points, key=lambda point: float(np.hypot(*point))))]))
    for kind, path in paths:
        points, size = [at(point) for point in path], 6 if kind == "usual" else 3
        parts.append(_path(kind, points))
        parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>' for x, y in points[::marks]]
    x, y = at(paths[0][1][0])
    parts.append(_text(x - 10, y + 4, "start", "end"))
    return _svg(WIDTH, top + radius + 6, title, parts)


def gauge(title: str, value: float, limit: float) -> str:
    """A logarithmic line from 0.0001 times to 100 times `limit`, with a mark at `value` and the part beyond the limit hatched.

    A value outside the line is drawn at its end.

    Returns:
        an <svg> element.

    Example:
        >>> "limit 0.5" in gauge("lr", 0.1, 0.5)
        True
    """
    low, high = math.log10(limit) - 4, math.log10(limit) + 2
    middle, end = 62, WIDTH - 20

    def across(x):
        return 20 + (end - 20) * (min(max(math.log10(x) if x > 0 else low, low), high) - low) / (high - low)

    x, edge, beyond = across(value), across(limit), value > limit
    kind = "beyond" if beyond else "within"
    parts = [_text(8, 18, title, css="title"),
             f'<rect class="within" x="20" y="{middle - 12}" width="{edge - 20:.1f}" height="24"/>',
             f'<rect class="beyond" x="{edge:.1f}" y="{middle - 12}" width="{end - edge:.1f}" height="24"/>',
             *(f'<path class="ray" d="M{h:.1f} {middle + 12}L{h + 10:.1f} {middle - 12}"/>' for h in np.arange(edge, end - 9, 8)),
             _text((20 + edge) / 2, middle - 22, "there is a conversion", "middle"),
             _text((edge + end) / 2, middle - 22, "no conversion", "middle"),
             f'<path class="mark" d="M{edge:.1f} {middle - 18}V{middle + 18}"/>',
             _text(edge, middle + 34, f"limit {number(limit)}", "middle"),
             f'<circle class="{kind} yours" cx="{x:.1f}" cy="{middle}" r="9"/>',
             _text(min(max(x, 60), end - 50), middle + 54, f"your value {number(value)}", "middle")]
    return _svg(WIDTH, 122, title, parts)


def number(x: float) -> str:
    """Three digits, as one writes them.

    Example:
        >>> [number(x) for x in (0.0, 0.012345, 123.4, 45678.0, 1.234e-7, 1e30, float("nan"))]
        ['0', '0.0123', '123', '45,700', '1.23e-7', '1e30', '–']
    """
    if not math.isfinite(x):
        return "∞" if x == math.inf else "–"
    if x == 0 or 1e-3 <= abs(x) < 1e6:
        return f"{float(f'{x:.3g}'):,.10g}"
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def log_ticks(low: float, high: float) -> list[float]:
    """At most six round numbers between 10^low and 10^high.

    Example:
        >>> log_ticks(-0.2, 1.1), log_ticks(0.0, 12.0)
        ([1.0, 2.0, 3.0, 5.0, 10.0], [1.0, 1000.0, 1000000.0, 1000000000.0, 1000000000000.0])
    """
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**e for e in exponents for d in digits if low <= math.log10(d) + e <= high]
        if len(found) <= 6:
            return found
    stride = math.ceil((high - low) / 5)
    return [10.0**e for e in exponents if e % stride == 0 and low <= e <= high]


def _path(kind, points):
    """Points, with None where the line is broken."""
    text, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        x, y = (max(-9999.0, min(9999.0, c)) for c in point)
        text.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return f'<path class="{kind}" d="{"".join(text) or "M0 0"}"/>'


def _text(x, y, text, anchor="start", css=""):
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(text))}</text>'


def _svg(width, height, title, parts):
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
