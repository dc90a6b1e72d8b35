"""Trials as columns: JSON-ready and without samples, which is all that the widgets' front end gets to see.

Every ratio, interval and verdict is formed here, by `kpt_lab.ratios`: the front end computes no statistics.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, get_args

from kpt_lab import panels
from kpt_lab.conditions import bound_of, ceilings, command, device_name, elsewhere, fits_cache, number, where, work_of
from kpt_lab.core import Incomparable, Metric, Provenance, Ratio, Status, Trial, Trials, Verdict
from kpt_lab.pieces import Kept, Piece, labels_of, overs_of, pieces_of
from kpt_lab.ratios import COPY, Speedup, compare, speedup

SCHEMA = 1
OF_CELL = ("bound", "noise_floor", "copy_time")
"""Metrics that belong to a cell: every technique's Trial repeats them."""

STALE = "The code of this technique, of its workload or of the measuring changed after this was recorded: record it again."
UNKNOWN = "The code that was measured can't be found here, so whether it changed since is unknown."
LIMIT = "At most this, if nothing is faster than the bound"
BEYOND = "; a technique of other arithmetic has a bound of its own, and may pass it"
OWN = "If both ran at the bounds of their own arithmetic; modelled"
CACHED = "; this work may stay in a cache, and then the bound can be beaten"
VERDICTS: tuple[str, ...] = get_args(Verdict)
STATUSES: tuple[str, ...] = get_args(Status)
PROVENANCES: tuple[str, ...] = get_args(Provenance)


def columns(
    trials: Iterable[Trial], *, overs: Sequence[str] | None = None, title: str = "", kept: Kept | None = None
) -> dict[str, Any]:
    """The Trials of each cell's newest run as columns, with each technique's speedup over each of `overs`.

    overs: "best baseline" or labels; by default the best baseline, every baseline, and peers such as liger. kept: a dict that
    a caller passes again and again, so that cells without a new Trial are not computed again. Numbers have 5 significant
    digits, times are in seconds; what isn't finite is None. Deterministic. ValueError where an `over` is no Trial's label.
    """
    trials = Trials((trials,) if isinstance(trials, Trial) else trials)
    if wrong := next((type(t).__name__ for t in trials if not isinstance(t, Trial)), ""):
        raise ValueError(f"trials holds a {wrong}; accepted are Trials, as measure, sweep or load return them")
    labels = labels_of(trials)
    chosen = overs_of(trials, labels, overs)
    pieces = pieces_of(trials, chosen, {} if kept is None else kept)
    book = _Book(labels, chosen, pieces)
    for piece in pieces:
        book.add(piece)
    book.rows["metrics"] = {name: book.rows["metrics"][name] for name in _ordered_metrics(book.units)}
    return {
        "schema": SCHEMA,
        "title": title,
        "workloads": book.workloads,
        "techniques": labels,
        "dtypes": book.dtypes,
        "targets": book.targets,
        "params": list(book.cells["params"]),
        "statuses": list(STATUSES),
        "verdicts": list(VERDICTS),
        "provenances": list(PROVENANCES),
        "texts": book.texts.found,
        "environments": book.environments,
        "metrics": {name: {"unit": book.units[name]} for name in book.rows["metrics"]},
        "overs": list(chosen),
        "ceilings": book.ceilings,
        "cells": _short(book.cells, ("workload",)),
        "rows": _short(book.rows, ("cell",)),
    }


def _short(columns: dict[str, Any], whole: tuple[str, ...] = ()) -> dict[str, Any]:
    """A column whose entries are all the same becomes that entry; the columns in `whole`, which tell the length, stay."""
    found: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, dict):
            found[name] = _short(column)
        else:
            same = column and name not in whole and all(v == column[0] and type(v) is type(column[0]) for v in column)
            found[name] = column[0] if same else column
    return found


# ---- filling the columns


