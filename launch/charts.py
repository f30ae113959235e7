"""Charts as inline SVG, for pages that load nothing from elsewhere.

Every function returns markup with all texts escaped. Colours are CSS variables of the page (``--ink``, ``--muted``,
``--grid``, ``--panel``, ``--c1`` …), so that light and dark pages share one drawing; lines are labelled at their ends
instead of in a legend. Lengths are in SVG user units, about one CSS pixel each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

TEXT_WIDTH = 0.56
"""Mean width of a character over the font size, in sans-serif system fonts."""


@dataclass(frozen=True)
class Line:
    """One series of a line chart."""

    points: Sequence[tuple[float, float]]
    colour: str
    """Name of a CSS colour variable, such as ``c1``."""
    label: str = ""
    """Written at the end of the line."""
    width: float = 1.8
    opacity: float = 1.0
    mark: tuple[float, float] | None = None
    """A point to be ringed, such as the selected checkpoint."""


@dataclass(frozen=True)
class Bar:
    """One row of a horizontal bar chart."""

    label: str
    value: float
    colour: str
    text: str
    """Written after the bar."""
    spread: float | None = None
    """Half the length of the whisker."""
    reference: float | None = None
    """Where a tick stands for a value to compare with."""


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a point, and how far it may be off."""

    label: str
    value: float
    low: float
    high: float
    text: str
    """Written at the end of the row."""
    colour: str = "c1"
    reference: float | None = None
    """Where a tick stands for a value to compare with."""


@dataclass
class Node:
    """One box of the chain diagram."""

    key: str
    title: str
    lines: list[str]
    kind: str
    """``data``, ``weights`` or ``source``: how the box is drawn."""
    inputs: list[tuple[str, bool]] = field(default_factory=list)
    """(key of the node it reads, whether weights come from it)."""


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short text of an axis number: 1500 -> ``1.5k``, 0.25 -> ``0.25``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}".replace("-", "−")


