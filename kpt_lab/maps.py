"""The break-even map and the roofline: two figures that are neither curves nor bars. Call them through `kpt_lab.figures`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from kpt_lab import look, ratios
from kpt_lab.core import Cost, Target, Trial, Trials
from kpt_lab.look import plain, quantity, six
from kpt_lab.panels import (
    Arrangement,
    absences,
    arrange,
    checked,
    interval,
    multiple,
    newest,
    reason,
    subtitle,
    unformed,
    words,
    workloads,
)

NICE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 5, 10, 20, 50, 100)
HEADING = 80  # characters that a heading has room for in the narrowest figure that must read well


def heatmap(trials: Iterable[Trial], technique: str, x: str, y: str, over: str = "best baseline") -> go.Figure:
    """Speedup of one technique (its label) over two parameters: colour centred on 1x in log space, UNCLEAR cells hatched.

    A thick outline separates cells above and below 1x; cells without a ratio show their status. ValueError where the technique
    has no ratio anywhere, or where something beyond x and y varies.
    """
    trials, older = newest(checked(trials))
    labels = list(dict.fromkeys(t.label for t in trials))
    if technique not in labels:
        raise ValueError(f"technique is {technique!r}; these Trials hold {', '.join(labels)}")
    found = {s.cell: s for s in ratios.speedups(trials, over) if s.label == technique}
    formed: list[Any] = [s for s in found.values() if s.ratio]
    if not formed:
        why = next((s.reason for s in found.values() if s.reason), "it has no ok Trial beside one to compare it with")
        raise ValueError(f"no speedup of {technique!r} over {over!r} can be shown: {why}")
    cells = ratios.cells(trials)
    plan, columns, rows = _grid(cells, x, y)
    states = {
        (_index(plan, c, x, columns), _index(plan, c, y, rows)): _state(found.get(c), by.get(technique))
        for c, by in cells.items()
    }
    ratio = {at: state for at, state in states.items() if not isinstance(state, str)}
    shown = Trials(t for s in formed for t in (*s.trials.ok, *s.over.ok))
    counts, kinds = [s.ratio.processes for s in formed], {s.ratio.provenance for s in formed}
    lost = [(t, why) for t in trials.where(label=technique) if (why := reason(t, "time"))] + unformed(found.values(), "time")
    notes = [f"Outline: break-even, 1x. Hatched: UNCLEAR. {_baselines(formed, over)}", *absences(lost, trials), *older]
    base = "the best baseline" if over == "best baseline" else over
    heading, under = f"{workloads(shown)}: speedup of {technique} over {base}", subtitle(shown, plan.fixed, kinds, counts)
    if len(heading) > HEADING:  # a stack with its knobs: it goes where lines are broken
        heading, under = f"{workloads(shown)}: speedup over {base}", f"{technique} · {under}"
    height = max(180, min(64 * len(rows), 520))
    figure = look.frame(heading, under, [""], notes, row_height=height)
    reach = max(0.1, *(abs(math.log2(s.ratio.value)) for s in ratio.values()))
    figure.add_trace(_colours(ratio, plan, len(columns), len(rows), reach))
    unclear = {at: s.ratio.value for at, s in ratio.items() if s.ratio.verdict == "UNCLEAR"}
    for strong in (False, True):
        if hatched := [at for at, value in unclear.items() if _strong(value, reach) == strong]:
            figure.add_trace(_hatch(hatched, look.colors().paper if strong else look.colors().ink))
    figure.add_trace(_outline({at: s.ratio.value for at, s in ratio.items()}))
    _cell_texts(figure, states, len(columns), len(rows), reach)
    for name, values, update in ((x, columns, figure.update_xaxes), (y, rows, figure.update_yaxes)):
        ticks = {"tickmode": "array", "tickvals": list(range(len(values))), "ticktext": [plain(v) for v in values]}
        update(title=plain(name), range=[-0.5, len(values) - 0.5], showgrid=False, ticks="", **ticks)
    return figure


def _grid(cells: Iterable[Any], x: str, y: str) -> tuple[Arrangement, list[Any], list[Any]]:
    """The values of both axes; ValueError where one is unknown or where cells differ in something else."""
    cells = list(cells)
    if x == y:
        raise ValueError(f"x and y are both {x!r}; a heat map needs two parameters")
    columns, rows = arrange(cells, x), arrange(cells, y)
    facts = columns.facts.values()
    spread: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for fact in facts:
        spread.setdefault((fact.get(x), fact.get(y)), []).append(fact)
    if clash := next((each for each in spread.values() if len(each) > 1), None):
        names = [name for name in clash[0] if clash[0].get(name) != clash[1].get(name)]
        raise ValueError(f"{', '.join(names)} varies beyond {x} and {y}: select one value with .where({names[0]}=...)")
    one = next(iter(facts))
    return columns, list(columns.values) or [one[x]], list(rows.values) or [one[y]]


def _index(plan: Arrangement, cell: Any, name: str, values: Sequence[Any]) -> int:
    return values.index(plan.facts[cell].get(name))


def _state(found: Any, trials: Trials | None) -> Any:
    """The Speedup of a cell where it has a ratio, else the short text that stands in the cell."""
    if found is not None and found.ratio:
        return found
    bad = next((t.status for t in trials or () if t.status != "ok"), "")
    return bad.replace("_", " ") if bad else "not comparable" if trials else "not measured"


def _baselines(formed: Sequence[Any], over: str) -> str:
    if over != "best baseline":
        return f"Over {over}; the headline is the speedup over the best baseline."
    return f"Best baseline of each cell: {', '.join(dict.fromkeys(s.over[0].label for s in formed))}."


def _colours(ratio: Mapping[tuple[int, int], Any], plan: Arrangement, width: int, height: int, reach: float) -> go.Heatmap:
    colors = look.colors()
    z: list[list[float | None]] = [[None] * width for _ in range(height)]
    hover = [[""] * width for _ in range(height)]
    for (i, j), s in ratio.items():
        z[j][i] = six(math.log2(s.ratio.value))
        lines = [words(plan.facts[s.cell]), interval(s.ratio)]
        lines += [f"over {s.over[0].label}, {s.ratio.provenance}, {s.ratio.processes} process" + "es" * (s.ratio.processes > 1)]
        hover[j][i] = f"<b>{plain(s.label)}</b><br>" + "<br>".join(map(plain, lines))
    ticks = [n for n in NICE if abs(math.log2(n)) <= reach]
    for tick in (1.1, 0.9, 1.25, 0.8, 1.5, 0.67, 2, 0.5):  # the nearest to 1x go first where their texts would touch
        if tick in ticks and any(abs(math.log2(tick / t)) < reach / 7 for t in ticks if t != tick):
            ticks.remove(tick)
    steps = len(colors.diverging) - 1
    return go.Heatmap(
        z=z,
        zmin=six(-reach),
        zmax=six(reach),
        zmid=0,
        colorscale=[[i / steps, c] for i, c in enumerate(colors.diverging)],
        colorbar={
            "title": {"text": "speedup", "font": {"size": 13}},
            "tickvals": [six(math.log2(t)) for t in ticks],
            "ticktext": [f"{t:g}x" for t in ticks],
            "outlinewidth": 0,
            "thickness": 14,
        },
        hovertext=hover,
        hoverinfo="text",
        xgap=2,
        ygap=2,
        meta="values",
    )


def _hatch(cells: Iterable[tuple[int, int]], color: str, lines: int = 6) -> go.Scatter:
    """Diagonal lines through each cell as one trace."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for i, j in cells:
        for k in range(1, 2 * lines):
            t = k / lines  # the diagonal x + y = t of the unit square
            xs += [six(i - 0.5 + max(0.0, t - 1)), six(i - 0.5 + min(1.0, t)), None]
            ys += [six(j - 0.5 + min(1.0, t)), six(j - 0.5 + max(0.0, t - 1)), None]
    line = {"color": look.translucent(color, 0.45), "width": 1.2}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, name="UNCLEAR", hoverinfo="skip", showlegend=False, meta="hatch")


