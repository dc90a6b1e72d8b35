"""Points with intervals drawn as curves or bars in panels: what the figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from kpt_lab import look
from kpt_lab.look import LEFT, NARROW, RIGHT, Style, axis_names, frame, plain, six, wrapped
from kpt_lab.panels import Arrangement


class Point(NamedTuple):
    """One value of one technique in one cell with its interval; hollow where it is UNCLEAR or not measured."""

    cell: Any
    label: str  # decides the colour
    name: str  # stands in the legend
    value: float
    low: float
    high: float
    hollow: bool
    hover: str
    text: str  # the value in words

    @property
    def bounded(self) -> bool:
        """Whether its interval has two ends; one without is a whisker that runs off the axis, not a band."""
        return math.isfinite(self.high) and math.isfinite(self.low) and (self.low > 0 or self.value <= 0)


class Reference(NamedTuple):
    """A line of the hardware's or a copy's: its value by cell."""

    name: str
    values: Mapping[Any, float]
    hover: str
    dash: str


class Chart(NamedTuple):
    """What a figure says: words above and below, where cells go, points, lines, and rows without a value (cell, name, status)."""

    heading: str
    subtitle: str
    notes: Sequence[str]
    plan: Arrangement
    labels: Sequence[str]  # of all techniques, so that each keeps its colour from figure to figure
    points: Sequence[Point]
    references: Sequence[Reference] = ()
    absent: Sequence[tuple[Any, str, str]] = ()
    entries: Sequence[str] = ()  # further names that the legend will hold

    @property
    def span(self) -> tuple[float, float]:
        """Least and largest finite value among points, their intervals and the lines."""
        values = [v for p in self.points for v in ((p.low, p.high) if p.bounded else (p.value,))]
        values += [v for r in self.references for v in r.values.values()]
        return min(values), max(values)

    def names(self) -> list[str]:
        """What stands in the legend of its curves."""
        return list(dict.fromkeys([*(p.name for p in self.points), *(r.name for r in self.references), *self.entries]))


def _runs(xs: Sequence[Any], points: Mapping[Any, Point]) -> list[list[Any]]:
    """Stretches of neighbouring positions that all hold a bounded point: a band doesn't bridge a gap."""
    runs: list[list[Any]] = [[]]
    for x in xs:
        if x in points and points[x].bounded:
            runs[-1].append(x)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _band(xs: Sequence[Any], points: Mapping[Any, Point], style: Style, **where: Any) -> go.Scatter:
    """The intervals as a closed area, one polygon for each stretch without a gap."""
    px: list[Any] = []
    py: list[float | None] = []
    for run in _runs(xs, points):
        high = [six(points[x].high) for x in run]
        low = [six(points[x].low) for x in run]
        px += [*([None] if px else []), *run, *reversed(run)]
        py += [*([None] if py else []), *high, *reversed(low)]
    return go.Scatter(
        x=px,
        y=py,
        mode="lines",
        fill="toself",
        fillcolor=look.translucent(style.color, 0.2),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        meta="band",
        **where,
    )


def _lone_whiskers(xs: Sequence[Any], points: Mapping[Any, Point], style: Style) -> dict[str, Any] | None:
    """Whiskers for points that no band shows: those without neighbours, and those whose interval is unbounded."""
    lone = {run[0] for run in _runs(xs, points) if len(run) == 1} | {x for x, p in points.items() if not p.bounded}
    if not lone:
        return None
    up = [six(min(points[x].high, 100 * points[x].value) - points[x].value) if x in lone else 0 for x in xs]
    down = [six(points[x].value - max(points[x].low, points[x].value / 100)) if x in lone else 0 for x in xs]
    return {"array": up, "arrayminus": down, "color": look.translucent(style.color, 0.5), "thickness": 1.4, "width": 0}


def _curve(xs: Sequence[Any], points: Mapping[Any, Point], style: Style, **where: Any) -> Iterable[go.Scatter]:
    """The values with the marker of each; those that are hollow get a marker in the paper's colour drawn over theirs."""
    shown = [points.get(x) for x in xs]
    yield go.Scatter(
        x=list(xs),
        y=[six(p.value) if p else None for p in shown],
        mode="lines+markers",
        line={"color": style.color, "width": 2.2, "dash": style.dash},
        marker={"color": style.color, "symbol": style.symbol, "size": 8, "line": {"color": style.color, "width": 1.5}},
        hovertext=[p.hover if p else "" for p in shown],
        hoverinfo="text",
        error_y=_lone_whiskers(xs, points, style),
        meta="values",
        **where,
    )
    hollow = [(x, p) for x, p in zip(xs, shown, strict=True) if p and p.hollow]
    if hollow:
        yield go.Scatter(
            x=[x for x, _ in hollow],
            y=[six(p.value) for _, p in hollow],
            mode="markers",
            marker={
                "color": look.colors().paper,
                "symbol": style.symbol,
                "size": 8,
                "line": {"color": style.color, "width": 1.8},
            },
            hoverinfo="skip",
            meta="hollow",
            **{**where, "showlegend": False},
        )


