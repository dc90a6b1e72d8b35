"""The claims ledger: what was promised beside what the Trials say. docs/claims.toml holds the claims, `ledger` writes the table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from kpt_lab.claims.query import (
    Query,
    alone,
    beside_best,
    count,
    matching,
    parse,
    ratio_of,
    recorded_trials,
    root_of,
    span,
    stale,
)
from kpt_lab.core import Incomparable, Ratio, Trial, Trials
from kpt_lab.evidence import inputs
from kpt_lab.ratios import MIN_PROCESSES, Cell, Speedup
from kpt_lab.tables import conditions, markdown

Outcome = Literal["measured (holds)", "refuted", "undecided", "not yet", "not testable here"]
HEADER = ("claim", "claimed", "our measurement", "status", "why, and under which conditions")


@dataclass(frozen=True)
class Claim:
    """One promise in our words, and how it is tested.

    claimed:      the figure as it was given. row: the requirement that it belongs to. source: who claims it.
    baseline:     over what, and whether the claim says so itself.
    query:        the Trials that test it, as in {trial}; cells that fulfil it all count.
    least, most:  the claim holds where the ratio is at least, or at most, this; one of them with a query.
    not_testable: why it can't be tested with what we have; such a claim has no query.
    """

    id: str
    row: str
    statement: str
    claimed: str
    source: str = "the roadmap"
    baseline: str = ""
    query: str = ""
    least: float | None = None
    most: float | None = None
    not_testable: str = ""

    def __post_init__(self) -> None:
        if self.query and self.not_testable:
            raise ValueError(f"claim {self.id!r} has a query and not_testable; give one of them")
        if bool(self.query) == ((self.least is None) == (self.most is None)):
            raise ValueError(f"claim {self.id!r} needs a query together with exactly one of least and most, or none of them")
        if self.query and not parse(self.query).over:
            raise ValueError(f"claim {self.id!r} has the query {self.query!r}, which is over nothing; add over=")


@dataclass(frozen=True)
class Finding:
    """What became of a claim: its status, our figure ("" where there is none), and the reason with the conditions."""

    claim: Claim
    outcome: Outcome
    measured: str
    why: str


@dataclass(frozen=True)
class _Tested:
    """A claim's ratio in one cell."""

    cell: Cell
    ones: Trials
    base: Trials
    ratio: Ratio
    best: str = ""
    """Where the ratio is a speedup over another baseline: that over the best one, in words."""


def claims(path: str | Path) -> list[Claim]:
    """The claims of a TOML file; ValueError names an unknown or missing field, or an id that comes twice."""
    given = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("claim", [])
    found: list[Claim] = []
    for entry in given:
        try:
            found.append(Claim(**entry))
        except TypeError as error:
            raise ValueError(f"{path}: claim {entry.get('id', '?')!r}: {str(error).replace('Claim.__init__() ', '')}") from None
    if twice := next((claim.id for i, claim in enumerate(found) if claim.id in {c.id for c in found[:i]}), None):
        raise ValueError(f"{path}: two claims have the id {twice!r}")
    return found


def judge(claim: Claim, trials: Trials) -> Finding:
    """What the Trials say of a claim.

    It holds where a cell's whole interval fulfils it, is refuted where every cell's whole interval fails it. Cells in six or more
    processes decide; only where there are none do exploratory ones.
    """
    if claim.not_testable:
        return Finding(claim, "not testable here", "", claim.not_testable)
    if not claim.query:
        return Finding(claim, "not yet", "", "no Trials of it are recorded")
    asked = parse(claim.query)
    tested, reasons = _tested(matching(trials, asked), asked)
    if not tested:
        return Finding(claim, "not yet", "", reasons[0] if reasons else "no Trials of it are recorded")
    tested = [t for t in tested if t.ratio.processes >= MIN_PROCESSES] or tested
    holds = [t for t in tested if _holds(t.ratio, claim)]
    fails = [t for t in tested if _fails(t.ratio, claim)]
    outcome: Outcome = "measured (holds)" if holds else "refuted" if len(fails) == len(tested) else "undecided"
    return Finding(claim, outcome, _figure(tested, asked), _reason(claim, asked, tested, holds, fails))


