"""Ratios of Trials: functions, never stored, and refused where a ratio would not mean anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from kpt_lab import stats
from kpt_lab.core import Incomparable, Metric, Ratio, Trial, Trials

COPY = "copy"
"""Technique name of the copy of the same bytes that is timed in the same blocks."""

MIN_PROCESSES = 6
"""Fresh processes behind a headline: the span of six medians holds the true one in 97% of cases, whatever the distribution."""


class Cell(NamedTuple):
    """What was timed where: Trials of one Cell may be set against each other."""

    workload: str
    params: tuple[tuple[str, Any], ...]
    device: str
    dtype: str
    target: str
    host: str


class Speedup(NamedTuple):
    """One technique of one cell over its baseline; `ratio` is None where there is none, and `reason` says why."""

    cell: Cell
    label: str
    trials: Trials
    over: Trials
    ratio: Ratio | None
    reason: str


def compare(trial: Trial | Sequence[Trial], over: Trial | Sequence[Trial], metric: str = "time", *, choices: int = 1) -> Ratio:
    """The ratio of `metric`: of `trial` over that of `over`, each a Trial or one technique's Trials of several processes.

    choices: how many baselines `over` was chosen from; the level of a one-process interval is corrected for it. Raises
    Incomparable, with the reason, unless both were measured in the same cell, both modelled under this metric name, both
    quoted from one source, or it is a simulated quality or error against a measured one.
    """
    ones, others = _trials(trial), _trials(over)
    a, b = _metric(ones, metric), _metric(others, metric)
    kinds = {a.provenance, b.provenance}
    what = f"{metric!r} of {ones[0].label!r} and {others[0].label!r}"
    if (ones[0].workload, ones[0].params) != (others[0].workload, others[0].params):
        raise Incomparable(f"{what} belong to different work: {_where(ones[0])} and {_where(others[0])}")
    if kinds == {"modelled"}:
        return _plain(a.value / b.value, "modelled", f"modelled: {a.source}; {b.source}")
    if kinds == {"quoted"}:
        if a.source != b.source:
            raise Incomparable(f"{what} are quoted from different sources ({a.source}; {b.source}); conditions differ")
        return _plain(a.value / b.value, "quoted", f"quoted: {a.source}")
    if kinds <= {"measured", "simulated"} and metric in ("quality", "error"):
        kind = "simulated" if "simulated" in kinds else "measured"
        return _plain(a.value / b.value, kind, f"{kind} {metric}")
    if len(kinds) > 1:
        raise Incomparable(f"{what} are {a.provenance} and {b.provenance}; only numbers of one kind make a ratio")
    return _paired(ones, others, metric, choices)


def speedup(trial: Trial | Sequence[Trial], over: Trial | Sequence[Trial], *, choices: int = 1) -> Ratio:
    """How many times faster `trial` is than `over`: time of over / time of trial, so above 1 is a win."""
    return compare(over, trial, "time", choices=choices)


def breakeven(trial: Trial | Sequence[Trial], over: Trial | Sequence[Trial], *, setup: str = "cold") -> float:
    """Calls after which the extra setup time of `trial` has paid off over `over`; infinite where it is not faster.

    Needs Trials measured with setup=True; setup is "cold" (empty compiler caches) or "warm". `over` without setup costs 0.
    """
    ratio = speedup(trial, over)
    ones, others = _trials(trial), _trials(over)
    name = f"setup_time.{setup}"
    paid = _metric(ones, name).value - (others[0].metrics[name].value if name in others[0].metrics else 0.0)
    gain = _pooled(others, "time") - _pooled(ones, "time")
    if ratio.low <= 1 or gain <= 0:
        return math.inf
    return max(0.0, paid / gain)


def cells(trials: Iterable[Trial]) -> dict[Cell, dict[str, Trials]]:
    """Trials by cell and by the technique's label; of several runs of one cell the newest counts, with all its processes."""
    runs: dict[Cell, dict[str, list[Trial]]] = {}
    for trial in trials:
        key = Cell(trial.workload, tuple(trial.params.items()), trial.device, trial.dtype, trial.target, trial.host)
        runs.setdefault(key, {}).setdefault(trial.cell, []).append(trial)
    found: dict[Cell, dict[str, Trials]] = {}
    for key, by_run in runs.items():
        newest = (
            max(by_run.values(), key=lambda run: max(t.at for t in run))
            if key.device
            else [t for r in by_run.values() for t in r]
        )
        latest: dict[tuple[str, int], Trial] = {}
        for trial in newest:
            slot = (trial.label, trial.process) if key.device else (trial.label, len(latest))
            if slot not in latest or trial.at >= latest[slot].at:
                latest[slot] = trial
        labels = dict.fromkeys(label for label, _ in latest)
        found[key] = {label: Trials(t for (name, _), t in latest.items() if name == label) for label in labels}
    return found


