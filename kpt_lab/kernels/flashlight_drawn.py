"""FlashLight's notebooks in pictures: cards of variants, each with its mask's blocks, and a figure to drag a mask in."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kpt_lab import look
from kpt_lab.kernels import flashlight_story as story
from kpt_lab.kernels.flashlight import gallery

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELL = 10  # px of a block in a card
KINDS = ("skipped", "partial", "full")


# ---- cards


def svg(found: story.Blocks, name: str) -> str:
    """A mask's blocks as SVG: a full block is a square, a partial one a triangle, a skipped one is empty."""
    rows, columns = found.full.shape
    width, height = columns * CELL, rows * CELL
    full = "".join(f"M{x * CELL} {y * CELL}h{CELL}v{CELL}h-{CELL}z" for y, x in found.full.nonzero().tolist())
    part = "".join(f"M{x * CELL} {y * CELL}v{CELL}h{CELL}z" for y, x in found.partial.nonzero().tolist())
    colors = look.THEMES["light"].palette
    told = f"{name}: {int(found.full.sum())} full and {int(found.partial.sum())} partial blocks of {rows * columns}"
    return (
        f'<svg role="img" aria-label="{html.escape(told)}" viewBox="-1 -1 {width + 2} {height + 2}" width="{width + 2}" '
        f'style="max-width:100%;height:auto"><rect width="{width}" height="{height}" fill="none" stroke="#888888"/>'
        f'<path d="{full}" fill="{colors[0]}"/><path d="{part}" fill="{colors[1]}"/></svg>'
    )


def card(variant: gallery.Variant, seen: story.Seen, found: story.Blocks) -> str:
    """A variant as HTML: its map, what it is and from where, its mathematics, its lowering on this machine, and its code."""
    done = seen.lowerings[0]
    code = 'style="white-space:pre-wrap;overflow-wrap:anywhere"'
    share = f"needs {found.needed:.1%} of the pairs, computes {found.computed:.1%}"
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;margin:0 0 22px">'
        f'<div style="flex:0 0 {16 * CELL + 2}px">{svg(found, variant.name)}</div>'
        '<div style="flex:1 1 260px;min-width:0">'
        f"<div><b>{html.escape(variant.name)}</b>: {_prose(variant.description)} <i>{html.escape(variant.origin)}</i></div>"
        f"<div><code {code}>{html.escape(seen.pattern)}</code></div>"
        f"<div>{share}; lowered here to <b>{done.kernel}</b></div>"
        f"<details><summary>its code</summary><pre {code}>{html.escape(gallery.source(variant.function))}</pre></details></div></div>"
    )


