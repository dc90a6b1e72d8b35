"""What a technique is held against besides baselines: the hardware's bound, and a copy of the same bytes, as lines."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kpt_lab import look, ratios
from kpt_lab.core import Incomparable, Trials
from kpt_lab.draw import Reference


def bounds(groups: Iterable[tuple[Any, str, Trials, float]], name: str) -> list[Reference]:
    """Lines of the bound: its time, or `time` / bound where a time is given; one line for labels that share their bounds."""
    merged: list[tuple[dict[Any, float], list[str], list[str]]] = []
    by_label: dict[str, dict[Any, float]] = {}
    sources: dict[str, list[str]] = {}
    for cell, _, trials, time in groups:
        for trial in trials:
            bound = trial.metrics.get("bound")
            if bound is not None and bound.value > 0 and trial.status == "ok":
                by_label.setdefault(trial.label, {})[cell] = time / bound.value if time else bound.value
                sources.setdefault(trial.label, []).append(
                    f"{bound.provenance}: {bound.source}" if bound.source else bound.provenance
                )
    for label, values in by_label.items():
        for line, labels, origins in merged:
            if all(math.isclose(line[cell], v, rel_tol=1e-6) for cell, v in values.items() if cell in line):
                line.update(values)
                labels.append(label)
                origins.extend(sources[label])
                break
        else:
            merged.append((dict(values), [label], list(sources[label])))
    made = []
    for i, (line, labels, origins) in enumerate(sorted(merged, key=lambda each: -len(each[1]))):
        kind = "/".join(dict.fromkeys(o.split(":")[0] for o in origins))
        few = ", ".join(labels[:2]) + (f" and {len(labels) - 2} more" if len(labels) > 2 else "")
        title = f"{name} of {few} ({kind})" if i else f"{name} ({kind})"
        made.append(Reference(title, line, f"{title}: {origins[0]}", "solid" if i == 0 else look.DASHES[1 + (i - 1) % 5]))
    return made


def copies(groups: Iterable[tuple[Any, str, Trials]]) -> list[Reference]:
    """The line of a copy of the same bytes, timed in the same blocks, where the Trials have one."""
    found: dict[Any, list[float]] = {}
    for cell, _, trials in groups:
        found.setdefault(cell, []).extend(t.metrics["copy_time"].value for t in trials if "copy_time" in t.metrics)
    return copy_line({cell: statistics.median(each) for cell, each in found.items() if each})


def copy_ratios(trials: Trials, formed: Sequence[Any]) -> dict[Any, float]:
    """The copy's speedup over each cell's baseline, where the rules allow one."""
    copies = ratios.cells(t for t in trials if t.label == ratios.COPY)
    found = {}
    for cell, over in {s.cell: s.over for s in formed}.items():
        if cell in copies:
            with contextlib.suppress(Incomparable):
                found[cell] = ratios.speedup(copies[cell][ratios.COPY], over).value
    return found


def copy_line(values: Mapping[Any, float]) -> list[Reference]:
    """The copy's line with these values by cell, or none."""
    name = "copy of the same bytes (measured)"
    return [Reference(name, values, name, "dot")] if values else []


def bound_note(trials: Trials) -> list[str]:
    """Where the bounds come from, in one sentence, or nothing."""
    found = dict.fromkeys((b.provenance, b.source) for t in trials if (b := t.metrics.get("bound")))
    return (
        ["Hardware bound, " + "; ".join(f"{kind}: {source}" if source else kind for kind, source in found) + "."]
        if found
        else []
    )