def _outline(values: Mapping[tuple[int, int], float]) -> go.Scatter:
    """The edges between neighbouring cells of which one is at 1x or above and the other below."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for (i, j), value in values.items():
        for right, up in ((1, 0), (0, 1)):
            other = values.get((i + right, j + up))
            if other is not None and (value >= 1) != (other >= 1):
                xs += [i + 0.5 if right else i - 0.5, i + 0.5, None]
                ys += [j + 0.5 if up else j - 0.5, j + 0.5, None]
    line = {"color": look.colors().ink, "width": 3}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, name="1x", hoverinfo="skip", showlegend=False, meta="break-even")


def _strong(value: float, reach: float) -> bool:
    """Whether a ratio's colour is so far from the neutral one that the paper's colour reads better on it than ink."""
    return abs(math.log2(value)) > 0.55 * reach


def _cell_texts(figure: go.Figure, states: Mapping[tuple[int, int], Any], width: int, height: int, reach: float) -> None:
    """Each cell's number, dark on light or light on dark, on a plate where it is hatched; or its status in italics."""
    colors = look.colors()
    for i in range(width):
        for j in range(height):
            state = states.get((i, j), "not measured")
            where = {"x": i, "y": j, "showarrow": False, "name": "cell"}
            if isinstance(state, str):
                text = f"<i>{plain(state).replace(' ', '<br>')}</i>"
                figure.add_annotation(text=text, font={"size": 11, "color": colors.muted}, **where)
                continue
            hatched = state.ratio.verdict == "UNCLEAR"
            strong = _strong(state.ratio.value, reach) and not hatched
            plate = {"bgcolor": look.translucent(colors.paper, 0.8), "borderpad": 2} if hatched else {}
            font = {"size": 12, "color": colors.paper if strong else colors.ink}
            figure.add_annotation(text=multiple(state.ratio.value), font=font, **where, **plate)


