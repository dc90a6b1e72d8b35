"""Ring attention for its notebook: who computes what in which step, what travels, what is held, as counts and figures.

The plan is read from `ring_steps.Ring`, which the attention itself asks, so a picture of it can't differ from what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kpt_lab import look
from kpt_lab.core import Metric, Target, Trials, to_dtype
from kpt_lab.kernels import ring_steps

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOW = (
    "`torchrun --standalone --nproc-per-node 2 benchmarks/ring_attention.py --record notebooks/phase1/results/attention/ring.h100-sxm.jsonl` "
    "on two GPUs of one host"
)
NVLINK = Metric(
    450e9, "B/s", "quoted",
    source="NVIDIA H100 Tensor Core GPU data sheet, H100 SXM: NVLink 900 GB/s, both directions together, so half of it each way",
)  # fmt: skip
PANELS = ("contiguous", "zigzag")


def recorded(folder: str | Path = "results") -> Trials:
    """The Trials of ring attention that were recorded on GPUs; none where nothing is recorded yet."""
    from kpt_lab.records import load

    files = sorted(Path(folder).glob("ring.*.jsonl"))
    return load(files).where(device="cuda") if files else Trials()


# ---- the plan


class Block(NamedTuple):
    """A square of the matrix of scores: who computes it when, its chunk of queries and of keys (of 2n), and the share that is needed."""

    rank: int
    step: int
    queries: int
    keys: int
    share: float


def plan(layout: str, causal: bool, count: int) -> list[Block]:
    """Every block that `count` ranks compute, in chunks of which each rank holds two; a block on the diagonal counts half."""
    found = []
    for rank in range(count):
        place = ring_steps.Ring(rank, count, None, layout, causal, 1.0, None)
        for step in range(count):
            source = place.before(step)
            needs = (slice(0, 2), slice(0, 2)) if step == 0 else place.needs(rank, source, 2)
            for i, j in _halves(needs):
                if step == 0 and causal and j > i:
                    continue
                share = 0.5 if step == 0 and causal and i == j else 1.0
                found.append(Block(rank, step, chunks(layout, rank, count)[i], chunks(layout, source, count)[j], share))
    return found


def _halves(needs: tuple[slice, slice] | None) -> list[tuple[int, int]]:
    return [(i, j) for i in range(2)[needs[0]] for j in range(2)[needs[1]]] if needs else []


def chunks(layout: str, rank: int, count: int) -> tuple[int, int]:
    """The two chunks, of 2 * count, that a rank holds."""
    return (2 * rank, 2 * rank + 1) if layout == "contiguous" else (rank, 2 * count - 1 - rank)


def pairs(layout: str, causal: bool, count: int, length: int) -> list[list[int]]:
    """Pairs of a query and a key that each rank computes in each step, for a sequence of `length` tokens."""
    local, found = length // count, []
    for rank in range(count):
        place = ring_steps.Ring(rank, count, None, layout, causal, 1.0, None)
        own = local * (local + 1) // 2 if causal else local * local
        needs = [place.needs(rank, place.before(step), local) for step in range(1, count)]
        found.append([own, *((n[0].stop - n[0].start) * (n[1].stop - n[1].start) if n else 0 for n in needs)])
    return found


def idle(layout: str, causal: bool, count: int, length: int) -> float:
    """The share of the ranks' time that is waited, were every step to last as long as its slowest rank."""
    work = pairs(layout, causal, count, length)
    lasting = sum(max(step) for step in zip(*work, strict=True))
    return 1 - sum(map(sum, work)) / (count * lasting)


def bytes_sent(
    layout: str, causal: bool, count: int, *, length: int, groups: int, width: int, dtype: str, batch: int = 1
) -> list[int]:
    """Bytes of keys and values that each rank sends in a forward: whole blocks, to whoever needs a part of them."""
    local = length // count
    block = 2 * batch * groups * local * width * to_dtype(dtype).itemsize
    found = []
    for rank in range(count):
        place = ring_steps.Ring(rank, count, None, layout, causal, 1.0, None)
        found.append(block * sum(bool(place.needs(place.after(step), rank, local)) for step in range(1, count)))
    return found


def step_times(
    target: Target,
    link: Metric = NVLINK,
    *,
    local: int,
    heads: int,
    groups: int,
    width: int,
    causal: bool,
    dtype: str = "bfloat16",
) -> tuple[float, float]:
    """The least times in s of one zig-zag step, other than the own block's, at the peak rates: its arithmetic, its transfer."""
    pairs = local * local / (2 if causal else 1)
    return 4 * heads * width * pairs / target.peaks[dtype], 2 * groups * local * width * to_dtype(dtype).itemsize / link.value


def hidden_from(
    target: Target, link: Metric = NVLINK, *, heads: int, groups: int, causal: bool, dtype: str = "bfloat16"
) -> float:
    """Tokens a rank from which a step's arithmetic at its peak rate lasts as long as its transfer."""
    per_token = 2 * groups * to_dtype(dtype).itemsize / link.value
    return per_token * target.peaks[dtype] * (2 if causal else 1) / (4 * heads)


