"""Trials as columns: JSON-ready and without samples, which is all that the widgets' front end gets to see.

Every ratio, interval and verdict is formed here, by `kpt_lab.ratios`: the front end computes no statistics.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, get_args

from kpt_lab import panels, records
from kpt_lab.core import Metric, Provenance, Status, Target, Trial, Trials, Verdict
from kpt_lab.environment import environment
from kpt_lab.hardware import targets
from kpt_lab.ratios import COPY, Cell, Speedup, cells, speedups

SCHEMA = 1
BEST = "best baseline"
PEERS = ("liger",)
"""Labels that are no baselines (a user may not have them) and yet what others would compare with."""

OF_CELL = ("bound", "noise_floor", "copy_time")
"""Metrics that belong to a cell: every technique's Trial repeats them."""

STALE = "The code of this technique, of its workload or of the measuring changed after this was recorded: record it again."
UNKNOWN = "The code that was measured can't be found here, so whether it changed since is unknown."
VERDICTS: tuple[str, ...] = get_args(Verdict)
STATUSES: tuple[str, ...] = get_args(Status)
PROVENANCES: tuple[str, ...] = get_args(Provenance)

Kept = dict[Any, Any]


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
    labels = _labels(trials)
    chosen = _overs(trials, labels, overs)
    pieces = _pieces(trials, chosen, {} if kept is None else kept)
    book = _Book(labels, pieces)
    for piece in pieces:
        book.add(piece)
    metrics = {name: book.rows["metrics"][name] for name in _ordered_metrics(book.units)}
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
        "metrics": {name: {"unit": book.units[name]} for name in metrics},
        "overs": list(chosen),
        "ceilings": _ceilings(pieces),
        "cells": book.cells,
        "rows": {**book.rows, "metrics": metrics},
    }


class _Piece(NamedTuple):
    """One cell: its techniques' Trials by label, their Speedups by `over`, and whether each label is stale."""

    cell: Cell
    by_label: dict[str, Trials]
    speedups: dict[str, list[Speedup]]
    judged: dict[str, str]

    @property
    def trials(self) -> Trials:
        return Trials(t for group in self.by_label.values() for t in group)


def _labels(trials: Trials) -> list[str]:
    """Eager, then the other baselines, then the techniques, by name: an order that new Trials don't upset."""
    baseline = {t.label: t.baseline for t in trials if t.label != COPY}
    return sorted(baseline, key=lambda label: (label != "eager", not baseline[label], label))


def _overs(trials: Trials, labels: Sequence[str], overs: Sequence[str] | None) -> tuple[str, ...]:
    if overs is None:
        baselines = {t.label for t in trials if t.baseline}
        return (BEST, *(label for label in labels if label in baselines or label in PEERS))
    given = (overs,) if isinstance(overs, str) else tuple(overs)
    if unknown := [over for over in given if over not in (BEST, *labels)]:
        raise ValueError(f"overs holds {unknown[0]!r}; accepted are {', '.join((BEST, *labels))}")
    return given


def _pieces(trials: Trials, overs: tuple[str, ...], kept: Kept) -> list[_Piece]:
    """The cells in order, each formed anew only where it holds a Trial that `kept` doesn't know."""
    found = []
    for cell, by_label in cells(trials).items():
        held = Trials(t for group in by_label.values() for t in group)
        key = (overs, *map(id, held))
        if key not in kept:
            kept[key] = _piece(cell, by_label, held, overs), held  # `held` keeps those ids from being given anew
        found.append(kept[key][0]._replace(cell=cell))
    return sorted(found, key=lambda piece: _order(piece.cell))


def _piece(cell: Cell, by_label: dict[str, Trials], held: Trials, overs: Sequence[str]) -> _Piece:
    judged = dict.fromkeys(by_label, "")
    for trial, status in zip(held, records.statuses(held), strict=True):
        if status in ("stale", "unknown source") and judged[trial.label] != "stale":
            judged[trial.label] = status
    return _Piece(cell, by_label, {over: speedups(held, over) for over in overs}, judged)


def _order(cell: Cell) -> tuple[Any, ...]:
    """Cells by workload, device, dtype, and by the values of their parameters, numbers before text."""
    values = tuple((name, *_rank(value)) for name, value in sorted(cell.params))
    return cell.workload, cell.target or cell.device, cell.device, cell.dtype, cell.host, values


