"""How the figures look: two Plotly templates, colours that colour-blind readers can tell apart, and text that Plotly can't misread.

Colour is never the only cue: a technique also has a dash and a marker symbol. Colours follow Okabe and Ito (Color Universal
Design, jfly.uni-koeln.de/color), darkened on light paper and lightened on dark paper where their contrast falls below 2.5.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots


class Theme(NamedTuple):
    """The colours of one template: paper, ink (text, bound), muted (notes), grid, the SAME region, eager, techniques, and a
    diverging scale from slower to faster."""

    paper: str
    ink: str
    muted: str
    grid: str
    same: str
    eager: str
    palette: tuple[str, ...]
    diverging: tuple[str, ...]


class Style(NamedTuple):
    """How one technique is drawn."""

    color: str
    dash: str
    symbol: str


THEMES = {
    "light": Theme(
        paper="#ffffff",
        ink="#1a1a1a",
        muted="#555555",
        grid="#e4e4e4",
        same="#dcdcdc",
        eager="#7a7a7a",
        palette=("#0072b2", "#d55e00", "#009e73", "#b8568f", "#c98500", "#3a9ad9"),
        diverging=("#8c3b00", "#d9753a", "#f3c9ab", "#f4f4f4", "#aed3ea", "#3f8fc4", "#0a4a78"),
    ),
    "dark": Theme(
        paper="#14171a",
        ink="#ececec",
        muted="#b4b4b4",
        grid="#33383d",
        same="#3a4046",
        eager="#a8a8a8",
        palette=("#56b4e9", "#ff8a4c", "#2bc79a", "#e39ac3", "#f0b429", "#f0e442"),
        diverging=("#ffb98c", "#e07a3c", "#7d4526", "#2a2e32", "#25567a", "#4a9fd4", "#a6daf7"),
    ),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
FONT = '"Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif'
NOTE_SIZE = 11  # px
LINE = 15  # px between the lines of a note
LEFT, RIGHT = 72, 22  # px of the margins
NARROW = 700  # px: the narrowest figure that must read well

_chosen = "light"


def theme(name: str | None = None) -> str:
    """Choose the look of the figures made from now on, "light" or "dark"; returns the chosen name, also without argument."""
    global _chosen
    if name is not None:
        if name not in THEMES:
            raise ValueError(f"name is {name!r}; accepted are {', '.join(map(repr, THEMES))}")
        _chosen = name
    return _chosen


def colors() -> Theme:
    """The colours of the theme in force."""
    return THEMES[_chosen]


def _template(look: Theme) -> go.layout.Template:
    axis = {
        "gridcolor": look.grid,
        "linecolor": look.muted,
        "tickcolor": look.muted,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    layout = go.Layout(
        font={"family": FONT, "size": 12.5, "color": look.ink},
        title={"font": {"size": 16, "color": look.ink}},
        paper_bgcolor=look.paper,
        plot_bgcolor=look.paper,
        colorway=look.palette,
        hoverlabel={"align": "left", "bgcolor": look.paper, "bordercolor": look.muted, "font": {"color": look.ink, "size": 12}},
        legend={"bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}},
        xaxis=axis,
        yaxis=axis,
    )
    return go.layout.Template(layout=layout)


for _name, _look in THEMES.items():
    pio.templates[f"kpt_{_name}"] = _template(_look)


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A colour, dash and symbol for each label in order of first appearance; eager is grey. Unique up to 24 labels."""
    look, found = colors(), {}
    for label in dict.fromkeys(labels):
        if label == "eager":
            found[label] = Style(look.eager, "solid", "circle")
        else:
            i = len(found) - ("eager" in found)
            n = len(look.palette)
            found[label] = Style(look.palette[i % n], DASHES[(i + 1 + i // n) % len(DASHES)], SYMBOLS[(i + 1) % len(SYMBOLS)])
    return found


def translucent(color: str, opacity: float) -> str:
    """A hex colour as rgba."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def plain(text: object) -> str:
    """Text that Plotly prints as it is: its pseudo-HTML and MathJax marks are escaped and white space is collapsed."""
    words = " ".join(str(text).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("$", "&#36;")


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; words longer than that are cut."""
    return textwrap.wrap(text, width) or [""]


def six(value: float | None) -> float | None:
    """The number at six significant digits, or None where it isn't finite: JSON has no NaN."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def quantity(value: float, unit: str) -> str:
    """A number with its unit for readers: "120 µs", "1.2 GB", "3.2e-05"."""
    if unit not in ("s", "B", "J", "FLOP/s", "B/s", "W") or not value or not math.isfinite(value):
        return f"{value:.3g}" + (f" {unit}" if unit not in ("", "1") else "")
    prefixes = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
    rounded = float(f"{value:.3g}")  # 999.9e-6 is 1 ms, not 1e+03 µs
    power = min(max(3 * math.floor(math.log10(abs(rounded)) / 3), -12), 15)
    return f"{rounded / 10.0**power:.3g} {prefixes[power]}{unit}"


def _legend_rows(entries: Iterable[str]) -> int:
    """Rows that a legend with one group for each entry takes in the narrowest figure."""
    rows, used = 0, float(NARROW)
    for name in dict.fromkeys(entries):
        width = 6.4 * len(name) + 50
        if used + width > NARROW - LEFT - RIGHT:
            rows, used = rows + 1, 0.0
        used += width
    return rows


def frame(
    heading: str,
    subtitle: str,
    titles: Sequence[str],
    notes: Sequence[str],
    entries: Iterable[str] = (),
    *,
    columns: int = 1,
    row_height: int = 330,
    left: int = LEFT,
    extra: int = 0,
    shared_y: bool = False,
) -> go.Figure:
    """An empty figure: title, room for the legend's `entries`, panels, and notes `extra` px below the axis's usual room."""
    theme_colors = colors()
    rows, legend_rows = math.ceil(len(titles) / columns), _legend_rows(entries)
    under = wrapped(subtitle, 118)
    lines = [line for note in notes for line in wrapped(note, 124)]
    titled = any(titles)
    above = 21 * legend_rows + (22 if titled else 4)
    top, bottom, gap = 41 + 21 * len(under) + above + 6, 52 + extra + LINE * len(lines) + 10, 66 + extra
    plot = rows * row_height + (rows - 1) * gap
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[plain(t) for t in titles] if titled else None,
        horizontal_spacing=(0.04 if shared_y else 0.09) if columns > 1 else 0.0,
        vertical_spacing=gap / plot if rows > 1 else 0.0,
        shared_yaxes="all" if shared_y else False,
    )
    figure.update_annotations(font={"size": 12.5, "color": theme_colors.ink})
    small = f'<span style="font-size:12px;color:{theme_colors.muted}">{"<br>".join(map(plain, under))}</span>'
    place = {
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"l": 12, "t": 20},
    }
    low = 1 + (above - 21 * legend_rows) / plot
    figure.update_layout(
        template=f"kpt_{theme()}",
        height=plot + top + bottom,
        margin={"l": left, "r": RIGHT, "t": top, "b": bottom},
        title={"text": f"<b>{plain(heading)}</b><br>{small}", **place},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": low, "yanchor": "bottom", "tracegroupgap": 0},
    )
    if lines:
        where = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left", "yanchor": "top"}
        shift = {"xshift": 12 - left, "yshift": -50 - extra, "align": "left", "showarrow": False}
        font = {"size": NOTE_SIZE, "color": theme_colors.muted}
        figure.add_annotation(name="notes", text="<br>".join(map(plain, lines)), font=font, **where, **shift)
    return figure


def axis_names(panel: int) -> tuple[str, str]:
    """The x and y axis of a panel as traces and shapes name them: ("x2", "y2")."""
    suffix = "" if panel == 0 else str(panel + 1)
    return f"x{suffix}", f"y{suffix}"
