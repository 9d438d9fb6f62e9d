"""Small SVG pictures for pages: lines, and dots with intervals.

Written into the page itself, with colours that are classes of the style sheet: so they follow light and dark, need no
script and no file, and hundreds of them are drawn in the time of one of a plotting library.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
from collections.abc import Iterable, Sequence

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44, 10, 10, 36
CHARACTER = 6.2
"""Width of a character of the axes, in pixels."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    ``style`` is a colour of the style sheet (base, main, other, good, bad or a number), ``kind`` is solid, dashed or
    dotted.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "0"
    kind: str = "solid"
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Dots:
    """In a row: values by seed, their mean, and the ends of an interval where there is one."""

    values: Sequence[float]
    mean: float
    low: float = math.nan
    high: float = math.nan
    style: str = "0"


def lines(
    drawn: Sequence[Line],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    width: int = 340,
    height: int = 200,
) -> str:
    """Lines over a shared axis.

    Args:
        drawn: The lines; what comes first lies below.
        title: What the chart shows, for those who cannot see it.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis, written above it.
        width: In pixels.
        height: In pixels.
    """
    finite = [
        (x, y) for line in drawn for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)
    ]
    if not finite:
        return ""
    top = MARGIN_TOP + (16 if y_label else 0)
    bottom = height - MARGIN_BOTTOM + (0 if x_label else 16)
    across = _scale([x for x, _ in finite], MARGIN_LEFT, width - MARGIN_RIGHT)
    up = _scale([y for _, y in finite], bottom, top, pad=0.06)
    body = [_text(4, 12, y_label, "label start")] if y_label else []
    for value, words in _ticks(up):
        y = up.at(value)
        body += [_rule(MARGIN_LEFT, y, width - MARGIN_RIGHT, y, zero=value == 0), _text(40, y + 4, words, "tick end")]
    for value, words in _ticks(across):
        edge = across.at(value) + CHARACTER * len(words) / 2 > width
        body.append(
            _text(width - 2 if edge else across.at(value), bottom + 15, words, f"tick {'end' if edge else 'middle'}")
        )
    if x_label:
        body.append(_text((MARGIN_LEFT + width - MARGIN_RIGHT) / 2, height - 4, x_label, "label middle"))
    for line in drawn:
        body += _line(line, across, up)
    return _svg(width, height, title, body)


def intervals(
    rows: Sequence[tuple[str, Sequence[Dots]]],
    *,
    title: str,
    x_label: str,
    marks: Iterable[tuple[float, str]] = (),
    width: int = 640,
    name_width: int = 150,
) -> str:
    """Rows of dots: values by seed, their mean and its interval.

    Args:
        rows: The rows from above: the name, and what is drawn in it.
        title: What the chart shows, for those who cannot see it.
        x_label: Of the axis.
        marks: Upright lines: place and ``zero`` or ``margin``.
        width: In pixels.
        name_width: Room for the names of rows, in pixels; names are cut to fit.
    """
    marks, drawn = list(marks), [dots for _, several in rows for dots in several]
    ends = [x for dots in drawn for x in (*dots.values, dots.mean, dots.low, dots.high) if math.isfinite(x)]
    if not ends:
        return ""
    step, top = 26, 8
    bottom = top + step * len(rows)
    across = _scale([*ends, *(x for x, _ in marks)], name_width + 10, width - 14, pad=0.04)
    body = []
    for value, words in _ticks(across):
        x = across.at(value)
        body += [_rule(x, top, x, bottom), _text(x, bottom + 15, words, "tick middle")]
    for place, kind in marks:
        x = across.at(place)
        body.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
    fits = int(name_width / 6.4)
    for number, (name, several) in enumerate(rows):
        y = top + step * (number + 0.5)
        body.append(_text(name_width, y + 4, name if len(name) <= fits else name[: fits - 1] + "…", "name end"))
        for dots in several:
            body += _dots(dots, across, y)
    body.append(_text((name_width + width) / 2, bottom + 34, x_label, "label middle"))
    return _svg(width, bottom + 40, title, body)


