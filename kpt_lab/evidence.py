"""Trials -> words: the one-line answer of a notebook, its table of results, and its ledger of what to believe.

Every number in them comes from Trials, and every ratio from `kpt_lab.ratios`, under its rules. All return Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kpt_lab.core import Trial, Trials
from kpt_lab.ratios import COPY, MIN_PROCESSES, Cell, Speedup, speedups
from kpt_lab.records import status_of
from kpt_lab.tables import conditions, markdown, span

_WORDS = {"FASTER": "is faster than", "SLOWER": "is slower than", "SAME": "is as fast as", "UNCLEAR": "can't be told from"}
STALE = (
    "*stale*: the source hash in the record is not today's (the code, or the rule of hashing, changed since); record it again"
)


def answer(trials: Iterable[Trial], technique: str, over: str = "best baseline") -> str:
    """One sentence: in how many cells the technique (its label) was FASTER, SAME, SLOWER or UNCLEAR, from what to what; how many are stale.

    ValueError where it has no ratio in any cell, with the reason of the first.
    """
    found = _formed(trials, technique, over)
    counts = Counter(s.ratio.verdict for s in found)
    span = _range([s.ratio.value for s in found])
    base = "each cell's best baseline" if over == "best baseline" else over
    told = f"**{technique} against {base}, {_cells(found)}: {_counted(counts)}; {span}.**"
    stale = sum(bool(_stale(s)) for s in found)
    if stale:
        told += f" Code changed since in {stale} of {_cells(found)} (*stale*)."
    return f"{told} {conditions(found[0].trials)}"


def headline(
    trials: Iterable[Trial], technique: str, overs: Sequence[str] = ("best baseline", "torch.compile max-autotune", COPY)
) -> str:
    """A sentence, and a row for each headline cell (6 processes or more): the technique's speedup over each of `overs`.

    Over "copy" it is the share of the speed at which the same bytes are copied. ValueError where no cell is a headline.
    """
    by_cell: dict[Cell, dict[str, Speedup]] = {}
    for over in overs:
        for s in _formed(trials, technique, over):
            if s.ratio.processes >= MIN_PROCESSES:
                by_cell.setdefault(s.cell, {})[over] = s
    if not by_cell:
        raise ValueError(
            f"technique {technique!r} has no cell in {MIN_PROCESSES} fresh processes or more: record with processes=6"
        )
    names = {"best baseline": "over the best baseline", COPY: "of the speed of a copy of the same bytes"}
    names = {over: names.get(over, f"over {over}") for over in overs}
    parts = []
    for over in overs:
        ratios = [found[over].ratio for found in by_cell.values() if over in found]
        counts = Counter(ratio.verdict for ratio in ratios if ratio)
        parts.append(f"{_range([r.value for r in ratios if r])} {names[over]} ({_counted(counts)})")
    firsts = [next(iter(found.values())) for found in by_cell.values()]
    fewest = min(s.ratio.processes for s in firsts if s.ratio)
    told = f"**{firsts[0].cell.workload}, {technique}, {_cells(firsts)} in {fewest} fresh processes: {', '.join(parts)}.**"
    rows = [(inputs(s), *(_over(found.get(over)) for over in overs)) for s, found in zip(firsts, by_cell.values(), strict=True)]
    return f"{told} {conditions(firsts[0].trials)}\n\n{markdown(('inputs', *names.values()), rows)}"


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
            rows.append(((s.cell.workload, inputs(s)), s.label, *_result(s)))
    if not rows:
        return "No cell."
    befores = [None, *(cell for cell, *_ in rows)]  # a cell is named in the first of its rows
    lines = [(*(("", "") if cell == before else cell), *rest) for before, (cell, *rest) in zip(befores, rows, strict=False)]
    told = markdown(("operation", "inputs", "technique", "time", "speedup", "over", "verdict", "of the bound"), lines)
    return f"{told}\n\n{STALE}." if any("*stale*" in line[-2] for line in lines) else told


def ledger(trials: Iterable[Trial], technique: str, over: str = "best baseline") -> str:
    """What to believe: for each cell claim, evidence, conditions, and what was not shown."""
    rows = []
    for s in _formed(trials, technique, over):
        ratio = s.ratio
        claim = f"{s.label} {_WORDS[ratio.verdict]} {s.over[0].label}: {span(ratio)}"
        kind = "1 process, exploratory" if ratio.processes == 1 else f"{ratio.processes} fresh processes"
        evidence = f"{ratio.provenance}, {kind}, {ratio.blocks} blocks{_checked(s.trials)}"
        rows.append((claim, evidence, f"{s.cell.workload}, {inputs(s)}. {conditions(s.trials)}", "; ".join(_not_shown(s))))
    return markdown(("claim", "evidence", "conditions", "not shown"), rows)


def _checked(trials: Trials) -> str:
    """The largest error, and what it was held to: a lossy technique to its own definition, not to the oracle."""
    error = max((t.metrics["error"].value for t in trials if "error" in t.metrics), default=None)
    if error is None:
        return ""
    limit = f"{trials[0].chosen.get('error_limit', 0):.1e}"
    if trials[0].contract == "lossy":
        return f"; lossy: largest error {error:.1e} against the oracle, held to its own definition within {limit}"
    return f"; largest error {error:.1e}, allowed {limit}"


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


def _cells(found: Sequence[Speedup]) -> str:
    return "1 cell" if len(found) == 1 else f"{len(found)} cells"


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("FASTER", "SAME", "SLOWER", "UNCLEAR") if counts[name])


def _range(values: Sequence[float]) -> str:
    ends = [f"{min(values):.2f}x", f"{max(values):.2f}x"]
    return " to ".join(dict.fromkeys(ends))


def _over(found: Speedup | None) -> str:
    """A speedup in one cell of a table: value, interval, verdict, and over what."""
    if found is None or found.ratio is None:
        return ""
    base = found.over[0].label
    return f"{_whole(span(found.ratio))} {found.ratio.verdict}" + ("" if base == COPY else f", {base}") + _stale(found)


def _stale(found: Speedup) -> str:
    return stale((found.trials[0], *found.over[:1]))


def stale(trials: Iterable[Trial]) -> str:
    """What stands behind a verdict where code of one of its Trials changed since; "" where none did."""
    return ", *stale*" if "stale" in map(status_of, trials) else ""


def _result(found: Speedup) -> tuple[str, ...]:
    """Time, speedup, baseline, verdict and share of the bound; or status and advice where there is no ratio."""
    good = found.trials.ok
    if not good:
        bad = found.trials[0]
        return "", "", "", f"{bad.status}: {bad.advice or found.reason}", ""
    times = sorted(t.time for t in good)
    bound = good[0].metrics.get("bound")
    share = f"{bound.value / times[len(times) // 2]:.0%}" if bound else ""
    time = _whole(f"{times[len(times) // 2] * 1e6:.1f} µs")
    if found.ratio is None:
        return time, "", "", found.reason, share
    if found.over and found.over[0].label == found.label:
        return time, "", "", "the baseline", share
    return time, _whole(span(found.ratio)), found.over[0].label, found.ratio.verdict + _stale(found), share


def _whole(text: str) -> str:
    """The text with spaces that don't break at the end of a line."""
    return text.replace(" ", "\u00a0")


def _not_shown(found: Any) -> list[str]:
    missing = []
    if found.ratio.verdict == "UNCLEAR":
        missing.append("which of the two is faster")
    if found.ratio.processes < MIN_PROCESSES:
        missing.append("what a restart of the process changes")
    if _stale(found):
        missing.append(f"that today's code does this; {STALE}")
    if found.trials[0].chosen.get("cache") == "cold":
        missing.append("inputs that are in the cache already")
    return [*missing, "other shapes, other machines, a whole model"]