def _prose(text: str) -> str:
    """A sentence with its `code` marked as HTML does."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def cards(looked: Iterable[tuple[gallery.Variant, story.Seen, story.Blocks]]) -> str:
    """The cards of several variants, below each other, with what the shapes in their maps mean."""
    colors = look.THEMES["light"].palette
    square = f'<svg width="11" height="11" aria-hidden="true"><path d="M0 0h10v10h-10z" fill="{colors[0]}"/></svg>'
    triangle = f'<svg width="11" height="11" aria-hidden="true"><path d="M0 0v10h10z" fill="{colors[1]}"/></svg>'
    size = story.blocks.BLOCK
    key = f"Queries downwards, keys to the right, blocks of {size} by {size}. {square} full, {triangle} partial: the mask is asked for each pair; empty: skipped."
    return f"<p>{key}</p>{''.join(card(*each) for each in looked)}"


# ---- a mask to drag


class Family(NamedTuple):
    """Masks that differ in one number: what it is called, its values, the one shown first, and the attention for each."""

    name: str
    number: str
    values: tuple[int, ...]
    first: int
    at: Callable[[int, int], story.Seen]


def _changed(function: Callable[..., Tensor], **fixed: Any) -> Callable[[int, int], story.Seen]:
    (number,) = fixed

    def at(value: int, length: int) -> story.Seen:
        given = gallery.by_name(function.__name__).arguments(length, 1, 1)
        return story.look_at(functools.partial(function, **{number: value}), given)

    return at


def _documents(count: int, length: int) -> story.Seen:
    q, k, v, _ = gallery.by_name("packed_documents").arguments(length, 1, 1)
    begins = torch.zeros(1, length, dtype=torch.int64)
    begins[0, [i * length // count for i in range(count)]] = 1
    return story.look_at(gallery.packed_documents, (q, k, v, begins))


def _offset(cached: int, length: int) -> story.Seen:
    q, k, v = gallery.by_name("causal").arguments(length, 1, 1)
    return story.look_at(gallery.chunk_of_prompt, (q[:, :, : length - cached].contiguous(), k, v))


FAMILIES = (
    Family("sliding window", "window", (64, 128, 256, 512, 1024), 2, _changed(gallery.sliding_window, window=0)),
    Family("prefix", "prefix", (64, 256, 512, 1024, 1536), 2, _changed(gallery.prefix_lm, prefix=0)),
    Family("chunks", "length of a chunk", (64, 128, 200, 512, 1024), 3, _changed(gallery.chunked, chunk=0)),
    Family("documents", "documents", (2, 4, 7, 16, 32), 2, _documents),
    Family("a piece of a prompt", "cached tokens before it", (256, 512, 1024, 1536, 1920), 2, _offset),
    Family("dilated", "step", (2, 4, 8, 64, 256), 1, _changed(gallery.dilated, step=0)),
)


def looked(length: int, families: Sequence[Family] = FAMILIES) -> dict[tuple[str, int], story.Blocks]:
    """The blocks of each family's masks, by family and value."""
    return {(f.name, value): story.blocks_of(f.at(value, length)) for f in families for value in f.values}


def masks(found: Mapping[tuple[str, int], story.Blocks], families: Sequence[Family] = FAMILIES) -> go.Figure:
    """A figure with a menu of families and a slider over each one's number: blocks, and the shares needed and computed."""
    figure = _frame("Which blocks does a mask leave?", "derived from the code's own mask; choose a mask, then drag its number")
    places = [(f, value) for f in families for value in f.values]
    start = (families[0], families[0].values[families[0].first])
    for place in places:
        figure.add_trace(_heat(found[place[0].name, place[1]]).update(visible=place == start))

    def shown(chosen: tuple[Family, int]) -> list[dict[str, Any]]:
        return [
            {"visible": [True] * len(KINDS) + [place == chosen for place in places]},
            _axes(found[chosen[0].name, chosen[1]]),
        ]

    sliders = [_slider(f, [shown((f, value)) for value in f.values], f is families[0]) for f in families]
    buttons = []
    for family in families:
        traces, layout = shown((family, family.values[family.first]))
        for i, other in enumerate(families):
            layout |= {f"sliders[{i}].visible": other is family, f"sliders[{i}].active": other.first}
        buttons.append({"method": "update", "label": family.name, "args": [traces, layout]})
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 54}, "bgcolor": "#f6f7f8",
            "font": {"color": "#1a1a1a"}}  # fmt: skip
    figure.update_layout(sliders=sliders, updatemenus=[menu], **shown(start)[1])
    return figure.update_layout(height=figure.layout.height + 162, margin={"t": figure.layout.margin.t + 62, "b": 170})


def mask(found: story.Blocks, heading: str) -> go.Figure:
    """The same for one mask, without menu and slider."""
    figure = _frame(heading, "derived from the code's own mask")
    figure.add_trace(_heat(found))
    return figure.update_layout(**_axes(found))


def _frame(heading: str, subtitle: str) -> go.Figure:
    names = [f"{kind} block" for kind in KINDS]
    figure = look.frame(heading, subtitle, [""], [], names, row_height=380, left=52)
    for name, color in zip(names, _colors(), strict=True):
        line = {"width": 1, "color": look.colors().muted}
        marker = {"symbol": "square", "size": 10, "color": color, "line": line}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)
    ticks = {"showgrid": False, "ticks": "", "constrain": "domain"}
    figure.update_xaxes(dtick=2, **ticks)
    return figure.update_yaxes(title="block of queries", dtick=2, autorange="reversed", scaleanchor="x", **ticks)


