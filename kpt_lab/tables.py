"""The README's table, written from recorded Trials: `python -m kpt_lab.tables` in the repository's root."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kpt_lab.conditions import where
from kpt_lab.core import Ratio, Trials
from kpt_lab.ratios import MIN_PROCESSES, speedups
from kpt_lab.records import load, status_of

BEGIN, END = "<!-- trials:begin -->", "<!-- trials:end -->"
NONE_YET = "No Trials are recorded yet."
HEADER = ("operation", "inputs", "technique", "best baseline", "speedup", "verdict")


def recorded(folder: str | Path) -> Trials:
    """All Trials of the JSON lines files in `folder`, in the files' order."""
    return load(sorted(Path(folder).glob("*.jsonl")))


def headline_table(trials: Trials) -> str:
    """Markdown: for each machine a table of the headline speedups over the best baseline, and what they ran on."""
    rows: dict[str, list[Sequence[str]]] = {}
    for found in speedups(trials):
        if found.ratio is None or found.ratio.processes < MIN_PROCESSES or found.trials[0].baseline:
            continue
        ratio, cell = found.ratio, found.cell
        stale = "stale" in {status_of(found.trials[0]), status_of(found.over[0])}
        rows.setdefault(conditions(found.trials), []).append(
            (
                cell.workload,
                f"{', '.join(f'{name} {value}' for name, value in cell.params)}, {cell.dtype}",
                found.label,
                found.over[0].label,
                f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]",  # six processes always have an interval
                ratio.verdict + (" when recorded; the code was edited since" if stale else ""),
            )
        )
    parts = [f"{place}\n\n{markdown(HEADER, lines)}" for place, lines in rows.items()]
    return "\n\n".join(parts) or NONE_YET


def conditions(trials: Trials) -> str:
    """One sentence: device, versions and day of these Trials, and which clock they were timed by."""
    return f"{where(trials[0]).removesuffix('.')}; {trials[0].at[:10]}."


def span(ratio: Ratio) -> str:
    """A ratio with its interval, where it has one: "1.52x [1.51, 1.52]"."""
    if ratio.low == ratio.high:
        return f"{ratio.value:.2f}x"
    if not math.isfinite(ratio.high):
        return f"{ratio.value:.2f}x, interval unbounded"
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def insert(page: str, table: str) -> str:
    """`page` with `table` between the two markers; ValueError where they are missing or out of order."""
    start, end = page.find(BEGIN), page.find(END)
    if start < 0 or end < start or page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"page must hold {BEGIN} and after it {END}, once each")
    return f"{page[: start + len(BEGIN)]}\n{table}\n{page[end:]}"


def main(page: str = "README.md", folder: str = "notebooks/phase1/results") -> None:
    """Rewrite the table in `page` from the Trials in `folder`."""
    path = Path(page)
    path.write_text(insert(path.read_text(encoding="utf-8"), headline_table(recorded(folder))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
