"""Figures of the report: SVG that stands inside an HTML page and takes its colours from the page's style sheet.

Matplotlib cannot write CSS variables, so the figures are drawn in placeholder colours, each replaced by the variable
that it stands for: one picture serves light, dark and paper.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chatwright.evaluation.findings import Chart

INK, MUTED, LINE = "#010101", "#020202", "#030303"
ARM_COLOURS = 8  # the style sheet defines --arm-0 ... --arm-7
MARKERS = "osD^vPX*"
SIZE = (3.5, 2.15)  # inches; the page decides how large it is shown
LARGE = (5.2, 3.3)
MANY = 40  # values, from which on a curve is smoothed
SHADE = 0.35  # of the raw values behind a smoothed curve
_colours = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    f"#0a0a0{index}": f"var(--arm-{index})" for index in range(ARM_COLOURS)
}
_style = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "chatwright",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}


def arm_colour(index: int) -> str:
    """The placeholder of an arm's colour, for matplotlib."""
    return f"#0a0a0{index % ARM_COLOURS}"


@dataclass(frozen=True)
class Curve:
    """Values over steps; ``colour`` is the number of an arm."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int


@dataclass(frozen=True)
class Box:
    """One stage in the figure of the path; ``share`` is of the time of the whole run, ``arm`` the number of an arm."""

    name: str
    what: str
    time: str
    share: float
    arm_name: str = ""
    arm: int | None = None


def curves(name: str, series: Sequence[Curve], label: str) -> str:
    """Curves over training steps: the values as they were, and their running mean where they are many.

    Args:
        name: unique among the figures of a page (it names the parts inside the SVG).
        label: what the figure shows, for those who cannot see it.
    """
    with matplotlib.rc_context(_style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(series):
            colour, values = arm_colour(curve.colour), list(curve.values)
            smooth = running_mean(values, len(values) // 20) if len(values) >= MANY else values
            if len(values) >= MANY:
                axes.plot(curve.steps, values, color=colour, linewidth=0.8, alpha=SHADE)
            axes.plot(curve.steps, smooth, color=colour, linewidth=1.7, linestyle=("-", "--", "-.", ":")[number % 4])
            if len(series) > 1:
                axes.plot([], [], color=colour, linestyle=("-", "--", "-.", ":")[number % 4], label=curve.label)
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=INK, handlelength=2.2)
        return _inline(figure, name, label)


def intervals(name: str, points: Sequence[tuple[str, float, float, float, int]], label: str) -> str:
    """Scores of one task with their intervals, e.g. for the alignment tax.

    Args:
        points: (arm, score, low, high, number of the arm), scores in [0, 1].
    """
    with matplotlib.rc_context(_style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for place, (_, score, low, high, arm) in enumerate(points):
            colour = arm_colour(arm)
            axes.plot([place, place], [100 * low, 100 * high], color=colour, linewidth=2.2)
            axes.plot(place, 100 * score, MARKERS[arm % len(MARKERS)], color=colour, markersize=6)
            axes.annotate(f"{100 * score:.1f}", (place, 100 * score), (7, 0), textcoords="offset points", va="center")
        axes.set_xticks(range(len(points)), [point[0] for point in points])
        axes.set_xlim(-0.5, len(points) - 0.3)
        axes.tick_params(axis="x", labelcolor=INK, length=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("score, %")
        return _inline(figure, name, label)


def chart(name: str, shown: Chart) -> str:
    """The chart of a finding; series of one colour share their marker, fitted curves have none."""
    with matplotlib.rc_context(_style):
        figure = Figure(figsize=LARGE, layout="constrained")
        axes = figure.subplots()
        following = 0
        for series in shown.series:
            number = following if series.colour is None else series.colour
            following = max(following, number + 1)
            colour, marker = arm_colour(number), MARKERS[number % len(MARKERS)]
            if series.low is not None and series.high is not None:
                axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1.6, alpha=0.6)
            line = "none" if series.style == "points" else "--" if series.style == "curve" else "-"
            point = "none" if series.style == "curve" else marker
            axes.plot(
                series.x, series.y, color=colour, linestyle=line, linewidth=1.4, marker=point, markersize=4,
                label=series.label,
            )  # fmt: skip
        axes.set_xlabel(shown.x)
        axes.set_ylabel(shown.y)
        if shown.log_x:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if len(shown.series) > 1:
            # Above the axes, where it hides nothing.
            figure.legend(
                loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, handlelength=2.2, fontsize=7.5
            )
        return _inline(figure, name, shown.title)


def path(boxes: Sequence[Box], columns: int, label: str) -> str:
    """The stages as boxes in the order they ran, row by row, every other row from right to left."""
    width, height, gap, drop = 178, 92, 30, 30
    rows = -(-len(boxes) // columns)
    wide, high = columns * width + (columns - 1) * gap, rows * height + (rows - 1) * drop

    def corner(place: int) -> tuple[int, int]:
        row, column = divmod(place, columns)
        return (columns - 1 - column if row % 2 else column) * (width + gap), row * (height + drop)

    parts = [
        f'<svg class="path" viewBox="-1 -1 {wide + 2} {high + 2}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for place in range(len(boxes) - 1):
        (x, y), (next_x, next_y) = corner(place), corner(place + 1)
        if y == next_y and next_x > x:
            parts.append(_arrow(x + width + 4, y + height / 2, next_x - 5, y + height / 2))
        elif y == next_y:
            parts.append(_arrow(x - 4, y + height / 2, next_x + width + 5, y + height / 2))
        else:
            parts.append(_arrow(x + width / 2, y + height + 4, x + width / 2, next_y - 5))
    for place, box in enumerate(boxes):
        x, y = corner(place)
        edge = "var(--line)" if box.arm is None else f"var(--arm-{box.arm % ARM_COLOURS})"
        parts.append(
            f'<g transform="translate({x} {y})">'
            f'<rect width="{width}" height="{height}" rx="9" fill="var(--card)" stroke="{edge}" '
            f'stroke-width="{1 if box.arm is None else 2}"/>'
            f'<text x="13" y="25" class="name">{escape(box.name)}</text>'
            f'<text x="13" y="43" class="what">{escape(box.what)}</text>'
            f'<text x="13" y="70" class="time">{escape(box.time)}</text>'
            f'<text x="{width - 13}" y="70" class="what" text-anchor="end">{_share(box.share)}</text>'
            f'<rect x="13" y="78" width="{width - 26}" height="4" rx="2" fill="var(--track)"/>'
            f'<rect x="13" y="78" width="{(width - 26) * box.share:.1f}" height="4" rx="2" fill="var(--accent)"/>'
        )
        if box.arm is not None:
            tag = 14 + 6.4 * len(box.arm_name)
            parts.append(
                f'<rect x="{width - 11 - tag:.1f}" y="11" width="{tag:.1f}" height="18" rx="9" fill="{edge}"/>'
                f'<text x="{width - 11 - tag / 2:.1f}" y="24" class="tag" text-anchor="middle">'
                f"{escape(box.arm_name)}</text>"
            )
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of up to ``window`` values on either side; as many values as there were."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(0, i - window), min(len(values), i + window + 1)) for i in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ends]


def _share(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.005 or share == 0 else "&lt;1%"


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line with a head, from one point to another on the same row or column."""
    dx, dy = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
    left = (to_x - 6 * dx - 4 * dy, to_y - 6 * dy - 4 * dx)
    right = (to_x - 6 * dx + 4 * dy, to_y - 6 * dy + 4 * dx)
    return (
        f'<path d="M{x} {y}L{to_x} {to_y}M{left[0]} {left[1]}L{to_x} {to_y}L{right[0]} {right[1]}" '
        'fill="none" stroke="var(--muted)" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def _inline(figure: Figure, name: str, label: str) -> str:
    """The SVG element alone, in the page's colours, with ids that no other figure of the page has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#)|url\(#', lambda found: found[0] + name + "-", svg)
    for placeholder, colour in _colours.items():
        svg = svg.replace(placeholder, colour)
    opening = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    box = opening[0] if opening else ""
    return (
        f'<svg class="chart" {box} role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
