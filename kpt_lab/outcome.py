"""What a cell leaves: bound, memory, reports and quality of each candidate, and the Trials."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from kpt_lab import environment, stats
from kpt_lab.check import Dishonest
from kpt_lab.core import Cost, Metric, Trial, Trials
from kpt_lab.hardware import targets
from kpt_lab.memory import held_memory, peak_memory
from kpt_lab.runner import Runner, hashes, now, work

if TYPE_CHECKING:
    from kpt_lab.cell import _Cell

_LOOKS = 3  # probes of a CPU before a time counts as impossible
_SLACK = {"cpu": 0.8, "cuda": 0.92}  # a probed ceiling may be beaten a little; an H100's clock goes 8% above its data sheet's


def finish(cell: _Cell) -> None:
    """Bound, memory, reports and the environment after; a time below the bound is rejected."""
    cell.environment["after"] = environment.clocks(cell.job.device)
    for runner in [r for r in cell.runners if r.status == "ok"]:
        cell.say(runner.technique.label, "finishing")
        with cell._watching(runner):
            cell._untouched()
            if sum(runner.samples) != runner.total and cell.ranks.count == 1:
                raise Dishonest("changed its own recorded samples")
            _bound(cell, runner)
            peak = peak_memory(functools.partial(runner.step, *runner.buffers), cell.job.device)
            held = held_memory(runner.parts, runner.buffers)
            if peak is not None:
                runner.metrics["memory.peak"] = Metric(float(peak), "B", "measured")
            runner.metrics["memory.held"] = Metric(float(held), "B", "measured")
            _reports(cell, runner)
        cell._agree(runner)


def _bound(cell: _Cell, runner: Runner) -> None:
    if not (cell.cost and cell.target):
        return
    cost = runner.technique.cost(cell.cost) if runner.technique.cost else cell.cost
    unknown = [kind for kind, work in cost.flops.items() if work and kind not in cell.target.peaks]
    if unknown:
        return
    runner.metrics["bound"] = cell.target.bound(cost)
    took = median(runner.samples) / 1e9
    floor = _floor(cell, cost)
    looks = 0 if cell.on_cuda else _LOOKS
    while took < floor and looks:  # a probe beside a busy neighbour sees too low a ceiling: look again
        cell.target, looks = targets.this_cpu(again=True), looks - 1
        runner.metrics["bound"], floor = cell.target.bound(cost), _floor(cell, cost)
    if took < floor and not runner.technique.simulates:
        raise Dishonest(
            f"faster than the hardware allows: {took * 1e6:.3g} us, where {cell.target.name} needs at least {floor * 1e6:.3g} us "
            "for this arithmetic and these bytes; work was skipped or done outside the clock"
        )


def _floor(cell: _Cell, cost: Cost) -> float:
    """Seconds below which no honest call can be: the bound of what no cache can hold, less the ceiling's own slack."""
    assert cell.target is not None
    cached = min(cell.target.cache, cost.bytes / 2) if cell.job.cache == "cold" else cell.target.cache
    bound = cell.target.bound(Cost(cost.flops, max(0.0, cost.bytes - cached)))
    return bound.value * _SLACK[cell.job.device.split(":")[0]]


def _reports(cell: _Cell, runner: Runner) -> None:
    for part, reached in runner.parts:
        for name, metric in (part.report(reached) if part.report else {}).items():
            if metric.provenance == "measured" or name in ("time", "wall_time"):
                raise Dishonest(
                    f"its report claims {name!r} as {metric.provenance}; only measure may claim a measured metric or a time"
                )
            runner.metrics[name] = metric
    if quality := cell.job.workload.quality:
        found = quality(runner.step)
        kind = "simulated" if runner.technique.simulates else "measured"
        runner.metrics["quality"] = Metric(found.value, found.unit, kind, found.low, found.high, found.source)  # type: ignore[arg-type]


def trials(cell: _Cell) -> Trials:
    """One Trial a technique, and one of the copy of the same bytes."""
    noise = _noise_floor(cell)
    runners = [*cell.runners, *([cell.copy] if cell.copy and cell.copy.status == "ok" else [])]
    return Trials(_trial(cell, runner, noise) for runner in runners)


def _noise_floor(cell: _Cell) -> Metric | None:
    eager = next((r for r in cell.runners if r.technique.name == "eager" and r.status == "ok"), None)
    if eager is None or cell.reference is None or cell.reference.status != "ok" or not cell.blocks:
        return None
    value, low, high = stats.ratio_interval(eager.samples, cell.reference.samples, stats.LOOK_LEVEL)
    return Metric(value, "1", "measured", low, high)


def _trial(cell: _Cell, runner: Runner, noise: Metric | None) -> Trial:
    technique, job = runner.technique, cell.job
    metrics = dict(runner.metrics)
    samples: dict[str, tuple[int, ...]] = {}
    if runner.status == "ok" and runner.samples:
        name = "simulation_time" if technique.simulates else "time"
        kind = "simulated" if technique.simulates else "measured"
        metrics[name] = _seconds(runner.samples)
        samples[name] = tuple(runner.samples)
        if cell.on_cuda:
            metrics["wall_time"] = _seconds(runner.wall)
            samples["wall_time"] = tuple(runner.wall)
        if runner is not cell.copy:
            if not job.workload.random and technique.contract != "random":
                metrics["error"] = Metric(runner.error, "1", kind, source=f"against the {cell.oracle_precision} oracle")  # type: ignore[arg-type]
            if noise:
                metrics["noise_floor"] = noise
            if cell.copy and cell.copy.status == "ok":
                metrics["copy_time"] = Metric(median(cell.copy.samples) / 1e9, "s", "measured")
    chosen = {"cache": job.cache, "blocks": cell.blocks, "audits": runner.audits, **work(cell.cost)}
    if math.isfinite(runner.limit):
        chosen |= {"error_limit": runner.limit, "oracle": cell.oracle_precision}
    return Trial(
        job.workload.name, technique.name, job.params, technique.knobs, technique.contract, technique.baseline,
        technique.simulates, target=cell.target.name if cell.target else "", device=job.device, dtype=job.dtype,
        seed=job.seed, at=now(), status=runner.status, advice=runner.advice, metrics=metrics, samples=samples,
        cell=job.cell, process=job.process, chosen=chosen,
        source=hashes(job.workload, None if runner is cell.copy else technique), env=cell.environment,
    )  # fmt: skip


def _seconds(samples: Sequence[int]) -> Metric:
    low, high = stats.median_interval(samples, 0.95)
    return Metric(median(samples) / 1e9, "s", "measured", _finite(low), _finite(high))


def _finite(nanoseconds: float) -> float | None:
    return nanoseconds / 1e9 if math.isfinite(nanoseconds) else None