def _colors() -> tuple[str, str, str]:
    palette = look.colors().palette
    return "rgba(136,136,136,0.12)", palette[1], palette[0]


def _heat(found: story.Blocks) -> go.Heatmap:
    import plotly.graph_objects as go

    kinds = (found.full * 2 + found.partial).tolist()
    scale = [(edge / 3, color) for i, color in enumerate(_colors()) for edge in (i, i + 1)]
    text = [[KINDS[kind] for kind in row] for row in kinds]
    return go.Heatmap(
        z=kinds, zmin=-0.5, zmax=2.5, colorscale=scale, showscale=False, xgap=1, ygap=1, text=text,
        hovertemplate="block of queries %{y}, of keys %{x}: %{text}<extra></extra>",
    )  # fmt: skip


def _axes(found: story.Blocks) -> dict[str, str]:
    told = f"block of keys<br>pairs needed {found.needed:.1%}, computed {found.computed:.1%}"
    return {"xaxis.title.text": told}


def _slider(family: Family, states: Sequence[list[dict[str, Any]]], visible: bool) -> dict[str, Any]:
    stops = [
        {"method": "update", "label": str(value), "args": state} for value, state in zip(family.values, states, strict=True)
    ]
    current = {"prefix": f"{family.number}: "}
    return {"active": family.first, "visible": visible, "pad": {"t": 70}, "currentvalue": current, "steps": stops}


# ---- bounds of q - k, a row of blocks at a time


def band(found: story.Blocks, window: int) -> go.Figure:
    """For a mask 0 <= q - k < window, with a slider over the rows of blocks: the interval of q - k in each block, and what it decides."""
    rows = found.full.shape[0]
    start = rows // 2
    figure = _bands(found, window, range(rows), start)
    stops = [
        {"method": "update", "label": str(row), "args": [{"visible": [True] * len(KINDS) + [r == row for r in range(rows)]}]}
        for row in range(rows)
    ]
    slider = {"active": start, "pad": {"t": 88}, "currentvalue": {"prefix": "row of blocks: "}, "steps": stops}
    return figure.update_layout(sliders=[slider], height=figure.layout.height + 110, margin={"b": figure.layout.margin.b + 110})


def band_row(found: story.Blocks, window: int, row: int) -> go.Figure:
    """The same for one row of blocks, without the slider."""
    return _bands(found, window, [row], row)


def _bands(found: story.Blocks, window: int, rows: Iterable[int], shown: int) -> go.Figure:
    size, names = story.blocks.BLOCK, [f"{kind} block" for kind in KINDS]
    note = "A bar reaches from the least to the largest q - k of a block; the grey band is what the mask leaves."
    figure = look.frame(
        "What an interval decides", f"0 ≤ q - k < {window}, blocks of {size}", [""], [note], names, row_height=320
    )
    colors = ("rgba(136,136,136,0.55)", *_colors()[1:])
    for name, color in zip(names, colors, strict=True):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, marker={"symbol": "square", "size": 10, "color": color}
        )
    for row in rows:
        columns = range(found.full.shape[1])
        lows = [row * size - (column * size + size - 1) for column in columns]
        kinds = (found.full[row] * 2 + found.partial[row]).tolist()
        figure.add_bar(
            x=list(columns), y=[2 * size - 2] * len(lows), base=lows, marker={"color": [colors[kind] for kind in kinds]},
            visible=row == shown, showlegend=False, text=[KINDS[kind][0] for kind in kinds],
            hovertemplate="block of keys %{x}: q - k from %{base} on<extra></extra>",
        )  # fmt: skip
    figure.add_hrect(y0=0, y1=window, fillcolor="rgba(136,136,136,0.3)", line_width=0, layer="below")
    reach = found.full.shape[1] * size
    figure.update_yaxes(title="q - k", range=[-reach, reach])
    return figure.update_xaxes(title="block of keys", dtick=2)