def thin_out(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most ``most`` points: means of equal runs of neighbours, so that no spike is picked by chance."""
    if len(points) <= most:
        return list(points)
    bounds = [round(i * len(points) / most) for i in range(most + 1)]
    chunks = [points[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    description: str,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (380, 220),
) -> Markup:
    """Lines over shared axes; points that are not finite are left out. A screen reader says ``description``."""
    lines = [replace(line, points=[p for p in line.points if all(map(math.isfinite, p))]) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup('<p class="missing">Nothing was recorded to draw.</p>')
    width, height = size
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    if x_low > 0 and x_low < 0.4 * x_high:
        x_low = 0.0
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1
    y_low, y_high = y_range or _padded(min(ys), max(ys))
    label_width = max((_text_width(line.label, 11) for line in lines), default=0)
    left, right, top, bottom = 36, max(10, label_width + 12), 24, 34

    def x_of(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def y_of(y: float) -> float:
        return top + (y_high - min(max(y, y_low), y_high)) / (y_high - y_low) * (height - top - bottom)

    out = [Markup('<text class="axis" x="0" y="11">{}</text>').format(y_label)]
    for tick in ticks(y_low, y_high):
        y = y_of(tick)
        out.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, width - right, y, y)
        )
        out.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 6, y + 3.5, number(tick)
            )
        )
    for tick in ticks(x_low, x_high, 4):
        out.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x_of(tick), height - bottom + 15, number(tick)
            )
        )
    out.append(
        Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            (left + width - right) / 2, height - 4, x_label
        )
    )
    for line in lines:
        path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points)
        style = f"stroke:var(--{line.colour});stroke-width:{line.width};stroke-opacity:{line.opacity}"
        if len(line.points) > 1:
            out.append(Markup('<path class="line" d="{}" style="{}"/>').format(path, style))
        else:
            x, y = line.points[0]
            out.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" style="fill:var(--{})"/>').format(
                    x_of(x), y_of(y), line.colour
                )
            )
    for line in lines:
        if line.mark:
            out.append(
                Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="3.4" style="stroke:var(--{})"/>').format(
                    x_of(line.mark[0]), y_of(line.mark[1]), line.colour
                )
            )
    labelled = [line for line in lines if line.label]
    label_ys = _spread([y_of(line.points[-1][1]) for line in labelled], 13)
    sunk = max(0.0, max(label_ys, default=0.0) - (height - bottom))  # below the axis are its numbers
    for line, y in zip(labelled, label_ys, strict=True):
        out.append(
            Markup('<text class="label" x="{:.1f}" y="{:.1f}" style="fill:var(--{})">{}</text>').format(
                x_of(line.points[-1][0]) + 6, y - sunk + 3.8, line.colour, line.label
            )
        )
    return _svg(out, width, height, description)


def bar_chart(
    bars: Sequence[Bar],
    description: str,
    high: float | None = None,
    width: int = 380,
    axis_label: str = "",
    reference_label: str = "",
) -> Markup:
    """Horizontal bars from zero, each with its value written after it; whisker and reference tick where given."""
    if not bars:
        return Markup('<p class="missing">Nothing was recorded to draw.</p>')
    ends = [max(bar.value + (bar.spread or 0), bar.reference or 0) for bar in bars]
    top_value = high or max(*ends, 1e-9)
    left = max(_text_width(bar.label, 12) for bar in bars) + 10
    right = max(_text_width(bar.text, 11.5) for bar in bars) + 12
    row, thick, head = 26, 14, 16 if reference_label else 2
    height = head + row * len(bars) + (18 if axis_label else 2)

    def x_of(value: float) -> float:
        return left + min(max(value / top_value, 0), 1) * (width - left - right)

    out = []
    for place, bar in enumerate(bars):
        y = head + row * place + row / 2
        out.append(
            Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 8, y + 4, bar.label
            )
        )
        out.append(
            Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" rx="1.5" style="fill:var(--{})"/>').format(
                left, y - thick / 2, x_of(bar.value) - left, thick, bar.colour
            )
        )
        if bar.spread:
            ends_x = x_of(bar.value - bar.spread), x_of(bar.value + bar.spread)
            for kind in ("halo", "whisker"):  # a light line under the dark one, to be seen on the bar
                out.append(
                    Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                        kind, *ends_x, y, y
                    )
                )
        if bar.reference is not None:
            for kind in ("halo", "reference"):
                out.append(
                    Markup('<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{3:.1f}"/>').format(
                        kind, x_of(bar.reference), y - row / 2 + 2, y + row / 2 - 2
                    )
                )
        end = x_of(bar.value + (bar.spread or 0))
        if bar.reference is not None and abs(x_of(bar.reference) - end) < _text_width(bar.text, 11.5) + 16:
            end = max(end, x_of(bar.reference))  # the tick would cross the text: write after both
        out.append(Markup('<text class="value" x="{:.1f}" y="{:.1f}">{}</text>').format(end + 7, y + 4, bar.text))
    out.append(
        Markup('<line class="base" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            left, head, head + row * len(bars)
        )
    )
    references = [bar.reference for bar in bars if bar.reference is not None]
    if reference_label and references:
        out.append(
            Markup('<text class="axis" x="{:.1f}" y="11" text-anchor="middle">{}</text>').format(
                x_of(references[0]), reference_label
            )
        )
    if axis_label:
        out.append(Markup('<text class="axis" x="{:.1f}" y="{}">{}</text>').format(left, height - 4, axis_label))
    return _svg(out, width, height, description)


def interval_chart(
    rows: Sequence[Interval], description: str, width: int = 760, axis_label: str = "", zero: bool = False
) -> Markup:
    """Points with their intervals over an axis no longer than they need; with ``zero`` it holds a line at 0."""
    if not rows:
        return Markup('<p class="missing">Nothing was recorded to draw.</p>')
    shown = [x for row in rows for x in (row.low, row.high, row.value, row.reference) if x is not None]
    low, high = _padded(min(*shown, 0.0) if zero else min(shown), max(*shown, 0.0) if zero else max(shown))
    left = max(_text_width(row.label, 12) for row in rows) + 16
    right = max(_text_width(row.text, 11.5) for row in rows) + 16
    height_of_row, top = 24, 4
    bottom = top + height_of_row * len(rows)

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    out = []
    for tick in ticks(low, high, 6):
        x, kind = x_of(tick), "base" if zero and tick == 0 else "grid"
        out.append(Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(kind, x, x, top, bottom))
        out.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x, bottom + 14, number(tick)
            )
        )
    for place, row in enumerate(rows):
        y = top + height_of_row * (place + 0.5)
        out.append(
            Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 12, y + 4, row.label
            )
        )
        out.append(
            Markup(
                '<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" style="stroke:var(--{});stroke-width:2.5"/>'
            ).format(x_of(row.low), x_of(row.high), y, y, row.colour)
        )
        out.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.2" style="fill:var(--{})"/>').format(
                x_of(row.value), y, row.colour
            )
        )
        if row.reference is not None:
            out.append(
                Markup('<line class="reference" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
                    x_of(row.reference), y - 8, y + 8
                )
            )
        out.append(
            Markup('<text class="value" x="{:.1f}" y="{:.1f}">{}</text>').format(width - right + 12, y + 4, row.text)
        )
    if axis_label:
        out.append(Markup('<text class="axis" x="{:.1f}" y="{}">{}</text>').format(left, bottom + 30, axis_label))
    return _svg(out, width, bottom + (34 if axis_label else 18), description)


def chain_diagram(nodes: Sequence[Node], description: str) -> Markup:
    """Boxes from sources (left) to recognizers (right), each as late as its readers allow, the longest chain on top."""
    if not nodes:
        return Markup('<p class="missing">No stage is finished yet.</p>')
    by_key = {node.key: node for node in nodes}
    columns = _columns(by_key)
    rows = _place(by_key, columns)
    box_width, gap_x, gap_y, pad = 194, 36, 16, 11
    box_height = 30 + 15 * max(len(node.lines) for node in nodes)
    width = (max(columns.values()) + 1) * (box_width + gap_x) - gap_x + 2
    height = (max(rows.values()) + 1) * (box_height + gap_y) - gap_y + 2

    def corner(key: str) -> tuple[float, float]:
        return 1 + columns[key] * (box_width + gap_x), 1 + rows[key] * (box_height + gap_y)

    out = []
    for node in nodes:
        x2, y2 = corner(node.key)
        for source, weights in node.inputs:
            x1, y1 = corner(source)
            start, end = (x1 + box_width, y1 + box_height / 2), (x2 - 6, y2 + box_height / 2)
            bend = min(34, (end[0] - start[0]) / 2)
            path = (
                f"M{start[0]:.0f} {start[1]:.0f}C{start[0] + bend:.0f} {start[1]:.0f} "
                f"{end[0] - bend:.0f} {end[1]:.0f} {end[0]:.0f} {end[1]:.0f}"
            )
            tip = f"M{end[0] - 1:.0f} {end[1] - 4:.0f}l6 4l-6 4z"
            kind = "weights" if weights else "data"
            out.append(
                Markup('<path class="edge {}" d="{}"/><path class="tip {}" d="{}"/>').format(kind, path, kind, tip)
            )
    for node in nodes:
        x, y = corner(node.key)
        fits = int((box_width - 2 * pad) / (11 * TEXT_WIDTH))
        texts = [
            Markup('<text class="node-title" x="{}" y="{}">{}</text>').format(
                x + pad, y + 19, _cut(node.title, fits * 4 // 5)
            )
        ]
        texts += [
            Markup('<text class="node-line" x="{}" y="{}">{}</text>').format(x + pad, y + 35 + 15 * i, _cut(line, fits))
            for i, line in enumerate(node.lines)
        ]
        box = Markup('<rect class="node {}" x="{}" y="{}" width="{}" height="{}" rx="5"/>').format(
            node.kind, x, y, box_width, box_height
        )
        full = " · ".join([node.title, *node.lines])
        out.append(Markup("<g><title>{}</title>{}{}</g>").format(full, box, Markup("").join(texts)))
    return _svg(out, width, height, description, fixed=True)


def _columns(by_key: dict[str, Node]) -> dict[str, int]:
    """Column of each node: as far right as its readers allow; nodes that nobody reads share the last one."""
    readers: dict[str, list[str]] = {key: [] for key in by_key}
    for node in by_key.values():
        for source, _ in node.inputs:
            readers[source].append(node.key)
    to_end: dict[str, int] = {}

    def distance(key: str) -> int:
        if key not in to_end:
            to_end[key] = max((distance(reader) + 1 for reader in readers[key]), default=0)
        return to_end[key]

    longest = max(distance(key) for key in by_key)
    return {key: longest - to_end[key] for key in by_key}


def _place(by_key: dict[str, Node], columns: dict[str, int]) -> dict[str, int]:
    """Row of each node: walk back from the ends, deepest input first, so that the main chain is one straight line."""
    depths: dict[str, int] = {}

    def depth(key: str) -> int:
        if key not in depths:
            depths[key] = max((depth(source) + 1 for source, _ in by_key[key].inputs), default=0)
        return depths[key]

    rows: dict[str, int] = {}
    next_free = dict.fromkeys(columns.values(), 0)

    def walk(key: str, lowest: int) -> None:
        if key in rows:
            return
        rows[key] = max(lowest, next_free[columns[key]])
        next_free[columns[key]] = rows[key] + 1
        for source, _ in sorted(by_key[key].inputs, key=lambda pair: -depth(pair[0])):
            walk(source, rows[key])

    last = max(columns.values())
    for key in sorted((k for k in by_key if columns[k] == last), key=lambda k: -depth(k)):
        walk(key, 0)
    return rows


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range somewhat wider than the data, ending at round numbers."""
    if high == low:
        return low - 0.5, high + 0.5
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _spread(places: Sequence[float], least: float) -> list[float]:
    """Move neighbours apart to ``least`` units, keeping their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in zip(order, order[1:], strict=False):
        moved[after] = max(moved[after], moved[before] + least)
    overshoot = sum(moved) - sum(places)
    return [y - overshoot / len(moved) for y in moved] if moved else []


def _text_width(text: str, size: float) -> float:
    return len(text) * size * TEXT_WIDTH


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _svg(parts: Sequence[Markup], width: float, height: float, description: str, fixed: bool = False) -> Markup:
    size = Markup(' width="{:.0f}" height="{:.0f}"').format(width, height) if fixed else Markup("")
    return Markup('<svg class="chart" viewBox="0 0 {:.0f} {:.0f}"{} role="img" aria-label="{}">{}</svg>').format(
        width, height, size, description, Markup("").join(parts)
    )
