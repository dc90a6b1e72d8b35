"""A notebook's Plotly figure as HTML: its title and notes as text, its points as a table, the rest as JSON for the page's script."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MIME = "application/vnd.plotly.v1+json"
TITLE_LINE, NOTE_LINE, HEAD = 21, 15, 41
"""px: what kpt_lab.look.frame keeps free for a line under the heading, a line of the notes, and the heading itself."""

MOST_POINTS = 150
"""A figure with more points gets no table."""


class Parts(NamedTuple):
    """A figure taken apart: heading, what stands below it, notes as lines, and the figure without them."""

    heading: str
    under: str
    notes: str
    figure: dict[str, Any]


def plain(text: str) -> str:
    """Plotly's pseudo-HTML as plain text: marks removed, breaks as spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<br\s*/?>", " ", text))).split())


def parts(figure: Mapping[str, Any]) -> Parts:
    """The figure's text apart from the drawing, which gets smaller by the room that the text took."""
    layout = dict(figure.get("layout", {}))
    title = layout.pop("title", None) or {}
    text = title.get("text", "") if isinstance(title, Mapping) else str(title)
    first, _, rest = text.partition("<br>")
    margin, height = dict(layout.get("margin", {})), layout.get("height")
    notes = [a for a in layout.get("annotations", ()) if a.get("name") == "notes"]
    cut = {"t": 0, "b": 0}
    if text and "t" in margin:
        cut["t"] = HEAD + TITLE_LINE * (rest.count("<br>") + 1) if rest else HEAD
    if notes and "b" in margin:
        cut["b"] = NOTE_LINE * sum(a["text"].count("<br>") + 1 for a in notes)
    for side, px in cut.items():
        if px:
            margin[side] = max(margin[side] - px, 8)
    if isinstance(height, int | float):
        layout["height"] = height - sum(cut.values())
    if margin:
        layout["margin"] = margin
    if notes:
        layout["annotations"] = [a for a in layout["annotations"] if a.get("name") != "notes"]
    layout.pop("template", None)  # the page's own, light or dark
    said = " ".join(plain(a["text"]) for a in notes)
    return Parts(plain(first), plain(rest), said, {"data": figure.get("data", []), "layout": layout})


def values(column: Any) -> list[Any]:
    """A trace's numbers or names as a list; Plotly stores some as base64 of their bytes. Empty for what is no flat column."""
    if isinstance(column, Mapping) and "bdata" in column:
        if "," in str(column.get("shape", "")):
            return []
        return np.frombuffer(base64.b64decode(column["bdata"]), np.dtype(column["dtype"].removesuffix("c"))).tolist()
    if isinstance(column, Sequence) and not isinstance(column, str) and not any(isinstance(v, list | Mapping) for v in column):
        return list(column)
    return []


def points(figure: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Each drawn point as (series, x, y, interval) in text; none where there are too many, or they aren't points."""
    found = []
    for trace in figure.get("data", ()):
        xs, ys = values(trace.get("x")), values(trace.get("y"))
        xs = xs or list(range(len(ys)))
        if trace.get("type", "scatter") not in ("scatter", "scattergl", "bar") or len(xs) != len(ys):
            continue
        if trace.get("fill") in ("toself", "tonext", "tonexty") or trace.get("visible") == "legendonly" or not any(xs):
            continue
        along = "x" if trace.get("orientation") == "h" or "error_x" in trace else "y"
        spans = _spans(trace.get(f"error_{along}"), xs if along == "x" else ys)
        name = plain(str(trace.get("name", "")))
        found += [(name, _said(x), _said(y), span) for x, y, span in zip(xs, ys, spans, strict=True) if None not in (x, y)]
    return found if len(found) <= MOST_POINTS else []


def _spans(error: Any, middles: Sequence[Any]) -> list[str]:
    """The whiskers' ends as text, "" where there are none."""
    high = values((error or {}).get("array"))
    low = values((error or {}).get("arrayminus")) or high
    if len(high) != len(middles) or len(low) != len(middles):
        return [""] * len(middles)
    sided = zip(middles, low, high, strict=True)
    return ["" if None in (m, a, b) or isinstance(m, str) else f"{_said(m - a)} to {_said(m + b)}" for m, a, b in sided]


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


def axis_name(layout: Mapping[str, Any], axis: str) -> str:
    """The title of the first axis of that kind that has one, else "x" or "y"."""
    titles = [
        value.get("title") for name, value in layout.items() if name.startswith(f"{axis}axis") and isinstance(value, Mapping)
    ]
    texts = [title.get("text", "") if isinstance(title, Mapping) else str(title or "") for title in titles]
    return plain(next(filter(None, texts), axis))


def table(figure: Mapping[str, Any]) -> str:
    """The figure's points as an HTML table in a closed <details>; "" where there are none to list."""
    rows = points(figure)
    if not rows:
        return ""
    layout = figure.get("layout", {})
    head = ("series", axis_name(layout, "x"), axis_name(layout, "y"), *(["interval"] if any(row[3] for row in rows) else []))
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(v)}</td>' for v in row[: len(head)])}</tr>" for row in rows)
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    inside = (
        f'<div class="table-wrapper"><table class="docutils"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    return f'<details class="site-points"><summary>The points of this figure</summary>{inside}</details>'


def script_json(value: Any) -> str:
    """JSON that can stand inside a <script> element: nothing in it closes the element or opens a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plot_html(figure: Mapping[str, Any]) -> str:
    """The figure as HTML: text around an empty box that site.js draws into, its points as a table, a sentence without scripts.

    ValueError for what is no figure: a mapping with a list "data".
    """
    if not isinstance(figure.get("data"), list):
        raise ValueError(f"figure has the keys {', '.join(map(repr, figure))}; accepted is Plotly's JSON with a list 'data'")
    heading, under, notes, rest = parts(figure)
    layout = rest["layout"]
    name = heading or f"{axis_name(layout, 'y')} over {axis_name(layout, 'x')}"
    beside = any(
        isinstance(v, Mapping) and v.get("domain", [0, 1])[1] < 0.7 for k, v in layout.items() if k.startswith("xaxis")
    )
    height = layout.get("height", 450)
    head = f"<strong>{html.escape(heading)}</strong>" if heading else ""
    head += f"<span>{html.escape(under)}</span>" if under else ""
    return "".join(
        (
            f'<figure class="site-plot{" site-wide" if beside else ""}" aria-label="{html.escape(name)}">',
            f'<div class="site-plot-head">{head}</div>' if head else "",
            f'<div class="site-scroll"><div class="site-plot-box" style="height:{height}px"></div></div>',
            f'<script type="application/json">{script_json(rest)}</script>',
            '<noscript><p class="site-noscript">This figure is drawn by a script of this site; its points stand in the table below.</p>'
            "</noscript>",
            f"<figcaption>{html.escape(notes)}</figcaption>" if notes else "",
            table(rest),
            "</figure>",
        )
    )


def look_script() -> str:
    """A script that sets window.kptLook: Plotly's templates light and dark, and which light colour becomes which dark one."""
    import plotly.io as pio

    from kpt_lab.look import THEMES

    light, dark = ([c for colour in THEMES[name] for c in ([colour] if isinstance(colour, str) else colour)] for name in THEMES)
    templates = {name: json.loads(pio.templates[f"kpt_{name}"].to_json()) for name in THEMES}
    return f"window.kptLook = {script_json({'templates': templates, 'swap': dict(zip(light, dark, strict=True))})};\n"
