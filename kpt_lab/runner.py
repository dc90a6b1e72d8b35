"""What goes through a cell: the job, and each candidate with its own inputs, samples and failures."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from kpt_lab import check, source, timer
from kpt_lab.check import Dishonest, Wrong
from kpt_lab.core import Cost, Metric, Status, Technique, Unsupported, Workload, to_dtype

METHOD = 1
"""Version of the measuring method: a Trial of another version is stale."""


@dataclass(frozen=True)
class Job:
    """One cell to be measured in one process."""

    workload: Workload
    techniques: tuple[Technique, ...]
    params: Mapping[str, Any]
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    budget: float = 10.0
    cache: str = "warm"
    cell: str = ""
    process: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the workload's make."""
        return {"device": self.device, "dtype": to_dtype(self.dtype), "seed": self.seed, **self.params}


@dataclass
class Runner:
    """A candidate on its way through a cell: its step, its own input buffers, and what was seen of it."""

    technique: Technique
    step: Callable[..., Any]
    buffers: Any
    protected: set[int]
    reference: Runner | None = None
    driven: Any = None  # the step before techniques wrapped it: has reset() and moved() where calls change state
    parts: list[tuple[Technique, Callable[..., Any]]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # an early output: keeps its storage alive, so that its return is seen
    earlier: list[list[torch.Tensor]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    wall: list[int] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    error: float = 0.0
    limit: float = math.inf
    audits: int = 0
    threads: list[threading.Thread] = field(default_factory=list)  # that it started
    drawn: tuple[int, int, float] = (0, 0, 0.0)
    strays: int = 0
    total: int = 0  # of the samples as they came, to be compared with what stands in the list later
    status: Status = "ok"
    advice: str = ""
    host_ns: int = 0

    @property
    def reset(self) -> Callable[[], None] | None:
        """Puts a step's state back in place; None where calls change nothing."""
        return getattr(self.driven, "reset", None)

    def fail(self, status: Status, advice: str) -> None:
        """Remember the first failure; later ones are its consequences."""
        if self.status == "ok":
            self.status, self.advice = status, advice
        self.release()

    def release(self) -> None:
        """Let go of everything that holds memory."""
        self.step, self.buffers, self.driven = nothing, (), None
        self.kept, self.earlier, self.parts = [], [], []


def nothing(*args: Any) -> None:
    return None


def setup_seconds(job: Job, technique: Technique) -> float:
    """Seconds from apply to the end of the first call, in this process, after an eager call has started the libraries."""
    problem = job.workload.make(**job.settings)
    problem.drive(problem.fn)(*check.clone_inputs(problem.inputs[0]))
    problem = job.workload.make(**job.settings)
    runner = built(job, technique, technique.parts or (technique,), problem, problem.inputs[0], setup=True)
    return runner.host_ns / 1e9


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def work(cost: Cost | None) -> dict[str, Any]:
    return {"flops": dict(cost.flops), "bytes": cost.bytes} if cost else {}


def hashes(workload: Workload, technique: Technique | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "workload": source.source_hash(workload),
        "workload_at": source.locate(workload),
        "method": METHOD,
    }
    if technique:
        found |= {"technique": source.source_hash(technique), "technique_at": source.locate(technique)}
    return found


def built(
    job: Job, technique: Technique, parts: Sequence[Technique], problem: Any, inputs: Any, *, setup: bool = False
) -> Runner:
    """A Runner for a technique over a problem made afresh; apply sees one set of inputs."""
    buffers = check.clone_inputs(inputs)
    reached: list[tuple[Technique, Callable[..., Any]]] = []
    start = timer.now()
    fn = problem.fn
    for part in parts:
        if part.on == "fn":
            fn = part.apply(fn, buffers, **part.knobs)
            reached.append((part, fn))
    step = driven = problem.drive(fn)
    for part in parts:
        if part.on == "step":
            step = part.apply(step, buffers, **part.knobs)
            reached.append((part, step))
    if setup:
        step(*buffers)
    protected = check.storages(check.tensors_of(buffers, problem.fn))
    return Runner(technique, step, buffers, protected, driven=driven, parts=reached, host_ns=timer.now() - start)


def same(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    return fn


def status_of(error: BaseException) -> tuple[Status, str]:
    """The status of a failure, and a sentence that says what happened and what to do."""
    text = " ".join(str(error).split())[:400] or type(error).__name__
    if isinstance(error, Dishonest):
        return "rejected", text
    if isinstance(error, Wrong):
        return "wrong", text
    if (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "not enough memory" in text
        or "can't allocate memory" in text
    ):
        return "out_of_memory", f"ran out of memory: {text.split('. ')[0]}; use a smaller size or a device with more memory"
    if isinstance(error, Unsupported | NotImplementedError):
        return "unsupported", text
    return "failed", f"{type(error).__name__}: {text}"


def missing_requirement(technique: Technique, device: str) -> str:
    """Why a technique can't run here and what to do about it, or ""."""
    for name in technique.requires:
        if name == "cuda":
            if not device.startswith("cuda"):
                return "needs a CUDA device; pass device='cuda' on a machine with an NVIDIA GPU"
        elif importlib.util.find_spec(name) is None:
            return f"needs the package {name.replace('_', '-')}: pip install {name.replace('_', '-')}"
    return ""
