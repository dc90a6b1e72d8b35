"""Trials as text for a terminal: one table for each cell, then what went wrong and what to do."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from statistics import median

from kpt_lab.core import Trials
from kpt_lab.ratios import MIN_PROCESSES, Speedup, speedups

HEADER = ("technique", "time", "speedup over the best baseline", "verdict", "error", "peak memory", "of bound", "status")
_WIDTH = 110


def tables(trials: Trials) -> str:
    """All cells as tables: median time, speedup with interval and verdict, error, memory, and the share of the bound reached."""
    cells: dict[object, list[Speedup]] = {}
    for found in speedups(trials):
        cells.setdefault(found.cell, []).append(found)
    return "\n\n".join("\n".join(_cell(rows)) for rows in cells.values()) or "No Trials."


def quantity(value: float, unit: str) -> str:
    """A number at three significant digits with its unit: "120 us", "1.20 GB"."""
    if unit not in ("s", "B", "J") or not math.isfinite(value) or value == 0:
        return f"{value:.3g} {unit}".removesuffix(" 1")
    prefixes = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
    power = 3 * math.floor(math.log10(abs(float(f"{value:.3g}"))) / 3)
    power = min(max(power, 0 if unit == "B" else -9), 12)
    return f"{value / 10.0**power:.3g} {prefixes[power]}{unit}"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of aligned columns, without trailing blanks."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _cell(rows: list[Speedup]) -> Iterator[str]:
    cell, trials = rows[0].cell, Trials(trial for row in rows for trial in row.trials)
    params = ", ".join(f"{name}={value}" for name, value in cell.params)
    yield f"{cell.workload}({params}), {cell.dtype}, {cell.device} ({trials[0].env.get('device_name', cell.target)})"
    yield from columns([HEADER, *map(_row, rows)])
    if floor := next((t.metrics["noise_floor"] for t in trials if "noise_floor" in t.metrics), None):
        low, high = floor.low or floor.value, floor.high or floor.value
        yield f"noise floor: eager over its own twin {floor.value:.3f}x [{low:.3f}, {high:.3f}]"
    if (copy := _median(trials, "copy_time")) is not None:
        yield f"a copy of the same bytes, timed in the same blocks: {quantity(copy, 's')}"
    processes = len({t.process for t in trials})
    if processes < MIN_PROCESSES:
        yield f"{processes} process{'es' * (processes > 1)}: exploratory; a headline needs --processes {MIN_PROCESSES} or more"
    for text in dict.fromkeys(_troubles(rows)):
        yield from textwrap.wrap(text, _WIDTH, subsequent_indent="  ")


def _row(found: Speedup) -> tuple[str, ...]:
    ok, ratio = found.trials.ok, found.ratio
    base = bool(found.over) and found.label == found.over[0].label
    over = "-" if ratio is None else "1 (best baseline)" if base else f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"
    time = _median(ok, "time")
    bound = _median(ok, "bound")
    return (
        found.label,
        "-" if time is None else quantity(time, "s"),
        over,
        "-" if ratio is None or base else ratio.verdict,
        "-" if (error := _median(ok, "error")) is None else f"{error:.2g}",
        "-" if (memory := _median(ok, "memory.peak")) is None else quantity(memory, "B"),
        "-" if time is None or bound is None or not time else f"{bound / time:.0%}",
        ", ".join(dict.fromkeys(trial.status for trial in found.trials)),
    )


def _median(trials: Trials, name: str) -> float | None:
    values = [trial.metrics[name].value for trial in trials if name in trial.metrics]
    return median(values) if values else None


def _troubles(rows: list[Speedup]) -> Iterator[str]:
    for row in rows:
        for trial in row.trials:
            if trial.advice:
                yield f"{row.label}: {'' if trial.status == 'ok' else trial.status + ', '}{trial.advice}"
        if row.ratio is None and row.reason and all(trial.status == "ok" for trial in row.trials):
            yield f"{row.label}: no speedup, because {row.reason}"
