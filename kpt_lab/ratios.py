"""Ratios of Trials: functions, never stored, and refused where a ratio would not mean anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

from kpt_lab import stats
from kpt_lab.core import Incomparable, Metric, Ratio, Trial, Trials, Verdict

COPY = "copy"
"""Technique name of the copy of the same bytes that is timed in the same blocks."""

MIN_PROCESSES = 6
"""Fresh processes behind a headline: the span of six medians holds the true one in 97% of cases, whatever the distribution."""


TIMES = ("time", "wall_time", "simulation_time")
"""Metrics, besides setup_time.cold and .warm, of which less is faster."""


class Cell(NamedTuple):
    """What was timed where: Trials of one Cell may be set against each other. The order of `params` is for titles only."""

    workload: str
    params: tuple[tuple[str, Any], ...]
    device: str
    dtype: str
    target: str
    host: str

    def _identity(self) -> tuple[Any, ...]:
        return self.workload, frozenset(self.params), *self[2:]

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Cell) else NotImplemented

    def __ne__(self, other: object) -> bool:  # a tuple's own would look at the order
        return not self == other

    def __hash__(self) -> int:
        return hash(self._identity())


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

    Of times, a ratio below 1 is FASTER; of any other metric the verdict is SAME or UNCLEAR, and the note gives both values
    ("16 B over 8 B"). One number each, without samples or enough processes for an interval, is UNCLEAR.
    choices: how many baselines `over` was chosen from; the level of a one-process interval is corrected for it. Raises
    Incomparable, with the reason, unless both were measured in the same cell, both modelled under this metric name, both
    quoted from one source, or it is a simulated quality or error against a measured one; also where the metric of `over` is 0.
    """
    ratio = _compared(_trials(trial), _trials(over), metric, choices)
    if metric in TIMES or metric.startswith(_SETUP):
        return replace(ratio, verdict=_SLOWNESS[ratio.verdict])
    return ratio


def speedup(trial: Trial | Sequence[Trial], over: Trial | Sequence[Trial], *, choices: int = 1) -> Ratio:
    """How many times faster `trial` is than `over`: time of over / time of trial, so above 1 is a win, and FASTER."""
    return _compared(_trials(over), _trials(trial), "time", choices)


_SETUP = "setup_time."
_SLOWNESS: dict[Verdict, Verdict] = {"FASTER": "SLOWER", "SLOWER": "FASTER", "SAME": "SAME", "UNCLEAR": "UNCLEAR"}


def _compared(ones: Trials, others: Trials, metric: str, choices: int) -> Ratio:
    """The ratio of `metric`, with the verdict for a speedup where it is one of times: FASTER above 1."""
    ones, others = _holding(ones, metric), _holding(others, metric)
    a, b = _metric(ones, metric), _metric(others, metric)
    kinds = {a.provenance, b.provenance}
    what = f"{metric!r} of {ones[0].label!r} and {others[0].label!r}"
    if (ones[0].workload, ones[0].params) != (others[0].workload, others[0].params):
        raise Incomparable(
            f"{what} belong to different work: {_where(ones[0])} and {_where(others[0])}; compare Trials of one workload with the same params"
        )
    if len(kinds) > 1 and not (kinds == {"measured", "simulated"} and metric in ("quality", "error")):
        raise Incomparable(
            f"{what} are {a.provenance} and {b.provenance}; only numbers of one kind make a ratio: measure both, or model both"
        )
    if kinds == {"quoted"} and a.source != b.source:
        raise Incomparable(
            f"{what} are quoted from different sources ({a.source}; {b.source}); conditions differ: compare quotes of one source"
        )
    if kinds <= {"measured", "simulated"} and metric not in ("quality", "error"):
        return _paired(ones, others, metric, choices)
    value = _quotient(a, b, metric, others[0].label)
    if kinds == {"modelled"}:
        return _plain(value, "modelled", f"modelled: {a.source}; {b.source}", a, b)
    if kinds == {"quoted"}:
        return _plain(value, "quoted", f"quoted: {a.source}", a, b)
    kind = "simulated" if "simulated" in kinds else "measured"
    return _plain(value, kind, f"{kind} {metric}", a, b)


def breakeven(trial: Trial | Sequence[Trial], over: Trial | Sequence[Trial], *, setup: str = "cold") -> float:
    """Calls after which the extra setup time of `trial` has paid off over `over`; infinite where it is not faster.

    Needs Trials measured with setup=True; setup is "cold" (empty compiler caches) or "warm". Setting up is timed for one
    process only, so of several Trials the first that has the setup time gives it. `over` without setup costs 0.
    """
    ratio = speedup(trial, over)
    ones, others = _trials(trial), _trials(over)
    name = _SETUP + setup
    cost = _holding(others, name)[0].metrics
    paid = _metric(_holding(ones, name), name).value - (cost[name].value if name in cost else 0.0)
    gain = _pooled(others, "time") - _pooled(ones, "time")
    if ratio.low <= 1 or gain <= 0:
        return math.inf
    return max(0.0, paid / gain)