def _dots(dots: Dots, across: _Scale, y: float) -> list[str]:
    body = [
        f'<circle class="seed s-{dots.style}" cx="{across.at(x):.1f}" cy="{y:.1f}" r="3"/>'
        for x in dots.values
        if math.isfinite(x)
    ]
    if math.isfinite(dots.low) and math.isfinite(dots.high):
        low, high = across.at(dots.low), across.at(dots.high)
        body.append(
            f'<path class="line s-{dots.style}" d="M{low:.1f} {y:.1f}H{high:.1f}'
            f'M{low:.1f} {y - 5:.1f}v10M{high:.1f} {y - 5:.1f}v10"/>'
        )
    if math.isfinite(dots.mean):
        body.append(f'<circle class="dot s-{dots.style}" cx="{across.at(dots.mean):.1f}" cy="{y:.1f}" r="5"/>')
    return body


def thumbnail(drawn: Sequence[Line], *, title: str, width: int = 240, height: int = 120) -> str:
    """Lines without axes, for the gallery."""
    across = _scale([x for line in drawn for x in line.x], 6, width - 6)
    up = _scale([y for line in drawn for y in line.y if math.isfinite(y)], height - 8, 8)
    body = [_rule(0, height - 4, width, height - 4)]
    for line in drawn:
        body += _line(line, across, up)
    return _svg(width, height, title, body)


def bars(rows: Sequence[Dots], *, title: str, width: int = 240, height: int = 120) -> str:
    """Means as lying dots on stems, without words, for the gallery."""
    across = _scale([row.mean for row in rows], 16, width - 16, pad=0.1)
    step = height / (len(rows) + 1)
    body = []
    for number, row in enumerate(rows, start=1):
        x, y = across.at(row.mean), step * number
        body += [_rule(8, y, width - 8, y), f'<path class="line s-{row.style}" d="M8 {y:.1f}H{x:.1f}"/>']
        body.append(f'<circle class="dot s-{row.style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return _svg(width, height, title, body)


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """Names beside a sample of their line: (name, style, kind)."""
    samples = [
        f'<span class="entry"><svg viewBox="0 0 22 8" width="22" height="8" aria-hidden="true">'
        f'<path class="line s-{style} {kind}" d="M1 4H21"/></svg>{html.escape(name)}</span>'
        for name, style, kind in entries
    ]
    return f'<div class="legend">{"".join(samples)}</div>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((step * power for step in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclasses.dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def _scale(values: Sequence[float], start: float, end: float, pad: float = 0.0) -> _Scale:
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    room = pad * (high - low)
    return _Scale(low - room, high + room, start, end)


def _ticks(scale: _Scale) -> list[tuple[float, str]]:
    count = max(2, min(5, int(abs(scale.end - scale.start) / (28 if scale.end < scale.start else 60))))
    places = nice_ticks(scale.low, scale.high, count)
    step = min((b - a for a, b in itertools.pairwise(places)), default=1.0)
    digits = next((digits for digits in range(12) if abs(step * 10**digits % 1) < 1e-6), 12)
    return [(place, _number(place, digits)) for place in places]


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.0e}".replace("e+0", "e")
    return text.replace("-", "\N{MINUS SIGN}")


def _line(line: Line, across: _Scale, up: _Scale) -> list[str]:
    path, pen = [], "M"
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            path.append(f"{pen}{across.at(x):.1f} {up.at(y):.1f}")
            pen = "L"
        else:
            pen = "M"
    drawn = [f'<path class="line s-{line.style} {line.kind}" d="{"".join(path)}"/>']
    if line.dots:
        points = [(across.at(x), up.at(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        drawn += [f'<circle class="dot s-{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
    return drawn


def _rule(x1: float, y1: float, x2: float, y2: float, *, zero: bool = False) -> str:
    kind = "zero" if zero else "grid"
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(words)}</text>'


def _svg(width: int, height: int, title: str, body: Iterable[str]) -> str:
    label = html.escape(title, quote=True)
    return (
        f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(body)}</svg>'
    )
