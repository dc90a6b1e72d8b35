"""Whole models of Transformers under flashlight, as recorded: tables for its notebook."""

from __future__ import annotations

import statistics
from pathlib import Path

from kpt_lab import evidence, look, tables
from kpt_lab.core import Trials
from kpt_lab.ratios import Cell, cells, compare

EAGER, FLASHLIGHT = "eager", "flashlight"
MODES = {"forward": "forward", "backward": "forward and gradients", "step": "training step"}
_MIRRORED = {"FASTER": "SLOWER", "SLOWER": "FASTER"}


def recorded(folder: str | Path = "results") -> Trials:
    """The Trials of benchmarks/flashlight_transformers.py that were recorded on a GPU; none where nothing is recorded yet."""
    from kpt_lab.records import load

    files = sorted(Path(folder).glob("transformers.*.jsonl"))
    return load(files).where(device="cuda") if files else Trials()


def table(trials: Trials, metric: str = "wall_time") -> str:
    """Markdown: of each model and mode the time of each attention, and flashlight over the fastest of the others.

    metric: "wall_time", from an idle device until it is idle again, or "time", the device's own.
    """
    rows, names = [], list(dict.fromkeys(t.label for t in trials if t.label != FLASHLIGHT))
    for cell, by_label in cells(trials).items():
        good = {label: Trials(t for t in found.ok if metric in t.metrics) for label, found in by_label.items()}
        times = {label: statistics.median(t.metrics[metric].value for t in found) for label, found in good.items() if found}
        shown = [look.quantity(times[name], "s") if name in times else "" for name in (*names, FLASHLIGHT)]
        rows.append((*_titles(cell), *shown, *_over(good, times, metric)))
    ends = ("fastest other", f"{FLASHLIGHT} over it", "verdict")
    return tables.markdown(("model", "what", *map(_name, names), FLASHLIGHT, *ends), rows)


def memory(trials: Trials) -> str:
    """Markdown: of each model and mode the peak of memory beyond model and inputs, eager and with flashlight."""
    rows = []
    for cell, by_label in cells(trials).items():
        peaks = [
            max(
                (t.metrics["memory.peak"].value for t in by_label.get(name, Trials()).ok if "memory.peak" in t.metrics),
                default=0,
            )
            for name in (EAGER, FLASHLIGHT)
        ]
        if all(peaks):
            rows.append((*_titles(cell), *(look.quantity(peak, "B") for peak in peaks), f"{peaks[1] / peaks[0]:.0%}"))
    return tables.markdown(("model", "what", EAGER, FLASHLIGHT, "share"), rows)


def _over(good: dict[str, Trials], times: dict[str, float], metric: str) -> tuple[str, str, str]:
    """The fastest of the others, flashlight's speedup over it, and the verdict."""
    others = [label for label in times if label != FLASHLIGHT]
    if FLASHLIGHT not in times or not others:
        return "", "", ""
    best = min(others, key=times.__getitem__)
    # of the other's time over ours, so that the verdict is the other's
    ratio = compare(good[best], good[FLASHLIGHT], metric, choices=len(others))
    verdict = _MIRRORED.get(ratio.verdict, ratio.verdict) + evidence.stale((*good[FLASHLIGHT], *good[best]))
    return _name(best), tables.span(ratio), verdict


def _titles(cell: Cell) -> tuple[str, str]:
    mode = str(dict(cell.params).get("mode", ""))
    return cell.workload.removeprefix("transformers."), MODES.get(mode, mode)


def _name(label: str) -> str:
    """A technique's label without the name of the switch: attn_implementation(name=sdpa) is sdpa."""
    return label.removeprefix("attn_implementation(name=").rstrip(")") if label.startswith("attn_implementation") else label
