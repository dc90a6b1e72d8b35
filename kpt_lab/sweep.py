"""measure over a grid: in a thread, with progress and cancelling, appending to a file and resuming from it."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kpt_lab import records
from kpt_lab.core import Technique, Trial, Trials, Workload
from kpt_lab.environment import environment
from kpt_lab.isolate import Progress, run_jobs
from kpt_lab.measure import job_for
from kpt_lab.runner import Job


class Sweep:
    """A running sweep: `progress` says where it stands, `cancel()` ends it, `wait()` gives its Trials."""

    def __init__(self, progress: Progress, done: Trials, run: Callable[[Sweep], None]) -> None:
        self.progress = progress
        self.trials = done
        self.error: BaseException | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._guarded, args=(run,), daemon=True)
        self._thread.start()

    def _guarded(self, run: Callable[[Sweep], None]) -> None:
        try:
            run(self)
        except BaseException as error:
            self.error = error

    @property
    def running(self) -> bool:
        """Whether cells are still being measured."""
        return self._thread.is_alive()

    def cancel(self) -> None:
        """Stop: the cell under way is dropped, all finished ones stay."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None) -> Trials:
        """The Trials when all is done or cancelled; an error of `each` or of the file is raised here. Ctrl-C cancels."""
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self._thread.join()
        if self.error is not None:
            raise self.error
        return self.trials


def start(
    workload: Workload,
    techniques: Sequence[Technique],
    grid: Mapping[str, Iterable[Any]],
    *,
    each: Callable[[Trials], None] | None = None,
    into: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | str = "float32",
    seed: int = 0,
    budget: float = 10.0,
    processes: int = 1,
    cache: str | None = None,
    limit: float = 300.0,
    setup: bool = False,
) -> Sweep:
    """Begin a sweep in a thread and return at once; see `sweep`."""
    options: dict[str, Any] = {
        "device": device, "dtype": dtype, "seed": seed, "budget": budget, "processes": processes, "cache": cache,
    }  # fmt: skip
    named = [_named(job_for(workload, techniques, params, **options)) for params in points(workload, grid)]
    jobs = [replace(job, process=process) for process in range(max(processes, 1)) for job in named]
    resumed = _recorded(jobs, records.load(into)) if into and Path(into).exists() else {}
    todo = [job for job in jobs if (job.cell, job.process) not in resumed]
    before = len(jobs) - len(todo)

    def run(sweep: Sweep) -> None:
        def done(job: Job, trials: Trials) -> None:
            if into:
                records.record(trials, into)
            sweep.trials = sweep.trials + trials
            if each:
                each(trials)

        def progress(where: Progress) -> None:
            sweep.progress = where._replace(done=before + where.done, total=len(jobs))

        run_jobs(todo, here=processes == 0, limit=limit, setup=setup, done=done, progress=progress, cancelled=sweep._cancelled)
        if not sweep._cancelled.is_set():
            sweep.progress = Progress(len(jobs), len(jobs))

    known = Trials(trial for group in resumed.values() for trial in group)
    return Sweep(Progress(before, len(jobs)), known, run)


def sweep(
    workload: Workload,
    techniques: Sequence[Technique],
    grid: Mapping[str, Iterable[Any]],
    *,
    each: Callable[[Trials], None] | None = None,
    into: str | Path | None = None,
    **options: Any,
) -> Trials:
    """Measure every point of a grid: `sweep(softmax.forward, softmax.techniques, {"rows": [4096], "cols": [1024, 4096]})`.

    grid: values for each parameter; all combinations are measured. A bare number or word is one value, and a parameter that is
    left out keeps its default, so an empty grid is one cell of defaults. each: called with the Trials of every finished cell.
    into: a JSONL file that they are appended to; cells that it already holds, from this host and unchanged source, are not
    measured again. options: those of `measure`. A technique that fails, hangs or runs out of memory becomes a Trial that says
    so, and the sweep goes on. ValueError for an empty list, a value given twice, an unknown parameter, one without value or
    default, or an unusable option, before work starts.
    """
    return start(workload, techniques, grid, each=each, into=into, **options).wait()


def points(workload: Workload, grid: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """All combinations of a grid's values; ValueError where one is unusable, or the workload lacks or needs a parameter."""
    if not isinstance(grid, Mapping):
        raise ValueError(f"grid is {type(grid).__name__}; give a mapping from parameters to values, such as {{'cols': [1024]}}")
    axes = {name: _values(name, values) for name, values in grid.items()}
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if isinstance(workload, Workload):  # else job_for says what it should be
        workload.complete(found[0])
    return found


def _values(name: str, values: Any) -> list[Any]:
    """The values of one parameter of a grid as a list."""
    example = f"for example {{{name!r}: [1024]}}"
    if isinstance(values, (str, int, float)):
        return [values]
    try:
        found = list(values)
    except TypeError:
        raise ValueError(
            f"grid gives {values!r} for {name!r}; accepted are a list of values, or one number or word, {example}"
        ) from None
    if not found:
        raise ValueError(f"grid has no values for {name!r}; give at least one, {example}")
    for i, value in enumerate(found):
        if value in found[:i]:
            raise ValueError(f"grid gives {value!r} more than once for {name!r}; give each value once")
    return found


def _named(job: Job) -> Job:
    """The job with a cell id that a later session finds again: a hash of everything that identifies it."""
    identity = [job.workload.name, job.params, job.device, job.dtype, job.seed, job.cache, [t.label for t in job.techniques]]
    return replace(job, cell=hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8])


def _recorded(jobs: Sequence[Job], known: Trials) -> dict[tuple[str, int], Trials]:
    """Trials of those cells and processes that are complete in `known`: from this host, with today's source and environment.

    Source is that of the workload and techniques that are given now. One that stands at no place in a file (a closure) may hold
    values that its hash does not see, so its Trials are never taken.
    """
    if not jobs:
        return {}
    host = environment(jobs[0].device).get("host", "")
    mine: dict[tuple[str, int], list[Trial]] = {}
    for trial in known:
        if trial.host == host and trial.status != "cancelled":
            mine.setdefault((trial.cell, trial.process), []).append(trial)
    found, seen = {}, dict[str, bool]()
    for job in jobs:
        techniques = {technique.label: technique for technique in job.techniques}
        stand = Trials(
            t for t in mine.get((job.cell, job.process), ()) if _stands(t, job.workload, techniques.get(t.label), seen)
        )
        if techniques.keys() <= {t.label for t in stand}:
            found[job.cell, job.process] = stand
    return found


def _stands(trial: Trial, workload: Workload, technique: Technique | None, seen: dict[str, bool]) -> bool:
    """Whether a recorded Trial is what would be measured now; `seen` keeps the answers, for hashing source takes time."""
    env = [trial.env.get(name, "") for name in ("torch", "triton", "driver")]
    key = repr((trial.label, sorted(trial.source.items()), env))
    if key not in seen:
        placed = bool(trial.source.get("workload_at") and trial.source.get("technique_at", "copy"))
        seen[key] = placed and not records.status_of(trial, workload=workload, technique=technique)
    return seen[key]