def held(count: int, *, length: int, heads: int, groups: int, width: int, dtype: str = "bfloat16") -> dict[str, int]:
    """Bytes that a rank holds in a forward, by what they are for."""
    local, size = length // count, to_dtype(dtype).itemsize
    queries, keys = local * heads * width, local * groups * width
    under_way = min(2, count - 1)  # the block in use and the one that is coming
    merged = queries * 4 if count > 2 else 0  # the output is added up in float32 where it is merged more than once
    return {
        "query, key, value, output": (2 * queries + 2 * keys) * size,
        "others' keys and values": under_way * 2 * keys * size,
        "a step's output, and sums": (queries * size if count > 1 else 0) + merged + 2 * local * heads * 4,
    }


# ---- figures


def picture(causal: bool, count: int) -> go.Figure:
    """The matrix of scores in both layouts: the colour says in which step a block is computed, the number by which rank."""
    mask = "causal" if causal else "every token sees every token"
    note = "Colour: the step in which the block is computed. Number: the rank that computes it. Empty: the mask leaves nothing there."
    steps = [f"step {step}" for step in range(count)]
    figure = look.frame(
        f"Who computes what, {count} ranks", f"{mask}; read from the plan that runs", PANELS, [note], steps, columns=2,
        row_height=360, left=48,
    )  # fmt: skip
    for column, layout in enumerate(PANELS, 1):
        blocks = plan(layout, causal, count)
        figure.add_trace(_matrix(blocks, count, [b.step for b in blocks], _steps(count)), row=1, col=column)
    for step, name in enumerate(steps):  # the key: a heat map has none
        marker = {"symbol": "square", "size": 10, "color": _color(step)}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, row=1, col=1)
    return _chunk_axes(figure, count)


def _steps(count: int) -> list[tuple[float, str]]:
    """A colour for each step, in equal bands."""
    return [(edge / count, _color(step)) for step in range(count) for edge in (step, step + 1)]


def _color(step: int) -> str:
    palette = look.colors().palette
    return palette[step % len(palette)]


def _matrix(blocks: Sequence[Block], count: int, values: Sequence[Any], scale: Sequence[tuple[float, str]]) -> go.Heatmap:
    import plotly.graph_objects as go

    size = 2 * count
    z: list[list[Any]] = [[None] * size for _ in range(size)]
    text, hover = ([[""] * size for _ in range(size)] for _ in range(2))
    for block, value in zip(blocks, values, strict=True):
        z[block.queries][block.keys] = value
        text[block.queries][block.keys] = str(block.rank)
        part = "half of it: the diagonal" if block.share < 1 else "all of it"
        hover[block.queries][block.keys] = f"rank {block.rank}, step {block.step}, {part}"
    return go.Heatmap(
        z=z, text=text, texttemplate="%{text}", customdata=hover, hovertemplate="%{customdata}<extra></extra>", zmin=-0.5,
        zmax=count - 0.5, colorscale=scale, showscale=False, xgap=2, ygap=2, hoverongaps=False,
    )  # fmt: skip


def _chunk_axes(figure: go.Figure, count: int) -> go.Figure:
    ticks = {"tickvals": list(range(2 * count)), "showgrid": False, "ticks": ""}
    figure.update_xaxes(title="chunk of keys", constrain="domain", **ticks)
    figure.update_yaxes(autorange="reversed", **ticks)
    return figure.update_yaxes(title="chunk of queries", col=1)


def walk(layout: str, causal: bool, count: int) -> go.Figure:
    """The same matrix for one layout with a slider over the steps: coloured is what is computed in the step, grey what came before."""
    blocks = plan(layout, causal, count)
    mask = "causal" if causal else "every token sees every token"
    figure = look.frame(
        f"{layout}, {count} ranks, step by step", f"{mask}; read from the plan that runs", [""], [], row_height=400, left=48
    )
    now, before = look.colors().palette[0], look.colors().same
    scale = [(0.0, before), (0.5, before), (0.5, now), (1.0, now)]
    for step in range(count):
        done = [block for block in blocks if block.step <= step]
        trace = _matrix(done, count, [int(block.step == step) for block in done], scale)
        figure.add_trace(trace.update(zmin=0, zmax=1, visible=step == 0))
    stops = [
        {"method": "update", "args": [{"visible": [k == step for k in range(count)]}], "label": str(step)}
        for step in range(count)
    ]
    place = {
        "active": 0,
        "pad": {"t": 60},
        "currentvalue": {"prefix": "step ", "suffix": ": keys of the rank so many places before"},
        "steps": stops,
    }
    figure.update_layout(sliders=[place], height=figure.layout.height + 90, margin={"b": figure.layout.margin.b + 90})
    return _chunk_axes(figure, count)


def balance(causal: bool, count: int, length: int) -> go.Figure:
    """Pairs of a query and a key that each rank computes, stacked by step, in both layouts."""
    mask = "causal" if causal else "every token sees every token"
    steps = [f"step {step}" for step in range(count)]
    figure = look.frame(
        f"Work of each rank, {length} tokens",
        f"{mask}; counted from the plan that runs",
        PANELS,
        [],
        steps,
        columns=2,
        shared_y=True,
    )
    for column, layout in enumerate(PANELS, 1):
        work = pairs(layout, causal, count, length)
        for step, name in enumerate(steps):
            figure.add_bar(
                x=[f"rank {rank}" for rank in range(count)], y=[each[step] for each in work], name=name, legendgroup=name,
                showlegend=column == 1, marker={"color": _color(step)}, row=1, col=column,
            )  # fmt: skip
    figure.update_layout(barmode="stack")
    return figure.update_yaxes(title="pairs of query and key", tickformat="~s", col=1)
