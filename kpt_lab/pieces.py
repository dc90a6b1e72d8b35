"""Trials put in cells, each with its ratios formed and its code judged: what `columns` writes down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from kpt_lab import records
from kpt_lab.core import Trials
from kpt_lab.ratios import COPY, Cell, Speedup, cells, speedups

BEST = "best baseline"
PEERS = ("liger",)
"""Labels that are no baselines (a user may not have them) and yet what others would compare with."""

Kept = dict[Any, Any]


class Piece(NamedTuple):
    """One cell: its techniques' Trials by label, their Speedups by `over` and label, and which labels' code changed."""

    cell: Cell
    by_label: dict[str, Trials]
    speedups: dict[str, dict[str, Speedup]]
    judged: dict[str, str]

    @property
    def trials(self) -> Trials:
        return Trials(t for group in self.by_label.values() for t in group)


def labels_of(trials: Trials) -> list[str]:
    """Eager, then the other baselines, then the techniques, by name: an order that new Trials don't upset."""
    baselines = {t.label for t in trials if t.baseline}
    labels = {t.label for t in trials} - {COPY}
    return sorted(labels, key=lambda label: (label != "eager", label not in baselines, label))


def overs_of(trials: Trials, labels: Sequence[str], overs: Sequence[str] | None) -> tuple[str, ...]:
    """What speedups are formed over: `overs` as given, ValueError where one is no label, or the default."""
    if overs is None:
        baselines = {t.label for t in trials if t.baseline}
        return (BEST, *(label for label in labels if label in baselines or label in PEERS))
    given = (overs,) if isinstance(overs, str) else tuple(overs)
    if labels and (unknown := [over for over in given if over not in (BEST, *labels)]):
        raise ValueError(f"overs holds {unknown[0]!r}; accepted are {', '.join((BEST, *labels))}")
    return given


def pieces_of(trials: Trials, overs: tuple[str, ...], kept: Kept) -> list[Piece]:
    """The cells in order, each formed anew only where it holds a Trial that `kept` doesn't know."""
    keys: dict[Cell, Any] = {}
    new: list[tuple[Any, Cell, dict[str, Trials], Trials]] = []
    for cell, by_label in cells(trials).items():
        held = Trials(t for group in by_label.values() for t in group)
        keys[cell] = overs, *map(id, held)
        if keys[cell] not in kept:
            new.append((keys[cell], cell, by_label, held))
    statuses = iter(records.statuses(t for _, _, _, held in new for t in held))
    for key, cell, by_label, held in new:
        judged = dict.fromkeys(by_label, "")
        for trial, status in zip(held, statuses, strict=False):
            if status in ("stale", "unknown source") and judged[trial.label] != "stale":
                judged[trial.label] = status
        formed = {over: {s.label: s for s in speedups(held, over)} for over in overs}
        kept[key] = Piece(cell, by_label, formed, judged)  # it holds the Trials, so that no other gets one of those ids
    for key in kept.keys() - set(keys.values()):
        del kept[key]
    return [kept[keys[cell]]._replace(cell=cell) for cell in sorted(keys, key=_order)]


def _order(cell: Cell) -> tuple[Any, ...]:
    """Cells by workload, device, dtype, and by the values of their parameters, numbers before text."""
    values = tuple((name, *_rank(value)) for name, value in sorted(cell.params))
    return cell.workload, cell.target or cell.device, cell.device, cell.dtype, cell.host, values


def _rank(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and math.isfinite(value)
    return (0, value, "") if number else (1, 0.0, str(value))
