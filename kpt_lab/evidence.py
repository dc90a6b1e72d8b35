"""Trials -> words: the one-line answer of a notebook, its table of results, and its ledger of what to believe.

Every number in them comes from Trials, and every ratio from `kpt_lab.ratios`, under its rules. All return Markdown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kpt_lab.core import Trial, Trials
from kpt_lab.ratios import MIN_PROCESSES, Speedup, speedups
from kpt_lab.records import status_of
from kpt_lab.tables import conditions, markdown

_WORDS = {"FASTER": "is faster than", "SLOWER": "is slower than", "SAME": "is as fast as", "UNCLEAR": "can't be told from"}


def answer(trials: Iterable[Trial], technique: str, over: str = "best baseline") -> str:
    """One sentence: in how many cells the technique (its label) was FASTER, SAME, SLOWER or UNCLEAR, from what to what.

    ValueError where it has no ratio in any cell, with the reason of the first.
    """
    found = _formed(trials, technique, over)
    counts = Counter(s.ratio.verdict for s in found)
    verdicts = ", ".join(f"{counts[name]} {name}" for name in ("FASTER", "SAME", "SLOWER", "UNCLEAR") if counts[name])
    values = sorted(s.ratio.value for s in found)
    span = f"{values[0]:.2f}x" if len(found) == 1 else f"{values[0]:.2f}x to {values[-1]:.2f}x"
    base = "each cell's best baseline" if over == "best baseline" else over
    cells = "1 cell" if len(found) == 1 else f"{len(found)} cells"
    return f"**{technique} against {base}, {cells}: {verdicts}; {span}.** {conditions(found[0].trials)}"


def table(
    trials: Iterable[Trial],
    technique: str | None = None,
    over: str = "best baseline",
    verdicts: Sequence[str] = (),
) -> str:
    """Each technique of each cell (or one, by label): time, speedup with its interval, verdict, and share of the bound.

    A technique without a ratio shows its status and advice. verdicts: only rows with one of these, such as ("SLOWER",).
    """
    rows = []
    for s in speedups(trials, over):
        if technique in (None, s.label) and (not verdicts or (s.ratio and s.ratio.verdict in verdicts)):
            rows.append((s.cell.workload, inputs(s), s.label, *_result(s)))
    if not rows:
        return "No cell."
    return markdown(("operation", "inputs", "technique", "time", "speedup", "over", "verdict", "of the bound"), rows)


def ledger(trials: Iterable[Trial], technique: str, over: str = "best baseline") -> str:
    """What to believe: for each cell claim, evidence, conditions, and what was not shown."""
    rows = []
    for s in _formed(trials, technique, over):
        ratio, first = s.ratio, s.trials[0]
        claim = f"{s.label} {_WORDS[ratio.verdict]} {s.over[0].label}: {_span(ratio)}"
        kind = "1 process, exploratory" if ratio.processes == 1 else f"{ratio.processes} fresh processes"
        error = max((t.metrics["error"].value for t in s.trials if "error" in t.metrics), default=None)
        checked = "" if error is None else f"; largest error {error:.1e}, allowed {first.chosen.get('error_limit', 0):.1e}"
        evidence = f"{ratio.provenance}, {kind}, {ratio.blocks} blocks{checked}"
        rows.append((claim, evidence, f"{s.cell.workload}, {inputs(s)}. {conditions(s.trials)}", "; ".join(_not_shown(s))))
    return markdown(("claim", "evidence", "conditions", "not shown"), rows)


def inputs(found: Speedup) -> str:
    """A cell's parameters, dtype and cache in words: "rows 4096, cols 1024, bfloat16, cold cache"."""
    cache = found.trials[0].chosen.get("cache")
    words = [f"{name} {value}" for name, value in found.cell.params] + [found.cell.dtype]
    return ", ".join([*words, f"{cache} cache"] if cache else words)


def _formed(trials: Iterable[Trial], technique: str, over: str) -> list[Any]:
    """The Speedups of one technique that have a ratio over another."""
    everything = [s for s in speedups(Trials(trials), over) if s.label == technique]
    formed = [s for s in everything if s.ratio and s.over[0].label != technique]
    if not formed:
        why = everything[0].reason if everything else "no Trial has that label"
        raise ValueError(f"technique {technique!r} has no speedup over {over!r}: {why or 'it is the baseline itself'}")
    return formed


def _span(ratio: Any) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.value:.2f}x"
    if not math.isfinite(ratio.high):
        return f"{ratio.value:.2f}x, interval unbounded"
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _result(found: Speedup) -> tuple[str, ...]:
    """Time, speedup, baseline, verdict and share of the bound; or status and advice where there is no ratio."""
    good = found.trials.ok
    if found.ratio is None or not good:
        bad = next((t for t in found.trials if t.status != "ok"), found.trials[0])
        return "", "", "", f"{bad.status}: {bad.advice or found.reason}", ""
    times = sorted(t.time for t in good)
    time = times[len(times) // 2]
    bound = good[0].metrics.get("bound")
    share = f"{bound.value / time:.0%}" if bound else ""
    if found.over and found.over[0].label == found.label:
        return f"{time * 1e6:.1f} µs", "", "", "the baseline", share
    return f"{time * 1e6:.1f} µs", _span(found.ratio), found.over[0].label, found.ratio.verdict, share


def _not_shown(found: Any) -> list[str]:
    missing = []
    if found.ratio.verdict == "UNCLEAR":
        missing.append("which of the two is faster")
    if found.ratio.processes < MIN_PROCESSES:
        missing.append("what a restart of the process changes")
    if "stale" in {status_of(found.trials[0]), status_of(found.over[0])}:
        missing.append("that today's code does this: it was edited since")
    if found.trials[0].chosen.get("cache") == "cold":
        missing.append("inputs that are in the cache already")
    return [*missing, "other shapes, other machines, a whole model"]
