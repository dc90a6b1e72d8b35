"""The verbs that make Trials: measure a cell, predict from a cost, quote a publication.

Arguments are checked here, before any work starts; `cell` does the measuring, and `timer` reads the clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kpt_lab.cell import measure_cell
from kpt_lab.core import Metric, Target, Technique, Trial, Trials, Workload, dtype_name, to_dtype
from kpt_lab.isolate import run_jobs
from kpt_lab.ranks import ranks_of
from kpt_lab.runner import Job, hashes, now, work
from kpt_lab.timer import best_time as best_time


def measure(
    workload: Workload,
    techniques: Sequence[Technique],
    *,
    device: str = "cpu",
    dtype: torch.dtype | str = "float32",
    seed: int = 0,
    budget: float = 10.0,
    processes: int = 1,
    cache: str | None = None,
    group: Any = None,
    limit: float = 300.0,
    setup: bool = False,
    **params: Any,
) -> Trials:
    """Check and time all techniques of one cell interleaved, and return one Trial for each technique and process.

    device: "cpu" or "cuda". dtype: a torch dtype or its name. budget: seconds of timing per process, after setting up.
    processes: fresh child processes, 6 or more for a headline; 0 runs here, where a technique that hangs can't be ended.
    cache: "cold" (last-level cache flushed before each call; the default on CUDA) or "warm" (the default on a CPU).
    group: a torch.distributed group under torchrun, or True for the default one: the slowest rank counts.
    limit: seconds after which a technique that gives no sign of life is ended. setup: also time setting up, cold and warm.
    Failures of a technique become Trials with a status and advice; wrong arguments raise ValueError before work starts.
    """
    job = job_for(
        workload, techniques, params, device=device, dtype=dtype, seed=seed, budget=budget, processes=processes, cache=cache
    )
    if group is not None or processes == 0:
        return measure_cell(job, ranks=ranks_of(group))
    return run_jobs([replace(job, process=p) for p in range(processes)], limit=limit, setup=setup)


def job_for(
    workload: Workload,
    techniques: Sequence[Technique],
    params: Mapping[str, Any],
    *,
    device: str = "cpu",
    dtype: torch.dtype | str = "float32",
    seed: int = 0,
    budget: float = 10.0,
    processes: int = 1,
    cache: str | None = None,
) -> Job:
    """A checked Job; ValueError with one sentence where an argument can't be used."""
    if not isinstance(workload, Workload):
        raise ValueError(
            f"workload is {type(workload).__name__}; make one from your own function or module by kpt.workload(fn)"
        )
    chosen = tuple(techniques) if not isinstance(techniques, Technique) else (techniques,)
    if not chosen or not all(isinstance(t, Technique) for t in chosen):
        raise ValueError("techniques must hold at least one Technique, for example kpt_lab.baselines.eager")
    labels = [t.label for t in chosen]
    if twice := {name for name in labels if labels.count(name) > 1}:
        raise ValueError(f"techniques holds {', '.join(sorted(twice))} more than once; a cell needs different labels")
    check_device(device)
    name = dtype_name(to_dtype(dtype))
    if workload.dtypes and name not in workload.dtypes:
        raise ValueError(f"dtype is {name}; workload {workload.name!r} accepts {', '.join(workload.dtypes)}")
    if not (budget > 0 and processes >= 0 and int(processes) == processes):
        raise ValueError(f"budget is {budget} and processes is {processes}; budget must be above 0 and processes 0 or more")
    if cache not in (None, "cold", "warm"):
        raise ValueError(f"cache is {cache!r}; accepted are 'cold' and 'warm'")
    return Job(
        workload=workload,
        techniques=chosen,
        params=workload.complete(params),
        device=device,
        dtype=name,
        seed=seed,
        budget=float(budget),
        cache=cache or ("cold" if device.startswith("cuda") else "warm"),
        cell=uuid.uuid4().hex[:8],
    )


def check_device(device: str) -> None:
    """ValueError unless torch can compute on this device now."""
    kind = str(device).split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; accepted are 'cpu' and 'cuda'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda', but torch finds no usable CUDA GPU here; use device='cpu', or install a CUDA build of torch "
            "on a machine with an NVIDIA GPU (kpt-lab doctor says what is missing)"
        )


def predict(workload: Workload, technique: Technique, target: Target, **params: Any) -> Trial:
    """A modelled Trial: the bound of the workload's cost under this technique on `target`, and its energy where known.

    Parameters may include dtype (a name, default "float32"). ValueError where the workload states no cost.
    """
    dtype = dtype_name(to_dtype(params.pop("dtype", "float32")))
    if workload.cost is None:
        raise ValueError(f"workload {workload.name!r} states no cost, so nothing can be predicted from it")
    complete = workload.complete(params)
    cost = workload.cost(dtype=dtype, **complete)
    cost = technique.cost(cost) if technique.cost else cost
    bound = target.bound(cost)
    metrics = {"bound": bound}
    if target.energy and all(kind in target.energy for kind in cost.flops):
        joules = sum(target.energy[kind] * work for kind, work in cost.flops.items())
        origin = "; ".join(dict.fromkeys(target.source.get(f"energy.{kind}", target.name) for kind in cost.flops))
        metrics["energy.compute"] = Metric(joules, "J", "modelled", source=origin)
        if "byte" in target.energy:
            both = f"{origin}; {target.source.get('energy.byte', target.name)}"
            metrics["energy.with_memory"] = Metric(joules + target.energy["byte"] * cost.bytes, "J", "modelled", source=both)
    return Trial(
        workload.name, technique.name, complete, technique.knobs, technique.contract, technique.baseline, technique.simulates,
        target=target.name, device="", dtype=dtype, at=now(), metrics=metrics, chosen=work(cost), source=hashes(workload, technique),
    )  # fmt: skip


def quote(
    workload: Workload, technique: Technique, target: Target | str, metrics: Mapping[str, Metric], source: str, **params: Any
) -> Trial:
    """A Trial of figures that somebody published: every Metric must be "quoted"; `source` names the publication."""
    if not source:
        raise ValueError("source is empty; a quoted Trial names its publication")
    for name, metric in metrics.items():
        if metric.provenance != "quoted":
            raise ValueError(f"metric {name!r} is {metric.provenance}; quote takes quoted Metrics only")
    dtype = dtype_name(to_dtype(params.pop("dtype", "float32")))
    return Trial(
        workload.name, technique.name, params, technique.knobs, technique.contract, technique.baseline, technique.simulates,
        target=target if isinstance(target, str) else target.name, device="", dtype=dtype, at=now(), metrics=metrics,
        source={"publication": source},
    )  # fmt: skip
