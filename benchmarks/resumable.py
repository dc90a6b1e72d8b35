"""Measure jobs into a file until done or out of time, going on where such a device left off; ratios of its summary.

What the scripts that record on a GPU in calls of a few minutes share. As a script it joins what such calls recorded:

    PYTHONPATH=. python benchmarks/resumable.py INTO [FILE ...]    # cells of the FILEs take the place of INTO's

Without a FILE it drops stale runs of cells that were measured again into INTO.
"""

from __future__ import annotations

import math
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kpt_lab import ratios, records, timer
from kpt_lab.core import Trial, Trials
from kpt_lab.environment import environment
from kpt_lab.isolate import Progress, run_jobs
from kpt_lab.runner import Job

START = timer.now()


def elapsed() -> float:
    """Seconds since the script was started."""
    return (timer.now() - START) / 1e9


def lacking(jobs: Iterable[Job], file: Path, device: str) -> list[Job]:
    """The jobs of which `file` doesn't hold every technique as its code is now, from such a device under this torch, in their order."""
    here = _kind(environment(device))
    known: dict[tuple, set[str]] = {}
    held = records.load(file) if file.exists() else Trials()
    for trial, status in zip(held, records.statuses(held), strict=True):
        if _kind(trial.env) == here and status not in ("stale", "another environment"):
            known.setdefault((*_cell(trial), trial.process), set()).add(trial.label)
    wanted = [(job, (job.workload.name, _sorted(job.params), job.dtype, job.process)) for job in jobs]
    return [job for job, key in wanted if not {technique.label for technique in job.techniques} <= known.get(key, set())]


def _kind(env: Mapping[str, Any]) -> tuple[Any, Any]:
    return env.get("device_name"), env.get("torch")


def _sorted(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _cell(trial: Trial) -> tuple[Any, ...]:
    return trial.workload, _sorted(trial.params), trial.dtype


def join(into: Path, files: Sequence[Path] = ()) -> str:
    """Let the cells of `files` take the place of the same cells in `into`; of cells that `into` holds twice, stale runs then go.

    A cell is a workload with its parameters and dtype on a kind of device; a run of it is stale where one of its Trials is. Returns a
    sentence that says how many. ValueError where a cell of `files` has fewer processes than the one that stands,
    FileNotFoundError where a file is missing.
    """
    new = [trial for file in files for trial in records.load(file)]
    old = records.load(into) if into.exists() or not files else Trials()
    stale = {t.cell for t, status in zip(old, records.statuses(old), strict=True) if status == "stale"}
    had, has = _processes(t for t in old if t.cell not in stale), _processes(new)
    for cell in has:
        if len(has[cell]) < len(had.get(cell, ())):
            raise ValueError(
                f"{into} holds {len(had[cell])} processes of {cell[0]} {dict(cell[1])}, the files {len(has[cell])}: record the others too"
            )
    kept = [t for t in old if _place(t) not in has and not (t.cell in stale and _place(t) in had)]
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        records.record([*kept, *new], Path(folder) / into.name)
        (Path(folder) / into.name).replace(into)
    return f"{into}: {len(new)} Trials of {len(has)} cells came in, {len(old) - len(kept)} went, {len(kept)} stay"


def _place(trial: Trial) -> tuple[Any, ...]:
    return *_cell(trial), trial.env.get("device_name")


def _processes(trials: Iterable[Trial]) -> dict[tuple[Any, ...], set[int]]:
    """The process numbers of each cell."""
    found: dict[tuple[Any, ...], set[int]] = {}
    for trial in trials:
        found.setdefault(_place(trial), set()).add(trial.process)
    return found


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


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("resumable.py takes the file to join into, and the files whose cells take the place of its own")
    try:
        print(join(Path(sys.argv[1]), [Path(given) for given in sys.argv[2:]]))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
