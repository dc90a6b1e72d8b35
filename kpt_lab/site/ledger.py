"""The results ledger in Markdown: every committed file of Trials, where and when it was recorded, and whether it still stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from kpt_lab import records
from kpt_lab.claims.query import count, files, record_commands, trials_of
from kpt_lab.core import Trial, Trials
from kpt_lab.ratios import MIN_PROCESSES, cells
from kpt_lab.tables import markdown

HEADER = ("records", "workload", "recorded on", "when", "Trials", "still stands?")
ADVICE = ("workload", "technique", "status", "cells", "why")
PARTS = ("summary", "files", "again", "lost")
NONE = "No Trials are committed yet."


def results(root: Path, part: str = "files", today: date | None = None) -> str:
    """A part of the ledger of the repository at `root` in Markdown; ages count from `today`, by default this day in UTC.

    part: "summary", a sentence; "files", the table; "again", what to record again; "lost", what did not come out ok.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; accepted are {', '.join(map(repr, PARTS))}")
    found = {path: trials for path in files(root) if (trials := trials_of(path))}
    if not found:
        return NONE
    everything = Trials(t for trials in found.values() for t in trials)
    if part == "summary":
        return _summary(found, everything)
    if part == "lost":
        return _lost(everything)
    today = today or datetime.now(UTC).date()
    rows, again = [], []
    for path, trials in found.items():
        old = _stale(trials)
        rows.append(_row(path, trials, old, today))
        commands = record_commands(old, path.relative_to(root).as_posix())
        again += [f"- {_name(path)}, {len(old)} of {count(len(trials), 'Trial')}: `{command}`" for command in commands]
    return markdown(HEADER, rows) if part == "files" else "\n".join(again) or "Nothing: no Trial is stale."


def _summary(found: dict[Path, Trials], everything: Trials) -> str:
    grouped = cells(everything)
    headlines = sum(max(len({t.process for t in ones}) for ones in each.values()) >= MIN_PROCESSES for each in grouped.values())
    hosts = len({t.host for t in everything if t.host})
    return (
        f"{count(len(found), 'file')}, {count(len(everything), 'Trial')} in {count(len(grouped), 'cell')}, from "
        f"{count(hosts, 'machine')}. In {headlines} of the cells there are Trials of at least {MIN_PROCESSES} fresh processes, "
        "which a headline takes; the others are exploratory."
    )


def _row(path: Path, trials: Trials, old: Sequence[Trial], today: date) -> tuple[str, ...]:
    statuses = Counter(t.status for t in trials).most_common()
    told = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in statuses)
    return (
        f"`{_name(path)}`",
        ", ".join(sorted({t.workload for t in trials})),
        "; ".join(sorted({_machine(t) for t in trials})),
        _days(trials, today),
        f"{told} in {count(len(cells(trials)), 'cell')}",
        f"**stale**: {len(old)} of {len(trials)}" if old else "yes",
    )


def _name(path: Path) -> str:
    """A record's path from its results folder on: "grid/softmax.forward.h100-sxm.jsonl"."""
    parts = path.parts
    return "/".join(parts[len(parts) - parts[::-1].index("results") :]) if "results" in parts else path.name


def _machine(trial: Trial) -> str:
    env = trial.env
    device = env.get("device_name") or trial.target or trial.device
    versions = [f"{name} {env[name]}" for name in ("torch", "triton", "driver") if env.get(name)]
    return ", ".join([f"{device} ({trial.target})" if trial.target and trial.target != device else str(device), *versions])


def _days(trials: Trials, today: date) -> str:
    days = sorted({t.at[:10] for t in trials if t.at})
    if not days:
        return "no date"
    age = (today - date.fromisoformat(days[-1])).days
    ago = "today" if age <= 0 else f"{count(age, 'day')} ago"
    first, last = (day.replace("-", "\N{NON-BREAKING HYPHEN}") for day in (days[0], days[-1]))
    return f"{first} to {last}, {ago}" if first != last else f"{first}, {ago}"


def _stale(trials: Trials) -> list[Trial]:
    return [t for t, status in zip(trials, records.statuses(trials), strict=True) if status == "stale"]


def _lost(trials: Iterable[Trial]) -> str:
    """Each technique that did not come out ok somewhere, with the reason that it gave."""
    found: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        if trial.status != "ok":
            found.setdefault((trial.workload, trial.label, trial.status), []).append(trial)
    rows = []
    for (workload, label, status), ones in found.items():
        reasons = list(dict.fromkeys(t.advice for t in ones))
        more = f" (and {count(len(reasons) - 1, 'other reason')})" if len(reasons) > 1 else ""
        held = len({(t.params, t.dtype, t.target) for t in ones})
        rows.append((workload, label, status.replace("_", " "), str(held), _text(reasons[0]) + more))
    return markdown(ADVICE, rows) if rows else "Everything did."


def _text(advice: str) -> str:
    """An advice in one line, without what Markdown would read as a mark."""
    return " ".join(advice.split()).replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_") or "no reason given"