class _Texts:
    """Strings, each kept once and referred to by its index; -1 is "nothing to say"."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        text = " ".join(text.split())
        if not text:
            return -1
        if text not in self._index:
            self._index[text] = len(self.found)
            self.found.append(text)
        return self._index[text]


class _Book:
    """The columns while they are filled, cell by cell."""

    def __init__(self, labels: Sequence[str], overs: Sequence[str], pieces: Sequence[Piece]) -> None:
        found = [piece.cell for piece in pieces]
        measured = {bool(cell.device) for cell in found}
        described = panels.describe(found, apart=len(measured) > 1)
        self.device = {cell: str(facts["device"]) for cell, facts in described.items()}
        self.labels = {label: i for i, label in enumerate(labels)}
        self.workloads = list(dict.fromkeys(cell.workload for cell in found))
        self.dtypes = list(dict.fromkeys(cell.dtype for cell in found))
        self.targets = list(dict.fromkeys(self.device[cell] for cell in found))
        self.texts, self.environments, self.units = _Texts(), list[dict[str, str]](), dict[str, str]()
        on: dict[str, list[Trials]] = {}
        for piece in pieces:
            on.setdefault(piece.cell.target, []).append(piece.trials)
        self.ceilings = ceilings(on)
        params = dict.fromkeys(name for cell in found for name, _ in cell.params)
        self.cells: dict[str, Any] = {name: [] for name in _CELL}
        self.cells["params"] = {name: [] for name in params}
        self.cells["predicted"] = {over: {"value": [], "text": [], "copy": []} for over in overs}
        self.rows: dict[str, Any] = {name: [] for name in _ROW} | {"metrics": {}, "ratios": {}}
        self.rows["ratios"] = {over: {name: [] for name in _RATIO} for over in overs}
        self.rows["predicted"] = {over: {"value": [], "text": []} for over in overs}

    def add(self, piece: Piece) -> None:
        """Fill in one cell and a row for each of its techniques; a cell that holds nothing but the copy has none."""
        shown = [label for label in self.labels if label in piece.by_label]
        if not shown:
            return
        index, bound = len(self.cells["workload"]), bound_of(piece.trials)
        self._cell(piece, bound)
        for label in shown:
            self._row(index, label, piece)
            self._metrics(piece.by_label[label], bound)
        for over, by_label in piece.speedups.items():
            self._limit(self.cells["predicted"][over], piece, over, bound)
            for label in shown:
                self._ratio(self.rows["ratios"][over], by_label[label])
                self._predicted(self.rows["predicted"][over], by_label[label])

    def _cell(self, piece: Piece, bound: Metric | None) -> None:
        cell, trials = piece.cell, piece.trials
        work, traffic = work_of(trials)
        given = dict(cell.params)
        for name, column in self.cells["params"].items():
            column.append(_scalar(given[name]) if name in given else None)
        floors = [t.metrics["noise_floor"] for t in trials if "noise_floor" in t.metrics]
        copies = [t.metrics["copy_time"].value for t in trials if "copy_time" in t.metrics]
        values = {
            "workload": self.workloads.index(cell.workload),
            "dtype": self.dtypes.index(cell.dtype),
            "target": self.targets.index(self.device[cell]),
            "ceiling": next((i for i, c in enumerate(self.ceilings) if c["name"] == cell.target), -1),
            "environment": self._environment(trials[0]),
            "bound": number(bound.value if bound else None),
            "bound_source": self.texts(f"{bound.provenance}: {bound.source or 'no source given'}" if bound else ""),
            "copy": number(median(copies) if copies else None),
            "floor_low": number(min((m.low for m in floors if m.low is not None), default=None)),
            "floor_high": number(max((m.high for m in floors if m.high is not None), default=None)),
            "flops": number(sum(work.values()) if work else None),
            "arithmetic": self.texts(max(work, key=lambda kind: work[kind]) if work else ""),
            "bytes": number(traffic),
            "at": max(t.at for t in trials)[:10],
            "cache": self.texts(str(trials[0].chosen.get("cache", ""))),
            "command": self.texts(command(cell, trials)),
        }
        for name, value in values.items():
            self.cells[name].append(value)

    def _environment(self, trial: Trial) -> int:
        entry = {"text": where(trial), "device": device_name(trial), "elsewhere": elsewhere(trial)}
        if entry not in self.environments:
            self.environments.append(entry)
        return self.environments.index(entry)

    def _row(self, index: int, label: str, piece: Piece) -> None:
        group = piece.by_label[label]
        bad = next((t for t in group if t.status != "ok"), group[0])
        blocks = [len(next(iter(t.samples.values()), ())) for t in group]
        values = {
            "cell": index,
            "technique": self.labels[label],
            "status": STATUSES.index(bad.status),
            "advice": self.texts(bad.advice),
            "processes": len(group),
            "blocks": sum(blocks),
            "contract": self.texts(group[0].contract),
            "stale": self.texts(STALE if piece.judged[label] == "stale" else ""),
            "unknown": self.texts(UNKNOWN if piece.judged[label] == "unknown source" else ""),
            "baseline": int(group[0].baseline),
        }
        for name, value in values.items():
            self.rows[name].append(value)

    def _metrics(self, group: Trials, bound: Metric | None) -> None:
        if len(group.ok) < len(group):  # a technique that failed in one process has no numbers
            group = Trials()
        before = len(self.rows["cell"]) - 1
        names = dict.fromkeys(name for t in group for name in t.metrics if name not in OF_CELL)
        own = next((t.metrics["bound"] for t in group if "bound" in t.metrics), None)
        if own and bound and not math.isclose(own.value, bound.value, rel_tol=1e-6):
            names["bound"] = None  # this technique uses other arithmetic than the rest of the cell
        columns = self.rows["metrics"]
        for name in names:
            if name not in columns:
                columns[name] = {key: [None] * before for key in ("value", "low", "high")} | {"provenance": [-1] * before}
                self.units[name] = next(t.metrics[name].unit for t in group if name in t.metrics)
        for name, column in columns.items():
            found = [t.metrics[name] for t in group if name in names and name in t.metrics]
            value, low, high = pooled(found)
            column["value"].append(number(value))
            column["low"].append(number(low))
            column["high"].append(number(high))
            column["provenance"].append(PROVENANCES.index(found[0].provenance) if found else -1)

    def _ratio(self, column: dict[str, list[Any]], found: Speedup) -> None:
        ratio = found.ratio
        over = found.over[0].label if found.over else ""
        column["value"].append(number(ratio.value if ratio else None))
        low, high = ends(ratio) if ratio else (None, None)
        column["low"].append(low)
        column["high"].append(high)
        column["verdict"].append(VERDICTS.index(ratio.verdict) if ratio else -1)
        column["over"].append(self.labels.get(over, -1))
        column["reason"].append(self.texts(ratio.note if ratio else found.reason))

    def _limit(self, column: dict[str, list[Any]], piece: Piece, over: str, bound: Metric | None) -> None:
        """The largest speedup over `over` that the cell's bound allows: the figures draw the same number as a line."""
        base = next((s.over for s in piece.speedups[over].values() if s.over), Trials())
        times = [t.metrics["time"].value for t in base.ok if "time" in t.metrics]
        value, text = None, ""
        if bound and bound.value > 0 and times and len(times) == len(base):
            value = median(times) / bound.value
            own = [t.metrics["bound"].value for t in piece.trials if t.label != COPY and "bound" in t.metrics]
            text = f"{LIMIT} ({bound.provenance}: {bound.source})" + BEYOND * (min(own, default=math.inf) < 0.999 * bound.value)
            text += CACHED * fits_cache(piece.cell.target, piece.trials)
        column["value"].append(number(value))
        column["text"].append(self.texts(text))
        column["copy"].append(number(_copy_ratio(piece, base)))

    def _predicted(self, column: dict[str, list[Any]], found: Speedup) -> None:
        """For a technique whose arithmetic is not its baseline's: the modelled ratio of the two bounds."""
        value, sides = None, (found.over, found.trials)
        bounds = [side[0].metrics["bound"].value for side in sides if side and "bound" in side[0].metrics]
        if len(bounds) == 2 and not math.isclose(*bounds, rel_tol=1e-6):
            with contextlib.suppress(Incomparable):
                value = compare(*sides, metric="bound").value
        column["value"].append(number(value))
        column["text"].append(self.texts(OWN if value is not None else ""))