def _ordered(arrangement: Arrangement, cells: Iterable[Any]) -> list[Any]:
    known = [v if arrangement.numeric else str(v) for v in arrangement.values]
    return sorted({arrangement.at(cell) for cell in cells}, key=known.index)


def curves(chart: Chart, key: str) -> go.Figure:
    """Points as curves with bands, references as lines, and, under the name `key`, what hollow markers mean."""
    plan, hollow = chart.plan, any(p.hollow for p in chart.points)
    count = len(plan.titles)
    columns = 1 if count == 1 else 2 if count <= 4 else 3
    names = [*chart.names(), *([key] if hollow else ())]
    heights = {1: 340, 2: 280, 3: 240}
    figure = frame(
        chart.heading,
        chart.subtitle,
        plan.titles,
        chart.notes,
        names,
        columns=columns,
        row_height=heights[columns],
        extra=_ticks(plan, columns)[3],
        shared_y=True,
    )
    style, seen = look.styles(chart.labels), set[str]()
    for panel in range(count):
        xaxis, yaxis = axis_names(panel)
        here = [p for p in chart.points if plan.panel[p.cell] == panel]
        xs = _ordered(plan, (p.cell for p in here))
        for reference in chart.references:
            line = {plan.at(c): v for c, v in reference.values.items() if plan.panel.get(c) == panel}
            if drawn := [x for x in xs if x in line]:
                first = reference.name not in seen
                seen.add(reference.name)
                figure.add_trace(_reference_line(reference, drawn, [line[x] for x in drawn], xaxis, yaxis, first))
        for name in dict.fromkeys(p.name for p in here):
            mine = {plan.at(p.cell): p for p in here if p.name == name}
            how = style[next(iter(mine.values())).label]
            where = {"xaxis": xaxis, "yaxis": yaxis, "legendgroup": plain(name), "name": plain(name)}
            figure.add_trace(_band(xs, mine, how, **where))
            figure.add_traces(list(_curve(xs, mine, how, showlegend=name not in seen, **where)))
            seen.add(name)
    if hollow:
        _key(figure, key)
    _style_x(figure, plan, columns)
    return figure


def _key(figure: go.Figure, name: str) -> None:
    colors = look.colors()
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=name,
            legendgroup=name,
            meta="key",
            hoverinfo="skip",
            marker={"color": colors.paper, "size": 8, "symbol": "circle", "line": {"color": colors.muted, "width": 1.8}},
        )
    )


def _reference_line(
    reference: Reference, xs: Sequence[Any], ys: Sequence[float], xaxis: str, yaxis: str, showlegend: bool
) -> go.Scatter:
    colors = look.colors()
    return go.Scatter(
        x=list(xs),
        y=[six(y) for y in ys],
        mode="lines" if len(xs) > 1 else "markers",
        line={"color": colors.ink, "width": 1.4, "dash": reference.dash},
        marker={"symbol": "line-ew-open", "size": 14, "color": colors.ink},
        name=plain(reference.name),
        legendgroup=plain(reference.name),
        showlegend=showlegend,
        hovertext=[plain(reference.hover)] * len(xs),
        hoverinfo="text+y",
        meta="reference",
        xaxis=xaxis,
        yaxis=yaxis,
    )


def _ticks(plan: Arrangement, columns: int) -> tuple[list[Any], list[str], int, int]:
    """Tick positions, their texts, their angle, and px beyond one line of text, so that none covers another in the narrowest figure."""
    room = (NARROW - LEFT - RIGHT) / columns * 0.9
    if not plan.numeric:
        ticks, characters = [str(v) for v in plan.values], int(room / len(plan.values) / 7.2)
        upright = characters < 6
        lines = [[t] if upright else wrapped(t, characters) for t in ticks]
        extra = 7 * max(map(len, ticks)) if upright else 16 * (max(map(len, lines)) - 1)
        return ticks, ["<br>".join(map(plain, each)) for each in lines], 90 if upright else 0, extra
    scale = [math.log(v) if plan.log else v for v in plan.values]
    width = max(scale) - min(scale)
    kept, texts, end = list[Any](), list[str](), -math.inf
    for value, at in zip(plan.values, scale, strict=True):
        text = f"{value:g}" if isinstance(value, float) else str(value)
        middle, half = room * (at - scale[0]) / width, 3.7 * len(text) + 3
        if middle - half >= end:
            kept.append(value)
            texts.append(text)
            end = middle + half
    return kept, texts, 0, 0