def roofline(trials: Iterable[Trial], target: Target | None = None) -> go.Figure:
    """Achieved FLOP/s against arithmetic intensity (FLOP per byte) under the roof of each arithmetic type that the Trials use.

    Work and traffic come from trial.chosen["flops"] (a number, or numbers by arithmetic type) and ["bytes"]; the Target is the
    one that the Trials name unless given. ValueError where no Trial has both and a time, or where the Target is unknown.
    """
    trials, older = newest(checked(trials))
    trials = Trials(t for t in trials if t.label != ratios.COPY) or trials
    reasons = [(t, reason(t, "time") or _uncosted(t)) for t in trials]
    shown = Trials(t for t, why in reasons if not why)
    if not shown:
        raise ValueError(f"no Trial can stand under a roofline: {reasons[0][0].label}: {reasons[0][1]}")
    target = target or _target(shown)
    groups = [(cell, name, ts) for cell, by in ratios.cells(shown).items() for name, ts in by.items()]
    kinds = [k for k in target.peaks if any(k in _flops(t) for t in shown)] or list(target.peaks)
    plan = arrange(dict.fromkeys(cell for cell, _, _ in groups), "")
    notes = [f"Roof of {target.name}: bandwidth {quantity(target.bandwidth, 'B/s')} ({target.source['bandwidth']})"
             + "".join(f"; {k} {quantity(target.peaks[k], 'FLOP/s')} ({target.source[k]})" for k in kinds) + "."]  # fmt: skip
    notes += [*absences(((t, why) for t, why in reasons if why), trials), *older]
    heading = f"{workloads(shown)}: roofline of {target.name}"
    names = [*dict.fromkeys(name for _, name, _ in groups), *(f"roof, {k} (modelled)" for k in kinds)]
    under = subtitle(shown, plan.fixed, {t.metrics["time"].provenance for t in shown}, [len(ts) for _, _, ts in groups])
    figure = look.frame(heading, under, [""], notes, names, row_height=400)
    spots = [(_spot(ts, target), name, words(plan.facts[cell])) for cell, name, ts in groups]
    ridges = [target.peaks[k] / target.bandwidth for k in kinds]
    reach = [*(s["x"] for s, _, _ in spots), *ridges]
    low, high = min(reach) / 3, max(reach) * 3
    for i, kind in enumerate(kinds):
        figure.add_trace(_roof(target, kind, low, high, look.DASHES[i % len(look.DASHES)]))
    for name, style in look.styles(name for _, name, _ in groups).items():
        figure.add_trace(_spots([s for s in spots if s[1] == name], name, style))
    decades = {"type": "log", "dtick": 1, "tickformat": "~s"}
    figure.update_xaxes(title="arithmetic intensity (FLOP per byte)", range=[math.log10(low), math.log10(high)], **decades)
    figure.update_yaxes(title="achieved (FLOP/s)", **decades)
    return figure


