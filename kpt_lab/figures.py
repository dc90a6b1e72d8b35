"""Trials -> Plotly figures: speedups, times, a break-even map, the roofline, bars.

They read Trials and nothing else, form no ratio themselves (`kpt_lab.ratios` does, under its rules), say whether their numbers
are measured, simulated, modelled or quoted, and list what they don't show with the reason. Shading and whiskers are intervals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from kpt_lab import draw, look, ratios, yardsticks
from kpt_lab.core import Trial, Trials
from kpt_lab.draw import Chart, Point
from kpt_lab.look import plain, quantity, theme
from kpt_lab.maps import heatmap, roofline
from kpt_lab.panels import (
    Arrangement,
    absences,
    arrange,
    checked,
    interval,
    newest,
    reason,
    subtitle,
    unformed,
    words,
    workloads,
)

__all__ = ["bars", "heatmap", "roofline", "speedup", "theme", "times"]

MARGIN = 0.02  # half width of SAME, as kpt_lab.stats.verdict has it
LOG_SPAN = 6.0  # a value axis over more than this factor is logarithmic
MOST_BARS = 8  # cells
SAME = "SAME: within 2%"


def speedup(trials: Iterable[Trial], over: str = "best baseline", x: str | None = None) -> go.Figure:
    """Speedup of each technique over a label, or over each cell's best baseline, against the parameter `x` (the longest).

    Shows intervals, the 1x line, the SAME region (2%) and the largest speedup that the hardware's bound allows. Where no
    parameter varies: bars. ValueError where no ratio can be formed, with the first reason.
    """
    everything, older = newest(checked(trials))
    trials = Trials(t for t in everything if t.label != ratios.COPY)
    found = ratios.speedups(trials, over)
    formed: list[Any] = [s for s in found if s.ratio]
    labels = {s.label for s in formed if s.label != s.over[0].label}  # what is the baseline everywhere is no curve
    formed = [s for s in formed if s.label in labels]
    if not formed:
        why = next((s.reason for s in found if s.reason), "there is nothing beside the baseline itself")
        raise ValueError(f"no speedup over {over!r} can be shown: {why}")
    plan = arrange(dict.fromkeys(s.cell for s in formed), x, apart=True)
    shown = Trials(t for s in formed for t in (*s.trials, *s.over) if t.status == "ok")
    limits = [(s.cell, s.label, Trials((*s.trials, *s.over)), _pooled(s.over, "time")[0]) for s in formed]
    counts, kinds = [s.ratio.processes for s in formed], {s.ratio.provenance for s in formed}
    lost = _lost(trials, "time") + unformed(found, "time")
    points = [_speedup_point(s, plan) for s in formed]
    endless = " A whisker across the panel: interval unbounded." if not all(p.bounded for p in points) else ""
    chart = Chart(
        heading=f"{workloads(shown)}: speedup over {'the best baseline' if over == 'best baseline' else over}",
        subtitle=subtitle(shown, plan.fixed, kinds, counts),
        notes=[
            _interval_note(counts) + endless,
            *_baseline_note(formed, over, plan),
            *yardsticks.bound_note(shown),
            *absences(lost, trials),
            *older,
        ],
        plan=plan,
        labels=list(dict.fromkeys(t.label for t in trials)),
        points=points,
        references=[
            *yardsticks.bounds(limits, "hardware bound"),
            *yardsticks.copy_line(yardsticks.copy_ratios(everything, formed)),
        ],
        absent=_absent(lost, trials, plan),
        entries=(SAME,),
    )
    if not plan.x:
        figure = draw.bars(chart)
        figure.update_xaxes(title="speedup", ticksuffix="x", range=[0, 1.05 * max(chart.span[1], 1 + MARGIN)])
    else:
        figure = draw.curves(chart, "UNCLEAR" if kinds == {"measured"} else "UNCLEAR or not measured")
        figure.update_yaxes(_ratio_axis(*chart.span))
        figure.update_yaxes(title_text="speedup", col=1)
    _one(figure, len(plan.titles), "y" if plan.x else "x")
    return figure


def times(trials: Iterable[Trial], x: str | None = None) -> go.Figure:
    """Median time of a call in seconds with its interval against the parameter `x`, the bound, and a copy of the same bytes.

    Axes are logarithmic where they span much. Where no parameter varies: bars. ValueError where no Trial has a time.
    """
    trials = checked(trials)
    chart = _metric_chart(trials, "time", x)
    if not chart.plan.x:
        return bars(trials, "time")
    figure = draw.curves(chart, "not measured")
    low, high = chart.span
    axis: dict[str, Any] = {"tickformat": "~s", "ticksuffix": "s", "rangemode": "tozero"}
    if high / low > LOG_SPAN:
        ticks = _log_ticks(low / 1.15, high * 1.15)
        axis = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [quantity(t, "s") for t in ticks]}
        axis["range"] = [math.log10(low / 1.15), math.log10(high * 1.15)]
    figure.update_yaxes(axis)
    figure.update_yaxes(title_text="median time of a call", col=1)
    return figure


def bars(trials: Iterable[Trial], metric: str = "time") -> go.Figure:
    """One bar with its interval for each technique, for any metric of the Trials; those that have none show their status.

    Each cell gets a panel, 8 at most. ValueError where no ok Trial has the metric, naming those there are.
    """
    trials = checked(trials)
    chart = _metric_chart(trials, metric, "")
    count = len({p.cell for p in chart.points})
    if count > MOST_BARS:
        raise ValueError(
            f"bars shows at most {MOST_BARS} cells and these Trials hold {count}: select with .where(), or use times"
        )
    unit = _shown(trials, metric)[0].metrics[metric].unit
    figure = draw.bars(chart)
    scaled = {"tickformat": "~s", "ticksuffix": unit} if unit in ("s", "B", "J", "W") else {}
    name = "median time of a call" if metric == "time" else metric
    figure.update_xaxes(title=name if unit in ("", "1") or scaled else f"{name} ({unit})", **scaled)
    return figure


def _metric_chart(trials: Trials, metric: str, x: str | None) -> Chart:
    """What times and bars show: every ok Trial's metric, pooled over processes; lines of bound and copy beside a time."""
    trials, older = newest(trials)
    trials = Trials(t for t in trials if t.label != ratios.COPY)
    shown, lost = _shown(trials, metric), _lost(trials, metric)
    if not lost and not shown:
        raise ValueError("these Trials hold nothing but the copy of the same bytes; pass those of the techniques as well")
    if not shown:
        raise ValueError(f"no Trial has the metric {metric!r} to show: {lost[0][0].label}: {lost[0][1]}")
    units = sorted({t.metrics[metric].unit for t in shown})
    if len(units) > 1:
        raise ValueError(f"metric {metric!r} comes in several units ({', '.join(units)}): select Trials of one with .where()")
    groups = [(cell, name, ts) for cell, by in ratios.cells(shown).items() for name, ts in by.items()]
    plan = arrange(dict.fromkeys(cell for cell, _, _ in groups), x)
    counts = [len(ts) for _, _, ts in groups]
    lines = metric == "time"
    return Chart(
        heading=f"{workloads(shown)}: {'time of a call' if lines else metric}",
        subtitle=subtitle(shown, plan.fixed, {t.metrics[metric].provenance for t in shown}, counts),
        notes=[_interval_note(counts), *(yardsticks.bound_note(shown) if lines else ()), *absences(lost, trials), *older],
        plan=plan,
        labels=list(dict.fromkeys(t.label for t in trials)),
        points=[_metric_point(cell, name, ts, metric, plan) for cell, name, ts in groups],
        references=[*yardsticks.bounds([(*group, 0.0) for group in groups], "hardware bound"), *yardsticks.copies(groups)]
        if lines
        else (),
        absent=_absent(lost, trials, plan),
    )