def _style_x(figure: go.Figure, plan: Arrangement, columns: int) -> None:
    ticks, texts, angle, _ = _ticks(plan, columns)
    axis: dict[str, Any] = {"tickmode": "array", "tickvals": ticks, "ticktext": texts, "tickangle": angle}
    if not plan.numeric:
        axis |= {"type": "category", "categoryorder": "array", "categoryarray": [str(v) for v in plan.values]}
    elif plan.log:
        axis["type"] = "log"
    figure.update_xaxes(axis)
    count = len(plan.titles)
    for panel in range(count):
        if panel + columns >= count:  # nothing stands below it
            figure.layout["xaxis" + axis_names(panel)[0][1:]].title.text = plain(plan.x)


def bars(chart: Chart) -> go.Figure:
    """Points as horizontal bars with whiskers, one row for each name in each panel; rows without a value show their status."""
    plan, colors, seen = chart.plan, look.colors(), set[str]()
    rows = [_bar_rows(chart, panel) for panel in range(len(plan.titles))]
    height = 46 * max(len(here) + len(gone) for here, gone in rows) + 12
    legend = [r.name for r in chart.references] + list(chart.entries)
    names = [name for here, gone in rows for name in (*(p.name for p in here), *gone)]
    widest = max(
        len(line) for line in (*(p.text for p in chart.points), *(part for name in names for part in wrapped(name, 26)))
    )
    figure = frame(
        chart.heading, chart.subtitle, plan.titles, chart.notes, legend, row_height=height, left=round(6.6 * widest) + 24
    )
    style = look.styles(chart.labels)
    for panel, (here, gone) in enumerate(rows):
        xaxis, yaxis = axis_names(panel)
        figure.add_trace(_bar_trace(here, style, chart.span, xaxis, yaxis))
        for row, status in enumerate(gone.values(), len(here)):
            where = {"xref": f"{xaxis} domain", "yref": yaxis, "x": 0, "y": row, "xanchor": "left", "xshift": 6}
            figure.add_annotation(text=f"<i>{plain(status)}</i>", showarrow=False, font={"color": colors.muted}, **where)
        ends = (-0.5, len(here) + len(gone) - 0.5)
        for reference in chart.references:
            for value in dict.fromkeys(v for c, v in reference.values.items() if plan.panel.get(c) == panel):
                line = _reference_line(reference, ends, (value, value), xaxis, yaxis, reference.name not in seen)
                seen.add(reference.name)
                figure.add_trace(line.update(x=line.y, y=line.x, mode="lines", hoverinfo="text+x"))
        ticks = [*(f"{_folded(p.name)}<br>{plain(p.text)}" for p in here), *map(_folded, gone)]
        figure.layout["yaxis" + yaxis[1:]].update(
            range=ends[::-1], tickmode="array", tickvals=list(range(len(ticks))), ticktext=ticks, ticks="", showgrid=False
        )
    figure.update_xaxes(range=[0, 1.05 * chart.span[1]])
    return figure


def _bar_rows(chart: Chart, panel: int) -> tuple[list[Point], dict[str, str]]:
    """A panel's points, and name -> status of the rows that have none."""
    here = [p for p in chart.points if chart.plan.panel[p.cell] == panel]
    names = {p.name for p in here}
    return here, {
        name: status for cell, name, status in chart.absent if chart.plan.panel.get(cell) == panel and name not in names
    }


def _folded(name: str) -> str:
    return "<br>".join(map(plain, wrapped(name, 26)))


def _bar_trace(
    points: Sequence[Point], style: Mapping[str, Style], span: tuple[float, float], xaxis: str, yaxis: str
) -> go.Bar:
    ink = look.colors().ink
    return go.Bar(
        orientation="h",
        x=[six(p.value) for p in points],
        y=list(range(len(points))),
        width=0.62,
        customdata=[plain(p.name) for p in points],
        marker={
            "color": [style[p.label].color for p in points],
            "pattern": {"shape": ["/" if p.hollow else "" for p in points], "fillmode": "replace", "size": 6, "solidity": 0.35},
        },
        error_x={
            "array": [six(min(p.high, 10 * span[1]) - p.value) for p in points],
            "arrayminus": [six(p.value - max(p.low, 0.0)) for p in points],
            "color": ink,
            "thickness": 1.4,
            "width": 5,
        },
        hovertext=[p.hover for p in points],
        hoverinfo="text",
        showlegend=False,
        meta="values",
        xaxis=xaxis,
        yaxis=yaxis,
    )