def ledger(path: str | Path | None = None, trials: Iterable[Trial] | None = None) -> str:
    """The ledger as a Markdown table: by default docs/claims.toml of this repository, against its committed Trials."""
    root = root_of(Path(path).parent if path else ".")
    known = Trials(trials) if trials is not None else recorded_trials(root)
    findings = [judge(claim, known) for claim in claims(path or root / "docs/claims.toml")]
    return markdown(HEADER, [_row(finding) for finding in findings])


def _row(finding: Finding) -> Sequence[str]:
    claim = finding.claim
    said = f"{claim.id}: {claim.statement}" + (f" Baseline: {claim.baseline}." if claim.baseline else "")
    return said, f"{claim.claimed} ({claim.source})", finding.measured, f"**{finding.outcome}**", finding.why


def _tested(found: Mapping[Cell, Mapping[str, Trials]], asked: Query) -> tuple[list[_Tested], list[str]]:
    tested, reasons = [], []
    for cell, by_label in found.items():
        try:
            ratio, base = ratio_of(by_label, asked.technique, asked.over, asked.metric)
        except Incomparable as error:
            reasons.append(str(error))
        else:
            tested.append(_Tested(cell, by_label[asked.technique], base, ratio, beside_best(by_label, asked, base)))
    return tested, reasons


def _holds(ratio: Ratio, claim: Claim) -> bool:
    return ratio.low >= claim.least if claim.least is not None else ratio.high <= (claim.most or 0)


def _fails(ratio: Ratio, claim: Claim) -> bool:
    return ratio.high < claim.least if claim.least is not None else ratio.low > (claim.most or 0)


def _figure(tested: Sequence[_Tested], asked: Query) -> str:
    """Our ratios: each with its interval, or their range where there are more than three cells; and whose they are."""
    first = tested[0]
    what = f"{asked.technique} over {first.base[0].label if len({t.base[0].label for t in tested}) == 1 else asked.over}"
    if asked.metric != "speedup":
        what += f", {asked.metric}"
    if len(tested) > 3:
        values = [t.ratio.value for t in tested]
        numbers = f"{min(values):.2f}x to {max(values):.2f}x in {len(tested)} cells"
    else:
        numbers = ", ".join(span(t.ratio) + alone(t.ratio) for t in tested)
    best = ", ".join(dict.fromkeys(t.best for t in tested if t.best))
    return f"{numbers} ({what}{f'; {best}' if best and len(tested) <= 3 else ''})"


def _reason(claim: Claim, asked: Query, tested: Sequence[_Tested], holds: Sequence[_Tested], fails: Sequence[_Tested]) -> str:
    limit = f"at least {claim.least:g}x" if claim.least is not None else f"at most {claim.most:g}x"
    parts = [f"{limit} is claimed: holds in {len(holds)} and fails in {len(fails)} of {count(len(tested), 'cell')}"]
    if claim.least is not None and asked.metric == "speedup" and (room := _room(tested)):
        parts.append(room)
    cells = {inputs(Speedup(t.cell, asked.technique, t.ones, t.base, t.ratio, "")): None for t in tested}
    where = f"{asked.workload}: {'; '.join(cells)}" if len(cells) <= 3 else f"{asked.workload}, {len(cells)} cells"
    parts += [where, conditions(tested[0].ones).rstrip("."), count(min(t.ratio.processes for t in tested), "process")]
    if old := next((s for t in tested if (s := stale((*t.ones, *t.base)))), ""):
        parts.append(f"*stale*: {old}")
    return re.sub(r"\s+", " ", ". ".join(parts)) + "."


def _room(tested: Sequence[_Tested]) -> str:
    """The largest speedup over the same baseline that the hardware's bound allows, over all cells; "" where none has a bound."""
    known = [(_pooled(t.base, "time"), _pooled(t.ones, "bound")) for t in tested]
    rooms = [time / bound for time, bound in known if time and bound]
    return f"The hardware's bound (modelled) leaves room for {max(rooms):.2f}x at most" if rooms else ""


def _pooled(group: Trials, metric: str) -> float:
    values = [trial.metrics[metric].value for trial in group if metric in trial.metrics]
    return median(values) if values else 0.0