def _shown(trials: Trials, metric: str) -> Trials:
    return Trials(t for t in trials if not reason(t, metric))


def _lost(trials: Trials, metric: str) -> list[tuple[Trial, str]]:
    return [(t, why) for t in trials if (why := reason(t, metric))]


def _absent(lost: Sequence[tuple[Trial, str]], trials: Trials, plan: Arrangement) -> list[tuple[Any, str, str]]:
    """Rows of bars without a value: (cell, name, status)."""
    reasons = {id(t): why for t, why in lost}
    rows = []
    for cell, by in ratios.cells(trials).items():
        for name, ts in by.items():
            status = next((t.status for t in ts if t.status != "ok"), "") or next(
                (reasons[id(t)] for t in ts if id(t) in reasons), ""
            )
            if cell in plan.panel and status:
                rows.append((cell, _named(name, cell, plan, "measured"), status.replace("_", " ")))
    return rows


def _pooled(trials: Trials, metric: str) -> tuple[float, float, float]:
    """Median and interval over a technique's ok Trials in one cell: one process's own, or the span of several medians."""
    metrics = [t.metrics[metric] for t in trials if not reason(t, metric)]
    if len(metrics) == 1:
        only = metrics[0]
        return only.value, only.value if only.low is None else only.low, only.value if only.high is None else only.high
    medians = [m.value for m in metrics]
    return statistics.median(medians), min(medians), max(medians)


def _named(name: str, cell: Any, plan: Arrangement, provenance: str) -> str:
    extra = ", ".join(filter(None, (plan.suffix[cell], "" if provenance == "measured" else provenance)))
    return f"{name} ({extra})" if extra else name


def _hover(name: str, cell: Any, trials: Trials, plan: Arrangement, lines: Iterable[str]) -> str:
    """The point in words: technique, conditions, value, and the error where there is one."""
    errors = [t.metrics["error"].value for t in trials if "error" in t.metrics]
    error = [f"largest error {max(errors):.3g}"] if errors else []
    texts = [words(plan.facts[cell], [n for n in plan.facts[cell] if n != "device"])]
    texts += [f"on {t}" for t in dict.fromkeys(str(t.env.get("device_name") or t.target or t.device) for t in trials)]
    return f"<b>{plain(name)}</b><br>" + "<br>".join(plain(text) for text in (*texts, *lines, *error))


