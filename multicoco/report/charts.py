"""Curves, points and bars as SVG that takes the page's colours, in light and in dark, and its font.

Drawn by matplotlib, on figures of their own (no pyplot, so nothing is shared with a user's program). Texts may be
anything: none is read as a formula.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from multicoco.errors import UserError

# what matplotlib is told -> the page's colour
_COLOURS = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--line)",
    "#010206": "var(--band)",
    **{f"#0102{number + 16:02x}": f"var(--c{number})" for number in range(8)},
}
_INK, _MUTED, _LINE, _BAND, *SERIES = _COLOURS
_MOST_POINTS = 600  # of a curve
_LONGEST_LABEL = 28
_WIDTH = 5.0  # inches of 72 units, for a place of 300 to 500 pixels
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "multicoco",  # the same figures give the same file
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Chart:
    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Values over x, with their intervals if `low` and `high` are given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Band:
    """A part of the x axis with a name, such as a stage."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Point:
    """Of a row of `rows`: a value with its interval, and single values beside it, such as the seeds'."""

    row: str
    value: float | None
    interval: tuple[float, float] | None = None
    singles: Sequence[float] = ()
    series: str = ""


def curves(
    lines: Sequence[Curve], x_name: str, y_name: str, bands: Sequence[Band] = (), top: float | None = None
) -> Markup:
    """Curves over one x axis.

    Args:
        top: the y axis goes from 0 to this; None: as the values want it, logarithmic if they span much.
    """
    with _axes(_WIDTH, 2.3) as (axes, drawn):
        axes.set_xlim(0, max((line.x[-1] for line in lines if len(line.x)), default=1) * 1.01)
        for place, band in enumerate(bands):
            if place % 2:
                axes.axvspan(band.start, band.end, color=_BAND, linewidth=0)
            axes.annotate(
                _label(band.name, 12),
                ((band.start + band.end) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=8,
                color=_MUTED,
                annotation_clip=True,
            )
        for place, line in enumerate(lines):
            colour = SERIES[place % len(SERIES)]
            x, y = _thinned(line.x, line.y)
            axes.plot(x, y, color=colour, label=_label(line.name), marker="o" if len(x) <= 30 else None, markersize=3)
            if len(line.low):
                (_, low), (_, high) = _thinned(line.x, line.low), _thinned(line.x, line.high)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        values = [value for line in lines for value in line.y if value > 0]
        if top is not None:
            axes.set_ylim(0, top)
        elif values and max(values) > 50 * min(values) and all(value > 0 for line in lines for value in line.y):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        else:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        if len(lines) > 1:
            axes.legend(loc="best")
    return drawn[0]


def rows(
    points: Sequence[Point], x_name: str, limits: tuple[float, float] | None = None, mark: float | None = None
) -> Markup:
    """A line for each row, from above: its points with their intervals; those of several series side by side.

    Args:
        mark: where a vertical line is drawn.
    """
    names = list(dict.fromkeys(point.row for point in points))
    series = list(dict.fromkeys(point.series for point in points))
    with _axes(_WIDTH, 0.75 + 0.3 * len(names) * max(1.0, 0.55 * len(series))) as (axes, drawn):
        if mark is not None:
            axes.axvline(mark, color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        named: set[str] = set()
        for point in points:
            place = series.index(point.series)
            colour = SERIES[place % len(SERIES)]
            height = names.index(point.row) + (place - (len(series) - 1) / 2) * 0.7 / len(series)
            if point.interval:
                axes.plot(point.interval, (height, height), color=colour, linewidth=1.6, solid_capstyle="butt")
            if point.value is not None:
                label = _label(point.series) if point.series and point.series not in named else None
                named.add(point.series)
                axes.plot(point.value, height, marker="|", markersize=9, color=colour, markeredgewidth=2.2, ls="")
                axes.plot(np.nan, np.nan, marker="s", color=colour, ls="", label=label)
            axes.plot(
                point.singles,
                [height] * len(point.singles),
                marker="o",
                markersize=4,
                color=colour,
                alpha=0.65,
                ls="",
                markeredgewidth=0,
            )
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.set_xlabel(x_name)
        if limits:
            axes.set_xlim(*limits)
        if len(series) > 1:
            axes.figure.legend(loc="outside upper center", ncols=3)
    return drawn[0]


def scatter(points: Sequence[tuple[str, float, float]], x_name: str, y_name: str) -> Markup:
    """(name, x, y), every name with a colour of its own."""
    names = list(dict.fromkeys(name for name, _, _ in points))
    with _axes(_WIDTH, 2.4 + 0.16 * (len(names) // 3)) as (axes, drawn):
        for place, name in enumerate(names):
            own = [(x, y) for other, x, y in points if other == name]
            marker = "osD^vPX*"[place // len(SERIES) % 8]
            x, y = zip(*own, strict=True)
            axes.plot(
                x,
                y,
                marker=marker,
                ls="",
                color=SERIES[place % len(SERIES)],
                label=_label(name),
                alpha=0.8,
                ms=5,
                clip_on=False,
            )
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.set_xlim(0, 1.05 * max(x for _, x, _ in points) or 1)
        axes.margins(y=0.1)
        axes.figure.legend(loc="outside upper center", ncols=3)
    return drawn[0]


def reliability(lines: Sequence[Curve]) -> Markup:
    """How often answers are right over how likely the model found them, and where the two are equal."""
    with _axes(_WIDTH, 2.6) as (axes, drawn):
        axes.plot((0, 1), (0, 1), color=_MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for place, line in enumerate(lines):
            colour = SERIES[place % len(SERIES)]
            axes.plot(line.x, line.y, color=colour, marker="o", markersize=4, label=_label(line.name))
            axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1, alpha=0.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("probability of the likeliest choice")
        axes.set_ylabel("how often it is right")
        axes.legend(loc="best")
    return drawn[0]


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Any, list[Markup]]]:
    """Axes to draw on, and a list that holds the drawing afterwards.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"a report draws with matplotlib ({error}): pip install 'multicoco[report]'") from error
    drawn: list[Markup] = []
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a font has no such letter: the page's has
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield axes, drawn
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    drawn.append(_for_the_page(file.getvalue()))


def _for_the_page(svg: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure, and a page has several
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^\";]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^\";]*;?", "", svg)
    svg = svg.replace("xlink:href", "href")
    return Markup(re.sub("|".join(_COLOURS), lambda match: _COLOURS[match[0]], svg))


def _label(text: str, longest: int = _LONGEST_LABEL) -> str:
    """One line; what control characters XML does not have are left out."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return f"\u200b{line}" if line.startswith("_") else line  # which a legend would leave out


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Any, Any]:
    """Means of neighbours, if there are many."""
    if len(x) <= _MOST_POINTS:
        return np.asarray(x), np.asarray(y)
    parts = [np.array_split(np.asarray(values, dtype=float), _MOST_POINTS) for values in (x, y)]
    means_x, means_y = (np.array([part.mean() for part in own]) for own in parts)
    return means_x, means_y
