"""A Roofline as a Plotly figure: the roof of each arithmetic type, and a point for every part that has FLOPs and bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from kpt_lab import look
from kpt_lab.hardware.probe import quantity
from kpt_lab.look import plain, six

if TYPE_CHECKING:
    from kpt_lab.hardware.roofline import Roofline, Row

_REACH = 3.0  # the axis goes on by this factor beyond the points and the ridges


def figure(found: Roofline) -> go.Figure:
    """Achieved FLOP/s (or, predicted, the most that the bound allows) against FLOP per byte, below the target's roofs.

    ValueError where nothing has both FLOPs and bytes.
    """
    shown = [row for row in (*found.parts, found.whole) if row.intensity]
    if not shown:
        raise ValueError(f"no part of {found.whole.name} has FLOPs and bytes, so nothing can stand under a roof")
    kinds = list(dict.fromkeys(kind for row in shown for kind, work in row.cost.flops.items() if work))
    hidden = [row.name for row in (*found.parts, found.whole) if not row.intensity]
    notes = [*filter(None, found.notes()), *([f"Not shown, without FLOPs or bytes: {', '.join(hidden)}."] if hidden else [])]
    classes = list(dict.fromkeys(row.kind for row in shown))
    names = [*classes, *(f"roof, {kind}" for kind in kinds)]
    under = f"{found.dtype}; {'measured on ' + found.device if found.device else 'modelled: points stand on the roof'}"
    drawn = look.frame(f"{found.whole.name}: roofline of {found.target.name}", under, [""], notes, names, row_height=400)
    reach = [row.intensity.value for row in shown if row.intensity]
    reach += [found.target.peaks[kind] / found.target.bandwidth for kind in kinds]
    low, high = min(reach) / _REACH, max(reach) * _REACH
    for index, kind in enumerate(kinds):
        drawn.add_trace(_roof(found, kind, low, high, look.DASHES[index % len(look.DASHES)]))
    for name, style in look.styles(classes).items():
        drawn.add_trace(_points([row for row in shown if row.kind == name], name, style, bool(found.device)))
    decades = {"type": "log", "dtick": 1, "tickformat": "~s"}
    drawn.update_xaxes(title="arithmetic intensity (FLOP per byte)", range=[math.log10(low), math.log10(high)], **decades)
    drawn.update_yaxes(title="achieved (FLOP/s)" if found.device else "at most (FLOP/s)", **decades)
    return drawn


def _roof(found: Roofline, kind: str, low: float, high: float, dash: str) -> go.Scatter:
    target = found.target
    peak, bandwidth = target.peaks[kind] * target.count, target.bandwidth * target.count
    xs = [low, peak / bandwidth, high]
    return go.Scatter(
        x=[six(x) for x in xs],
        y=[six(min(peak, bandwidth * x)) for x in xs],
        mode="lines",
        line={"color": look.colors().ink, "width": 1.8, "dash": dash},
        name=f"roof, {plain(kind)}",
        hoverinfo="name",
        meta="roof",
    )


def _points(rows: list[Row], name: str, style: look.Style, measured: bool) -> go.Scatter:
    symbol = style.symbol if measured else f"{style.symbol}-open"
    return go.Scatter(
        x=[six(row.intensity.value) for row in rows if row.intensity],
        y=[six(row.rate.value) for row in rows if row.rate],
        mode="markers",
        name=plain(name),
        marker={"color": style.color, "symbol": symbol, "size": 9},
        error_y=_whiskers(rows, style.color) if measured else None,
        hovertext=[_words(row) for row in rows],
        hoverinfo="text",
        meta="values",
    )


def _whiskers(rows: list[Row], color: str) -> dict[str, Any]:
    """The interval of each rate, where there is one."""
    rates = [row.rate for row in rows if row.rate]
    up = [six(rate.high - rate.value) if rate.high else 0.0 for rate in rates]
    down = [six(rate.value - rate.low) if rate.low else 0.0 for rate in rates]
    return {"array": up, "arrayminus": down, "color": color, "thickness": 1.4, "width": 4}


def _words(row: Row) -> str:
    lines = [f"<b>{plain(row.name)}</b> ({plain(row.kind)}, {row.calls} call{'s' * (row.calls != 1)})"]
    if row.time is None:
        lines.append(f"{plain(row.remark) or 'modelled'}; bound {quantity(row.bound)} by {row.side}")
    else:
        lines.append(f"{quantity(row.time)}, bound {quantity(row.bound)} by {row.side}")
    if row.share and row.rate:
        lines.append(f"{quantity(row.rate)}, {row.share.value:.0%} of the bound")
    return "<br>".join(lines)