def cells(trials: Iterable[Trial]) -> dict[Cell, dict[str, Trials]]:
    """Trials by cell and by the technique's label; of several runs of one cell the newest counts, with all its processes."""
    runs: dict[Cell, dict[str, list[Trial]]] = {}
    orders: dict[tuple[str, frozenset[str]], tuple[str, ...]] = {}
    for trial in trials:
        # every cell of a workload has its parameters in the order of the first Trial, so that titles agree
        order = orders.setdefault((trial.workload, frozenset(trial.params)), tuple(trial.params))
        params = tuple((name, trial.params[name]) for name in order)
        key = Cell(trial.workload, params, trial.device, trial.dtype, trial.target, trial.host)
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
            raise Incomparable(
                f"{trial.label!r} has no metric {name!r}; it has {', '.join(trial.metrics) or 'none'}; compare a metric that both have"
            )
    return group[0].metrics[name]


def _holding(group: Trials, metric: str) -> Trials:
    """For a setup time, which is taken for one process only, the Trials that have it; else, or where none does, all."""
    return Trials(t for t in group if metric in t.metrics) or group if metric.startswith(_SETUP) else group


def _pooled(group: Sequence[Trial], metric: str) -> float:
    return median(t.metrics[metric].value for t in group)


def _median_time(group: Iterable[Trial]) -> float:
    return _pooled(tuple(group), "time")


def _where(trial: Trial) -> str:
    return f"{trial.workload}({', '.join(f'{k}={v}' for k, v in trial.params.items())}) {trial.dtype} on {trial.device or trial.target}"


def _plain(value: float, provenance: Any, note: str, a: Metric, b: Metric) -> Ratio:
    return Ratio(value, value, value, "UNCLEAR", provenance, note=f"{note}; {_amount(a.value, a)} over {_amount(b.value, b)}")


def _amount(value: float, metric: Metric) -> str:
    """A value with its unit, for a note: "16 B", or "0.8" where the unit is 1."""
    return f"{value:.6g}" + (f" {metric.unit}" if metric.unit not in ("", "1") else "")


def _quotient(a: Metric, b: Metric, metric: str, label: str) -> float:
    if b.value == 0:
        raise Incomparable(f"{metric!r} of {label!r} is 0, so there is no ratio over it")
    return a.value / b.value


def _paired(ones: Trials, others: Trials, metric: str, choices: int) -> Ratio:
    """A ratio of measured (or both simulated) numbers of one cell, process by process."""
    a, b = ones[0], others[0]
    if (a.device, a.dtype, a.host) != (b.device, b.dtype, b.host):
        raise Incomparable(f"measured on different devices or dtypes: {_where(a)} and {_where(b)}; measure both in one cell")
    if bool(a.simulates) != bool(b.simulates):
        real, simulated = (b, a) if a.simulates else (a, b)
        raise Incomparable(
            f"{metric!r} of {simulated.label!r} is the simulator's own, not that of {simulated.simulates!r}, so it makes no ratio with "
            f"{real.label!r}; compare modelled energy, or quality"
        )
    if changed := [name for name in ("torch", "triton", "driver") if a.env.get(name, "") != b.env.get(name, "")]:
        which = ", ".join(f"{name} {a.env.get(name) or 'none'} and {b.env.get(name) or 'none'}" for name in changed)
        raise Incomparable(
            f"{a.label!r} and {b.label!r} were measured in another environment each ({which}); measure both in one call"
        )
    pairs = [(x, y) for x in ones for y in others if (x.cell, x.process) == (y.cell, y.process)]
    if not pairs:
        raise Incomparable(
            f"{a.label!r} and {b.label!r} were measured in different runs, not interleaved in the same blocks; measure them in one call"
        )
    level = stats.corrected_level(stats.LOOK_LEVEL, choices)
    found = [_one_process(x, y, metric, level) for x, y in pairs]
    values = [value for value, _, _ in found]
    if len(pairs) >= MIN_PROCESSES:
        low, high = stats.processes_interval(values)
    else:
        low, high = min(low for _, low, _ in found), max(high for _, _, high in found)
    bare = len(pairs) < MIN_PROCESSES and not all(_sampled(x, y, metric) for x, y in pairs)
    verdict: Verdict = "UNCLEAR" if bare else stats.verdict(low, high)
    notes = ["one number each, without an interval"] if bare else []
    if metric == "simulation_time":
        notes.append("speed of the simulation, not of the device")
    if metric not in TIMES and not metric.startswith(_SETUP):
        verdict = "SAME" if verdict == "SAME" else "UNCLEAR"
        notes.append(" over ".join(_amount(_pooled(side, metric), side[0].metrics[metric]) for side in (ones, others)))
    blocks = sum(len(x.samples.get(metric, ())) for x, _ in pairs)
    kind = a.metrics[metric].provenance
    return Ratio(_middle(values), low, high, verdict, kind, len(pairs), blocks, "; ".join(notes))


def _middle(ratios: Sequence[float]) -> float:
    """Median of the logarithms as a ratio: of an even number, the geometric mean of the middle two, so that a/b and b/a agree."""
    ordered = sorted(ratios)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else math.sqrt(low) * math.sqrt(high)


def _sampled(a: Trial, b: Trial, metric: str) -> bool:
    return metric in a.samples and len(a.samples[metric]) == len(b.samples.get(metric, ()))


def _one_process(a: Trial, b: Trial, metric: str, level: float) -> tuple[float, float, float]:
    if _sampled(a, b, metric):
        return stats.sequential_verdict(a.samples[metric], b.samples[metric], level)[:3]
    value = _quotient(a.metrics[metric], b.metrics[metric], metric, b.label)
    return value, value, value
