"""Measure jobs into a file until done or out of time, going on where this machine left off; ratios of its summary.

What the scripts that record on a GPU in calls of a few minutes share.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from kpt_lab import ratios, records, timer
from kpt_lab.core import Trials
from kpt_lab.environment import environment
from kpt_lab.isolate import Progress, run_jobs
from kpt_lab.runner import Job

START = timer.now()


def elapsed() -> float:
    """Seconds since the script was started."""
    return (timer.now() - START) / 1e9


def lacking(jobs: Iterable[Job], file: Path, device: str) -> list[Job]:
    """The jobs of which `file` doesn't hold every technique from this very machine, in their order."""
    here = environment(device)["host"]
    known: dict[tuple, set[str]] = {}
    for trial in records.load(file) if file.exists() else ():
        if trial.host == here:
            known.setdefault((trial.workload, tuple(sorted(trial.params.items())), trial.process), set()).add(trial.label)

    def held(job: Job) -> set[str]:
        return known.get((job.workload.name, tuple(sorted(job.params.items())), job.process), set())

    return [job for job in jobs if not {technique.label for technique in job.techniques} <= held(job)]


def measured(jobs: Iterable[Job], file: Path, *, device: str, seconds: float, limit: float) -> None:
    """Measure what is lacking, each job recorded as soon as it ends; `limit` seconds end a silent one."""
    todo, ended = lacking(jobs, file, device), threading.Event()
    clock = threading.Timer(seconds, ended.set)
    clock.daemon = True
    clock.start()
    done = 0

    def keep(job: Job, trials: Trials) -> None:
        nonlocal done
        done += 1
        records.record(trials, file)
        failed = {t.label: f"{t.status}: {t.advice[:160]}" for t in trials if t.status != "ok"}
        times = "  ".join(f"{t.label} {1e6 * t.time:.1f}" for t in trials if t.status == "ok")
        what = " ".join(f"{k}={v}" for k, v in job.params.items())
        head = f"[{elapsed():4.0f}] {done}/{len(todo)} {job.workload.name} {what} process {job.process}"
        print(f"{head}: {times} {failed or ''}", flush=True)

    def say(now: Progress) -> None:
        if now.stage in ("preparing", "checking"):  # compiling and the oracle: what takes long
            print(f"    {elapsed():5.1f} s  {now.label}: {now.stage}", flush=True)

    run_jobs(todo, limit=limit, done=keep, progress=say, cancelled=ended)
    clock.cancel()
    print(f"{done} of {len(todo)} cells in {elapsed():.0f} s")


def ratio(by_label: Mapping[str, Trials], one: str, over: str) -> float:
    """How many times faster `one` is than `over`, or NaN where either is missing or has no time."""
    try:
        return ratios.speedup(by_label[one], by_label[over]).value
    except (KeyError, ratios.Incomparable):
        return math.nan


def best_of(by_label: Mapping[str, Trials], labels: Iterable[str]) -> str:
    """The label with the lowest median among those that ran in every process, or ""."""
    known = [label for label in labels if label in by_label and all(t.status == "ok" for t in by_label[label])]
    return min(known, key=lambda label: ratios._median_time(by_label[label]), default="")


def geomean(values: Iterable[float]) -> float:
    """The geometric mean of those that are numbers, or NaN."""
    kept = [v for v in values if v == v]
    return math.exp(sum(map(math.log, kept)) / len(kept)) if kept else math.nan