def _flops(trial: Trial) -> dict[str, float]:
    """FLOPs by arithmetic type; a bare number counts as the Trial's dtype."""
    work = trial.chosen.get("flops", {})
    return (
        {k: float(v) for k, v in work.items() if v} if isinstance(work, Mapping) else {trial.dtype: float(work)} if work else {}
    )


def _uncosted(trial: Trial) -> str:
    if not _flops(trial) or not trial.chosen.get("bytes"):
        return "its workload states no cost: FLOPs and bytes"
    return ""


def _target(trials: Trials) -> Target:
    from kpt_lab.hardware import targets  # probing a CPU is dear, so only where it is needed

    names = list(dict.fromkeys(t.target for t in trials))
    if len(names) > 1:
        raise ValueError(
            f"these Trials are about several targets ({', '.join(map(repr, names))}): select one with .where(target=...)"
        )
    found = targets.by_name(names[0]) if names[0] else None
    if found is None:
        raise ValueError(
            f"no Target is known under the name {names[0]!r}: pass target=, for instance kpt_lab.hardware.targets.h100_sxm"
        )
    return found


def _spot(trials: Trials, target: Target) -> dict[str, Any]:
    """Intensity, FLOP/s with its interval, and the share of the bound, over a technique's processes in one cell."""
    work, traffic = _flops(trials[0]), float(trials[0].chosen["bytes"])
    total, metrics = sum(work.values()), [t.metrics["time"] for t in trials]
    time = statistics.median(m.value for m in metrics)
    ends = (
        [m.value for m in metrics]
        if len(metrics) > 1
        else [v for v in (metrics[0].low, metrics[0].high) if v and math.isfinite(v)]
    )
    spot = {
        "x": total / traffic,
        "y": total / time,
        "low": total / max([*ends, time]),
        "high": total / min([*ends, time]),
        "share": math.nan,
    }
    if set(work) <= set(target.peaks):
        spot["share"] = target.bound(Cost(work, traffic)).value / time
    return spot


def _roof(target: Target, kind: str, low: float, high: float, dash: str) -> go.Scatter:
    peak, bandwidth = target.peaks[kind] * target.count, target.bandwidth * target.count
    xs = [low, peak / bandwidth, high]
    return go.Scatter(
        x=[six(x) for x in xs],
        y=[six(min(peak, bandwidth * x)) for x in xs],
        mode="lines",
        line={"color": look.colors().ink, "width": 1.8, "dash": dash},
        name=f"roof, {plain(kind)} (modelled)",
        legendgroup=f"roof {kind}",
        hoverinfo="name",
        meta="roof",
    )


def _spots(spots: Sequence[tuple[dict[str, Any], str, str]], name: str, style: look.Style) -> go.Scatter:
    texts = []
    for spot, _, where in spots:
        share = "" if math.isnan(spot["share"]) else f"<br>{100 * spot['share']:.3g}% of the bound"
        texts.append(
            f"<b>{plain(name)}</b><br>{plain(where)}<br>{quantity(spot['y'], 'FLOP/s')}, {spot['x']:.3g} FLOP per byte{share}"
        )
    points = [s for s, _, _ in spots]
    return go.Scatter(
        x=[six(s["x"]) for s in points],
        y=[six(s["y"]) for s in points],
        mode="markers",
        name=plain(name),
        legendgroup=plain(name),
        marker={"color": style.color, "symbol": style.symbol, "size": 9, "line": {"color": look.colors().paper, "width": 1}},
        error_y={
            "array": [six(s["high"] - s["y"]) for s in points],
            "arrayminus": [six(s["y"] - s["low"]) for s in points],
            "color": style.color,
            "thickness": 1.4,
            "width": 4,
        },
        hovertext=texts,
        hoverinfo="text",
        meta="values",
    )
