"""Cells in fresh child processes, so that processes count as restarts and a technique that hangs or crashes can be ended."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kpt_lab.cell import measure_cell
from kpt_lab.core import Metric, Technique, Trial, Trials
from kpt_lab.runner import Job, hashes, now, setup_seconds, status_of

_HERE = "runs in this process: {} is defined in a notebook, a script or a closure, which a child process can't import, so it can't be ended if it hangs and counts as one process"


# An interrupt (Ctrl-C, JupyterLab's stop button) reaches the whole group of processes; the parent decides what it means
_CHILD = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom kpt_lab.isolate import serve; serve()"


class Cancelled(BaseException):
    """Leaves a cell that is measured in this process; no technique's `except Exception` can swallow it."""


class Progress(NamedTuple):
    """Where a run stands: cells done of all, and what the current cell is doing."""

    done: int
    total: int
    label: str = ""
    stage: str = ""


class Ended(NamedTuple):
    """A child that stopped without finishing its cell, and what it was doing."""

    cell: int
    label: str
    status: str
    advice: str


def pack(payload: Any) -> bytes | None:
    """The pickled payload, or None where a child process could not load it."""
    try:
        data = pickle.dumps(payload)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return None if b"__main__" in data else data


def run_jobs(
    jobs: Sequence[Job],
    *,
    here: bool = False,
    limit: float = 300.0,
    setup: bool = False,
    done: Callable[[Job, Trials], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: threading.Event | None = None,
) -> Trials:
    """Measure jobs, those of one process number together in one fresh child; `done` is told of each finished cell.

    here: measure all in this process instead. Jobs that a child can't import run here as well, for process 0 only, and their
    Trials say so. A cell under way when `cancelled` is set is dropped.
    """
    cancelled = cancelled or threading.Event()
    found: list[Trial] = []
    finished = 0

    def accept(job: Job, trials: Trials) -> None:
        nonlocal finished
        finished += 1
        if setup and job.process == 0:
            trials = _with_setup(job, trials, limit)
        found.extend(trials)
        if done:
            done(job, trials)

    def tell(label: str, stage: str) -> None:
        if progress:
            progress(Progress(finished, len(jobs), label, stage))

    def tell_here(label: str, stage: str) -> None:
        if cancelled.is_set():
            raise Cancelled
        tell(label, stage)

    for process in sorted({job.process for job in jobs}):
        batch = [job for job in jobs if job.process == process]
        foreign = pack(batch) is None
        if not (here or foreign):
            _run_batch(batch, limit, accept, tell, cancelled)
            continue
        for job in batch if here or process == 0 else ():
            if cancelled.is_set():
                break
            try:
                trials = measure_cell(job, say=tell_here)
            except Cancelled:
                break
            except Exception as error:
                status, advice = status_of(error)
                ended = Ended(0, "", status, f"the specification itself could not be measured: {advice}")
                trials = Trials(_failed(job, technique, ended) for technique in job.techniques)
            accept(job, _noted(trials, job) if foreign and not here else trials)
    return Trials(found)


def _noted(trials: Trials, job: Job) -> Trials:
    text = _HERE.format(job.workload.name)
    return Trials(replace(t, advice=t.advice or text) for t in trials)


def _run_batch(
    batch: list[Job],
    limit: float,
    accept: Callable[[Job, Trials], None],
    tell: Callable[[str, str], None],
    cancelled: threading.Event,
) -> None:
    """One child through all jobs of a batch; after a hang or crash, a new child goes on without the technique at fault."""
    position, blamed = 0, list[Trial]()
    while position < len(batch) and not cancelled.is_set():
        todo = batch[position:]
        left = tuple(t for t in todo[0].techniques if t.label not in {b.label for b in blamed})
        if not left:
            accept(batch[position], Trials(blamed))
            position, blamed = position + 1, []
            continue
        todo[0] = replace(todo[0], techniques=left)

        def took(index: int, trials: Trials) -> None:
            nonlocal position, blamed
            accept(batch[position], _ordered(batch[position], trials + blamed))
            position, blamed = position + 1, []

        ended = _child({"kind": "measure", "jobs": todo}, limit, took, tell, cancelled)
        if ended is None or ended.status == "cancelled":
            return
        job = batch[position]
        guilty = next((t for t in left if t.label == ended.label), None)
        if guilty is None:  # not a technique's doing: the specification itself, or start-up
            blamed += [_failed(job, t, ended) for t in left]
        else:
            blamed.append(_failed(job, guilty, ended))


def _ordered(job: Job, trials: Trials) -> Trials:
    order = [t.label for t in job.techniques]
    return Trials(sorted(trials, key=lambda t: order.index(t.label) if t.label in order else len(order)))


def _failed(job: Job, technique: Technique, ended: Ended) -> Trial:
    return Trial(
        job.workload.name, technique.name, job.params, technique.knobs, technique.contract, technique.baseline,
        technique.simulates, device=job.device, dtype=job.dtype, seed=job.seed, at=now(), status=ended.status,  # type: ignore[arg-type]
        advice=ended.advice, cell=job.cell, process=job.process, source=hashes(job.workload, technique), env=_environment(job.device),
    )  # fmt: skip


def _environment(device: str) -> dict[str, Any]:
    from kpt_lab.environment import environment

    return environment(device)


def _child(
    request: dict[str, Any],
    limit: float,
    took: Callable[[int, Any], None],
    tell: Callable[[str, str], None],
    cancelled: threading.Event,
    extra: dict[str, str] | None = None,
) -> Ended | None:
    """Run one request in a child; None when it finished, else how it ended. Each message restarts the limit's clock."""
    data = pack(request)
    assert data is not None
    environment = {**os.environ, **(extra or {}), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-c", _CHILD]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment)
        assert child.stdin
        assert child.stdout
        messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=_receive, args=(child.stdout, messages), daemon=True).start()
        cell, label, stage = 0, "", "starting"
        try:
            child.stdin.write(data)
            child.stdin.close()
            waited = 0.0
            while True:
                try:
                    kind, *content = messages.get(timeout=0.25)
                except queue.Empty:
                    waited += 0.25
                    if cancelled.is_set():
                        return Ended(cell, label, "cancelled", "cancelled by the user")
                    if waited > limit:
                        advice = f"no sign of life for {limit:g} s while {stage}; its process was ended (raise limit= if it only needs longer)"
                        return Ended(cell, label, "timeout", advice)
                    continue
                waited = 0.0
                if cancelled.is_set():
                    return Ended(cell, label, "cancelled", "cancelled by the user")
                if kind == "say":
                    label, stage = content
                    tell(label, stage)
                elif kind == "cell":
                    took(cell, content[0])
                    cell, label, stage = cell + 1, "", "starting the next cell"
                elif kind == "end":
                    return None
                elif kind == "error":
                    return Ended(cell, "", *content)
                else:
                    return Ended(cell, label, "failed", _obituary(child, stage, errors))
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _obituary(child: subprocess.Popen, stage: str, errors: Any) -> str:
    code = child.wait()
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = " (signal 9 often means that the machine ran out of memory)" if code == -9 else ""
    return f"its process {how} while {stage}{hint}" + (f": {lines[-1][:300]}" if lines else "")


def _receive(stream: Any, messages: queue.Queue[Any]) -> None:
    try:
        while True:
            messages.put(pickle.load(stream))
    except (EOFError, pickle.UnpicklingError, ValueError, OSError):
        messages.put(("gone",))


def _with_setup(job: Job, trials: Trials, limit: float) -> Trials:
    """Add setup_time.cold (empty compiler caches) and .warm (the same caches, another process) from fresh processes."""
    found = []
    for trial in trials:
        technique = next((t for t in job.techniques if t.label == trial.label), None)
        if trial.status != "ok" or technique is None or pack(job) is None:
            found.append(trial)
            continue
        metrics = dict(trial.metrics)
        with tempfile.TemporaryDirectory() as caches:
            extra = {"TORCHINDUCTOR_CACHE_DIR": str(Path(caches, "inductor")), "TRITON_CACHE_DIR": str(Path(caches, "triton"))}
            for name in ("setup_time.cold", "setup_time.warm"):
                seconds = _setup_time(job, technique, limit, extra)
                if seconds is not None:
                    metrics[name] = Metric(seconds, "s", "measured")
        found.append(replace(trial, metrics=metrics))
    return Trials(found)


def _setup_time(job: Job, technique: Technique, limit: float, extra: dict[str, str]) -> float | None:
    found: list[float] = []
    request = {"kind": "setup", "jobs": [job], "technique": technique}
    _child(request, limit, lambda _, seconds: found.append(seconds), lambda *_: None, threading.Event(), extra)
    return found[0] if found else None


def serve() -> None:
    """The child's side: read one request from stdin, answer on stdout; prints of techniques go to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = pickle.load(sys.stdin.buffer)

    def send(*message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    last: list[tuple[str, str]] = []

    def say(label: str, stage: str) -> None:
        if last != [(label, stage)]:
            last[:] = [(label, stage)]
            send("say", label, stage)

    try:
        for job in request["jobs"]:
            send("cell", setup_seconds(job, request["technique"]) if request["kind"] == "setup" else measure_cell(job, say=say))
        send("end")
    except Exception as error:
        status, advice = status_of(error)
        send("error", status, f"the specification itself could not be measured: {advice}")