def best_baseline(trials: Iterable[Trial]) -> Trials:
    """Among one cell's ok baselines, the one with the lowest median pooled over processes; Incomparable where there is none."""
    by_label: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.baseline and trial.status == "ok" and "time" in trial.metrics:
            by_label.setdefault(trial.label, []).append(trial)
    if not by_label:
        raise Incomparable("this cell has no baseline that ran: add one of kpt_lab.baselines, such as eager, to the techniques")
    return Trials(min(by_label.values(), key=_median_time))


def speedups(trials: Iterable[Trial], over: str = "best baseline") -> list[Speedup]:
    """Each technique's speedup in each cell over the best baseline, or over the technique labelled `over`.

    Techniques without a ratio (wrong, unsupported, the baseline missing) stay in the list with the reason.
    """
    found = []
    for cell, by_label in cells(trials).items():
        everything = Trials(t for group in by_label.values() for t in group)
        choices, base, missing = 1, Trials(), ""
        if over == "best baseline":
            choices = max(1, len({t.label for t in everything if t.baseline and t.status == "ok"}))
            try:
                base = best_baseline(everything)
            except Incomparable as error:
                missing = str(error)
        elif over in by_label:
            base = by_label[over]
        else:
            missing = f"no technique labelled {over!r} in this cell; there are {', '.join(by_label)}"
        for label, group in by_label.items():
            if label == COPY:  # a yardstick, not a candidate: it does no work
                continue
            ratio, reason = None, missing
            if not missing:
                try:
                    ratio = speedup(group, base, choices=choices)
                except Incomparable as error:
                    reason = str(error)
            found.append(Speedup(cell, label, group, base, ratio, reason))
    return found


def _trials(trial: Trial | Sequence[Trial]) -> Trials:
    group = Trials((trial,) if isinstance(trial, Trial) else trial)
    if not group:
        raise Incomparable("no Trial was given to compare")
    if len({(t.label, t.workload, t.params, t.device, t.dtype) for t in group}) > 1:
        raise Incomparable("several techniques or cells were given as one side; give one technique's Trials of one cell")
    if failed := next((t for t in group if t.status != "ok"), None):
        raise Incomparable(f"{failed.label!r} is {failed.status}: {failed.advice}")
    return group


def _metric(group: Trials, name: str) -> Metric:
    for trial in group:
        if name not in trial.metrics:
            if trial.simulates and name in ("time", "wall_time"):
                raise Incomparable(
                    f"{trial.label!r} simulates {trial.simulates!r}: its wall time is simulation_time, the speed of the simulator, "
                    "which says nothing about the device; compare modelled energy, or quality"
                )
            raise Incomparable(f"{trial.label!r} has no metric {name!r}; it has {', '.join(trial.metrics) or 'none'}")
    return group[0].metrics[name]


def _pooled(group: Sequence[Trial], metric: str) -> float:
    return median(t.metrics[metric].value for t in group)


def _median_time(group: Iterable[Trial]) -> float:
    return _pooled(tuple(group), "time")


def _where(trial: Trial) -> str:
    return f"{trial.workload}({', '.join(f'{k}={v}' for k, v in trial.params.items())}) {trial.dtype} on {trial.device or trial.target}"


def _plain(value: float, provenance: Any, note: str) -> Ratio:
    return Ratio(value, value, value, "UNCLEAR", provenance, note=note)


def _paired(ones: Trials, others: Trials, metric: str, choices: int) -> Ratio:
    """A ratio of measured (or both simulated) numbers of one cell, process by process."""
    a, b = ones[0], others[0]
    if (a.device, a.dtype, a.host) != (b.device, b.dtype, b.host):
        raise Incomparable(f"measured on different devices or dtypes: {_where(a)} and {_where(b)}; measure both in one cell")
    pairs = [(x, y) for x in ones for y in others if (x.cell, x.process) == (y.cell, y.process)]
    if not pairs:
        raise Incomparable(
            f"{a.label!r} and {b.label!r} were measured in different runs, not interleaved in the same blocks; measure them in one call"
        )
    kind = a.metrics[metric].provenance
    note = "speed of the simulation, not of the device" if metric == "simulation_time" else ""
    level = stats.corrected_level(stats.LOOK_LEVEL, choices)
    found = [_one_process(x, y, metric, level) for x, y in pairs]
    blocks = sum(len(x.samples.get(metric, ())) for x, _ in pairs)
    values = [value for value, _, _ in found]
    if len(pairs) >= MIN_PROCESSES:
        low, high = stats.processes_interval(values)
    else:
        low, high = min(low for _, low, _ in found), max(high for _, _, high in found)
    return Ratio(median(values), low, high, stats.verdict(low, high), kind, len(pairs), blocks, note)


def _one_process(a: Trial, b: Trial, metric: str, level: float) -> tuple[float, float, float]:
    if metric in a.samples and len(a.samples[metric]) == len(b.samples.get(metric, ())):
        return stats.sequential_verdict(a.samples[metric], b.samples[metric], level)[:3]
    if b.metrics[metric].value == 0:
        raise Incomparable(f"{metric!r} of {b.label!r} is 0, so there is no ratio over it")
    value = a.metrics[metric].value / b.metrics[metric].value
    return value, value, value