def _speedup_point(found: Any, plan: Arrangement) -> Point:
    ratio = found.ratio
    lines = [f"{interval(ratio)} over {found.over[0].label}", f"{_origin(ratio.provenance, ratio.processes)}"]
    if any("time" in t.metrics for t in found.trials.ok):
        own, base = _pooled(found.trials, "time")[0], _pooled(found.over, "time")[0]
        lines.append(f"median {quantity(own, 's')}, {found.over[0].label} {quantity(base, 's')}")
    lines += [ratio.note] if ratio.note else []
    name = _named(found.label, found.cell, plan, ratio.provenance)
    hover = _hover(name, found.cell, found.trials.ok, plan, lines)
    hollow = ratio.verdict == "UNCLEAR"
    return Point(found.cell, found.label, name, ratio.value, ratio.low, ratio.high, hollow, hover, interval(ratio))


def _metric_point(cell: Any, label: str, trials: Trials, metric: str, plan: Arrangement) -> Point:
    first = trials[0].metrics[metric]
    value, low, high = _pooled(trials, metric)
    ends = f" [{quantity(low, first.unit)}, {quantity(high, first.unit)}]" if low != high else ""
    kinds = " and ".join(dict.fromkeys(t.metrics[metric].provenance for t in trials))
    lines = [
        f"{metric} {quantity(value, first.unit)}{ends}",
        _origin(kinds, len(trials)),
        *([first.source] if first.source else []),
    ]
    hover = _hover(label, cell, trials, plan, lines)
    name, text = _named(label, cell, plan, kinds), quantity(value, first.unit)
    return Point(cell, label, name, value, low, high, kinds != "measured", hover, text)


def _origin(provenance: str, processes: int) -> str:
    if provenance != "measured":
        return provenance
    return "measured in one process, exploratory" if processes == 1 else f"measured in {processes} processes"


def _interval_note(processes: Sequence[int]) -> str:
    if not processes or max(processes) == 1:
        return "Intervals: of the median within one process; restarts, which move times further, are not covered."
    return f"Intervals: span of the medians of {max(processes)} processes." + (
        " Where there is one process: its own interval, exploratory." if min(processes) == 1 else ""
    )


def _baseline_note(formed: Sequence[Any], over: str, plan: Arrangement) -> list[str]:
    """Which baseline was the best where; or that a speedup over one label is no headline."""
    if over != "best baseline":
        return [f"Over {over}; the headline is the speedup over the best baseline."]
    where: dict[str, list[str]] = {}
    for cell, label in dict.fromkeys((s.cell, s.over[0].label) for s in formed):
        where.setdefault(label, []).append(str(plan.at(cell)) if plan.x else plan.titles[plan.panel[cell]])
    if len(where) == 1:
        return [f"Best baseline: {next(iter(where))}."]
    if plan.x and len(plan.titles) > 1:
        return [f"Best baseline of each cell: {' or '.join(where)}; the point's text says which."]
    at = f"at {plan.x} " if plan.x else "at "
    return ["Best baseline: " + "; ".join(f"{label} {at}{', '.join(places)}" for label, places in where.items()) + "."]


def _one(figure: go.Figure, panels: int, side: str) -> None:
    """The 1x line and the SAME region in every panel, across the axis `side`."""
    colors, other = look.colors(), "x" if side == "y" else "y"
    for panel in range(panels):
        axes = dict(zip("xy", look.axis_names(panel), strict=True))
        refs = {f"{side}ref": axes[side], f"{other}ref": f"{axes[other]} domain", f"{other}0": 0, f"{other}1": 1}
        band = {
            f"{side}0": 1 - MARGIN,
            f"{side}1": 1 + MARGIN,
            "fillcolor": colors.same,
            "line": {"width": 0},
            "layer": "below",
        }
        figure.add_shape(type="rect", name=SAME, showlegend=panel == 0, **refs, **band)
        line = {f"{side}0": 1, f"{side}1": 1, "line": {"color": colors.muted, "width": 1}, "layer": "below"}
        figure.add_shape(type="line", name="1x", **refs, **line)


def _ratio_axis(low: float, high: float) -> Mapping[str, Any]:
    """A value axis that holds 1x, logarithmic where it spans more than a factor of 6."""
    low, high = min(low, 1 - 2 * MARGIN), max(high, 1 + 2 * MARGIN)
    if low > 0 and high / low > LOG_SPAN:
        ticks = _log_ticks(low / 1.1, high * 1.1)
        edges = [math.log10(low / 1.12), math.log10(high * 1.12)]
        return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{t:g}x" for t in ticks], "range": edges}
    pad = 0.06 * (high - low)
    return {"ticksuffix": "x", "range": [look.six(low - pad), look.six(high + pad)]}


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade between the ends, or only the decades where those were more than 9."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [look.six(m * 10.0**e) or 0.0 for e in decades for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return ticks if len(ticks) <= 9 else [t for t in ticks if f"{t:e}".startswith("1")]