def _rank(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and math.isfinite(value)
    return (0, value, "") if number else (1, 0.0, str(value))


def number(value: float | None) -> float | int | None:
    """The number at 5 significant digits, whole ones as int, or None where it is missing or not finite: JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if abs(rounded) < 1e15 and rounded == int(rounded) else rounded


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

    def __init__(self, labels: Sequence[str], pieces: Sequence[_Piece]) -> None:
        found = [piece.cell for piece in pieces]
        measured = {bool(cell.device) for cell in found}
        described = panels.describe(found, apart=len(measured) > 1)
        self.device = {cell: str(facts["device"]) for cell, facts in described.items()}
        self.labels = {label: i for i, label in enumerate(labels)}
        self.workloads = list(dict.fromkeys(cell.workload for cell in found))
        self.dtypes = list(dict.fromkeys(cell.dtype for cell in found))
        self.targets = list(dict.fromkeys(self.device[cell] for cell in found))
        self.texts, self.environments, self.units = _Texts(), list[dict[str, str]](), dict[str, str]()
        params = dict.fromkeys(name for cell in found for name, _ in cell.params)
        self.cells: dict[str, Any] = {name: [] for name in _CELL}
        self.cells["params"] = {name: [] for name in params}
        self.rows: dict[str, Any] = {name: [] for name in _ROW} | {"metrics": {}, "ratios": {}}
        overs = pieces[0].speedups if pieces else {}
        self.rows["ratios"] = {over: {name: [] for name in _RATIO} for over in overs}

    def add(self, piece: _Piece) -> None:
        """Fill in one cell and a row for each of its techniques; a cell that holds nothing but the copy has none."""
        shown = [label for label in self.labels if label in piece.by_label]
        if not shown:
            return
        index = len(self.cells["workload"])
        self._cell(piece)
        for label in shown:
            self._row(index, label, piece)
        for over, found in piece.speedups.items():
            by_label = {s.label: s for s in found}
            for label in shown:
                self._ratio(self.rows["ratios"][over], by_label[label], piece)

    def _cell(self, piece: _Piece) -> None:
        cell, trials = piece.cell, piece.trials
        work, traffic = _work(trials)
        bound = _bound(trials)
        given = dict(cell.params)
        for name, column in self.cells["params"].items():
            column.append(_scalar(given[name]) if name in given else None)
        floors = [t.metrics["noise_floor"] for t in trials if "noise_floor" in t.metrics]
        copies = [t.metrics["copy_time"].value for t in trials if "copy_time" in t.metrics]
        values = {
            "workload": self.workloads.index(cell.workload),
            "dtype": self.dtypes.index(cell.dtype),
            "target": self.targets.index(self.device[cell]),
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
        entry = {"text": _conditions(trial), "device": _device_name(trial), "elsewhere": _elsewhere(trial)}
        if entry not in self.environments:
            self.environments.append(entry)
        return self.environments.index(entry)

    def _row(self, index: int, label: str, piece: _Piece) -> None:
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
        self._metrics(group.ok if bad.status == "ok" else Trials(), _bound(piece.trials))

    def _metrics(self, group: Trials, bound: Metric | None) -> None:
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

    def _ratio(self, column: dict[str, list[Any]], found: Speedup, piece: _Piece) -> None:
        ratio = found.ratio
        over = found.over[0].label if found.over else ""
        column["value"].append(number(ratio.value if ratio else None))
        column["low"].append(number(ratio.low if ratio else None))
        column["high"].append(number(ratio.high if ratio else None))
        column["verdict"].append(VERDICTS.index(ratio.verdict) if ratio else -1)
        column["over"].append(self.labels.get(over, -1))
        column["reason"].append(self.texts(ratio.note if ratio else found.reason))


_CELL = (
    "workload", "dtype", "target", "environment", "params", "bound", "bound_source", "copy", "floor_low", "floor_high",
    "flops", "arithmetic", "bytes", "at", "cache", "command",
)  # fmt: skip
_ROW = ("cell", "technique", "status", "advice", "processes", "blocks", "contract", "stale", "unknown", "baseline")
_RATIO = ("value", "low", "high", "verdict", "over", "reason")


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


def _bound(trials: Trials) -> Metric | None:
    """The bound that most of a cell's Trials have: that of the workload's own cost."""
    found = [t.metrics["bound"] for t in trials if "bound" in t.metrics and t.label != COPY]
    if not found:
        return None
    most = Counter(m.value for m in found).most_common(1)[0][0]
    return next(m for m in found if m.value == most)


def _work(trials: Trials) -> tuple[dict[str, float], float | None]:
    """The cell's FLOPs by arithmetic type and its bytes, as its Trials keep them."""
    chosen = next((t.chosen for t in trials if "bytes" in t.chosen), {})
    work = chosen.get("flops", {})
    flops = work if isinstance(work, Mapping) else {trials[0].dtype: work}
    return {kind: float(count) for kind, count in flops.items() if count}, chosen.get("bytes")


# ---- where it ran, and how to run it again


def _device_name(trial: Trial) -> str:
    return str(trial.env.get("device_name") or trial.target or trial.device)


def _conditions(trial: Trial) -> str:
    """One sentence: device, clock and versions; or that nothing was measured."""
    if not trial.device:
        source = trial.source.get("publication")
        return f"Quoted from {source}." if source else f"Modelled for {_device_name(trial)}; nothing was measured."
    env = trial.env
    versions = [f"{name} {env[name]}" for name in ("torch", "triton", "python", "driver") if env.get(name)]
    clock = "device time" if trial.device.startswith("cuda") else "wall time"
    return f"{_device_name(trial)}, {clock}" + (f"; {', '.join(versions)}." if versions else ".")


def _elsewhere(trial: Trial) -> str:
    """For this very host, which versions have changed since; "" for another machine, or where all is as it was."""
    try:
        here = environment(trial.device) if trial.host else {}
    except ValueError:  # no such device here, so it isn't the same host
        return ""
    if not trial.host or here.get("host") != trial.host:
        return ""
    changed = [n for n in ("torch", "triton", "driver") if trial.env.get(n, "") != here.get(n, "")]
    then, now = (", ".join(f"{n} {env.get(n) or 'absent'}" for n in changed) for env in (trial.env, here))
    return f"Recorded on this machine with {then}; it now has {now}." if changed else ""


def command(cell: Cell, trials: Trials) -> str:
    """The `kpt-lab sweep` command that measures this cell again, or "" where the command line can't say it."""
    from kpt_lab.cli import parse_grid  # only here: the command line needs everything else

    target = _command_target(str(next((t.source["workload_at"] for t in trials if "workload_at" in t.source), "")))
    cache = trials[0].chosen.get("cache")
    usual = "cold" if cell.device.startswith("cuda") else "warm"
    grid = [f"{name}={value}" for name, value in cell.params]
    try:
        same = parse_grid(grid) == {name: [value] for name, value in cell.params}
    except ValueError:
        same = False
    if not (target and cell.device and same and cache in (None, usual)):
        return ""
    words = ["kpt-lab", "sweep", target, *(["--grid", *grid] if grid else []), "--device", cell.device, "--dtype", cell.dtype]
    seed, processes = trials[0].seed, len({t.process for t in trials})
    words += (["--seed", str(seed)] if seed else []) + (["--processes", str(processes)] if processes > 1 else [])
    return shlex.join(words)


def _command_target(at: str) -> str:
    """TARGET of the command line for a Workload that stands at "module:attribute": kernels.softmax:forward, my_file.py:model."""
    module, _, attribute = at.partition(":")
    if not attribute.isidentifier() or module == "__main__":
        return ""
    if module.startswith("kpt_lab."):
        return f"{module.removeprefix('kpt_lab.')}:{attribute}"
    return f"{module}.py:{attribute}" if module.isidentifier() else ""


# ---- ceilings


def _ceilings(pieces: Sequence[_Piece]) -> list[dict[str, Any]]:
    """Every Target with a data sheet, and those that were probed where the Trials ran, as far as their bounds tell."""
    names = {target.name: device for device, target in targets._BY_DEVICE_NAME.items()}
    known = [value for value in vars(targets).values() if isinstance(value, Target)]
    sheets = [_sheet(target, names.get(target.name, target.name)) for target in known]
    probed: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        if piece.cell.target and piece.cell.target not in {target.name for target in known}:
            _implied(probed.setdefault(piece.cell.target, _ceiling(piece.cell.target)), piece.trials)
    return [*sheets, *probed.values()]


def _ceiling(name: str) -> dict[str, Any]:
    return {"name": name, "text": name, "peaks": {}, "bandwidth": None, "source": "", "provenance": "measured"}


def _sheet(target: Target, text: str) -> dict[str, Any]:
    return _ceiling(target.name) | {
        "text": text,
        "peaks": {kind: number(peak * target.count) for kind, peak in target.peaks.items()},
        "bandwidth": number(target.bandwidth * target.count),
        "source": "; ".join(dict.fromkeys(target.source[name] for name in ("bandwidth", *target.peaks))),
        "provenance": "quoted",
    }


def _implied(ceiling: dict[str, Any], trials: Trials) -> None:
    """Fill in what a bound says about a probed Target: its bandwidth, or the peak of the one arithmetic type used.

    The Trials don't keep the probe's figures, and probing again would give this machine's, not those of then.
    """
    bound, (work, traffic) = _bound(trials), _work(trials)
    if bound is None or not bound.value > 0:
        return
    if bound.source.startswith("bytes over bandwidth") and traffic:
        ceiling["bandwidth"] = ceiling["bandwidth"] or number(traffic / bound.value)
    elif bound.source.startswith("FLOPs over peak") and len(work) == 1:
        ((kind, count),) = work.items()
        ceiling["peaks"].setdefault(kind, number(count / bound.value))
    ceiling["source"] = ceiling["source"] or bound.source