_CELL = (
    "workload", "dtype", "target", "ceiling", "environment", "params", "bound", "bound_source", "copy", "floor_low", "floor_high",
    "flops", "arithmetic", "bytes", "at", "cache", "command",
)  # fmt: skip
_ROW = ("cell", "technique", "status", "advice", "processes", "blocks", "contract", "stale", "unknown", "baseline")
_RATIO = ("value", "low", "high", "verdict", "over", "reason")


def ends(ratio: Ratio) -> tuple[float | int | None, float | int | None]:
    """An interval's ends around the value as `number` gives it, at 4 digits where they lie so far apart that no more are read."""
    value, digits = number(ratio.value), 4 if ratio.high - ratio.low > 0.01 * ratio.value else 5
    low, high = number(ratio.low, digits), number(ratio.high, digits)
    if value is None:
        return low, high
    return low if low is None else min(low, value), high if high is None else max(high, value)


def _copy_ratio(piece: Piece, base: Trials) -> float | None:
    """How many times faster a copy of the same bytes was than `base`, where the rules allow that ratio."""
    if not base or COPY not in piece.by_label:
        return None
    with contextlib.suppress(Incomparable):
        return speedup(piece.by_label[COPY], base).value
    return None


def pooled(found: Sequence[Metric]) -> tuple[float | None, float | None, float | None]:
    """Value and interval of one metric over processes: one process's own interval, or the span of several medians."""
    if not found:
        return None, None, None
    if len(found) == 1:
        return found[0].value, found[0].low, found[0].high
    values = [metric.value for metric in found]
    return median(values), min(values), max(values)


def _ordered_metrics(units: Mapping[str, str]) -> list[str]:
    """Time first, then error, then the rest by name."""
    first = ("time", "error", "quality", "wall_time")
    return sorted(units, key=lambda name: (first.index(name) if name in first else len(first), name))


def _scalar(value: Any) -> Any:
    """A parameter as JSON holds it: numbers, text and booleans as they are, anything else as text."""
    plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
