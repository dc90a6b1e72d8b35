"""Which parameter goes on the axis, what gets a panel of its own, and the words that describe a cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kpt_lab import ratios
from kpt_lab.core import Ratio, Trial, Trials

MOST_PANELS = 6


@dataclass(frozen=True)
class Arrangement:
    """Where each cell goes.

    x:      the dimension on the axis, "" where none varies (then bars); `values` are its values in order.
    panel:  cell -> index into `titles`; suffix: cell -> what must be told apart by name within a panel, or "".
    facts:  cell -> its dimensions; `fixed` names what all cells share, in words.
    """

    x: str
    values: tuple[Any, ...]
    titles: tuple[str, ...]
    panel: Mapping[Any, int]
    suffix: Mapping[Any, str]
    facts: Mapping[Any, Mapping[str, Any]]
    fixed: str

    @property
    def numeric(self) -> bool:
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)

    @property
    def log(self) -> bool:
        """Whether the axis wants a log scale: positive numbers over a factor of 8 or more."""
        return self.numeric and min(self.values) > 0 and max(self.values) / min(self.values) >= 8

    def at(self, cell: Any) -> Any:
        """The cell's position on the axis: its number, or the text of its category."""
        value = self.facts[cell].get(self.x)
        return value if self.numeric else str(value)


def words(facts: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """Some of a cell's dimensions as text: "rows=4096, bfloat16"."""
    names = facts if names is None else names
    bare = ("workload", "dtype", "device")
    return ", ".join(str(facts[n]) if n in bare else f"{n}={facts[n]}" for n in names if facts.get(n) not in (None, ""))


def describe(cells: Iterable[Any], apart: bool = False) -> dict[Any, dict[str, Any]]:
    """Each cell's dimensions by name: workload, its parameters, dtype, device (named by target, and by host where several are)."""
    cells = list(cells)
    hosts: dict[str, set[str]] = {}
    for cell in cells:
        hosts.setdefault(cell.target or cell.device, set()).update([cell.host] if cell.host else [])
    found = {}
    for cell in cells:
        device = cell.target or cell.device
        if len(hosts[device]) > 1 and cell.host:
            device = f"{device} (host {cell.host[:6]})"
        if apart and not cell.device:
            device = f"{device}, not measured"
        found[cell] = {"workload": cell.workload, **dict(cell.params), "dtype": cell.dtype, "device": device}
    return found


def _values(facts: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    values: list[Any] = []
    for fact in facts:
        value = fact.get(name)
        if value not in values:
            values.append(value)
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        values.sort()
    return values


def arrange(cells: Iterable[Any], x: str | None = None, *, apart: bool = False) -> Arrangement:
    """Lay out cells over an axis, panels and name suffixes.

    `x` is the parameter with most values unless given ("" for none); ValueError names the accepted ones. Up to 6 combinations
    of what else varies get a panel each; beyond that the largest dimension with at most 6 values does, the rest joins the name.
    `apart` keeps cells without a measurement away from measured ones: their baselines are others.
    """
    facts = describe(cells, apart)
    names = list(dict.fromkeys(name for fact in facts.values() for name in fact))
    values = {name: _values(facts.values(), name) for name in names}
    varying = [name for name in names if len(values[name]) > 1]
    if x is None:
        params = [n for n in varying if n not in ("workload", "dtype", "device")]
        x = max(params, key=lambda n: (len(values[n]), isinstance(values[n][-1], (int, float))), default="")
    elif x and x not in names:
        raise ValueError(f"x is {x!r}; these Trials have {', '.join(names)}")
    elif x and x not in varying:
        x = ""
    others = [name for name in varying if name != x]
    panel_names, suffix_names = others, list[str]()
    if len({words(fact, others) for fact in facts.values()}) > MOST_PANELS:
        small = [name for name in others if len(values[name]) <= MOST_PANELS]
        panel_names = [max(small, key=lambda n: len(values[n]))] if small else []
        suffix_names = [name for name in others if name not in panel_names]
    order = [tuple(values[n].index(fact.get(n)) for n in panel_names) for fact in facts.values()]
    ranks = {key: i for i, key in enumerate(sorted(set(order)))}
    panel = {cell: ranks[key] for cell, key in zip(facts, order, strict=True)}
    titles = [""] * len(ranks)
    for cell, index in panel.items():
        titles[index] = words(facts[cell], panel_names)
    return Arrangement(
        x=x,
        values=tuple(values[x]) if x else (),
        titles=tuple(titles),
        panel=panel,
        suffix={cell: words(fact, suffix_names) for cell, fact in facts.items()},
        facts=facts,
        fixed=words(next(iter(facts.values())), [n for n in names if n not in varying and n not in ("workload", "device")]),
    )


def checked(trials: Iterable[Trial]) -> Trials:
    """The Trials, or ValueError where there are none or where they hold something else."""
    trials = Trials((trials,) if isinstance(trials, Trial) else trials)
    if not trials:
        raise ValueError("trials is empty: there is nothing to draw; pass what measure, sweep or load returned")
    if wrong := next((type(t).__name__ for t in trials if not isinstance(t, Trial)), ""):
        raise ValueError(f"trials holds a {wrong}; accepted are Trials, as measure, sweep or load return them")
    return trials


def newest(trials: Trials) -> tuple[Trials, list[str]]:
    """The Trials of each cell's newest run, and a note about the older ones where there are some."""
    kept = Trials(t for by_label in ratios.cells(trials).values() for group in by_label.values() for t in group)
    older = len(trials) - len(kept)
    return kept, [f"Left out: {older} Trial{'s' * (older > 1)} that a newer run of the same cell replaces."] if older else []


def workloads(trials: Trials) -> str:
    """The names of the workloads."""
    return " and ".join(dict.fromkeys(t.workload for t in trials))


def subtitle(trials: Trials, fixed: str, provenances: Iterable[str], processes: Sequence[int]) -> str:
    """Where, under which conditions, when, and what kind of numbers: the line under a title."""
    return "  ·  ".join(filter(None, (places(trials), fixed, dates(trials), origin(provenances, processes))))


def places(trials: Trials) -> str:
    """Where the Trials ran or are about, in words: the devices' names, or the targets."""
    found = dict.fromkeys(str(t.env.get("device_name") or t.target or t.device) for t in trials)
    return " and ".join(found)


def dates(trials: Trials) -> str:
    """When the measured Trials were recorded: "recorded 2026-11-22", a span, or ""."""
    days = sorted({t.at[:10] for t in trials if t.at})
    return "" if not days else f"recorded {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")


def origin(provenances: Iterable[str], processes: Sequence[int]) -> str:
    """Whether the shown numbers are measured, simulated, modelled or quoted; one process is called exploratory."""
    kinds = [kind for kind in ("measured", "simulated", "modelled", "quoted") if kind in set(provenances)]
    text = "; ".join(kinds)
    if "measured" in kinds and processes:
        few, many = min(processes), max(processes)
        if many == 1:
            count = "in one process: exploratory"
        elif few == many:
            count = f"in {many} processes"
        else:
            count = f"in {few} to {many} processes" + (", one process is exploratory" if few == 1 else "")
        text = text.replace("measured", f"measured {count}", 1)
    return text


def interval(ratio: Ratio) -> str:
    """A ratio in words: "1.52x [1.49, 1.55] FASTER", or with an unbounded interval, or alone where it has none."""
    if ratio.low == ratio.high:
        return multiple(ratio.value)
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return f"{multiple(ratio.value)}, interval unbounded, {ratio.verdict}"
    return f"{multiple(ratio.value)} [{multiple(ratio.low)[:-1]}, {multiple(ratio.high)[:-1]}] {ratio.verdict}"


def multiple(ratio: float) -> str:
    """A ratio at three significant digits: "1.50x"."""
    return f"{ratio:#.3g}".rstrip(".") + "x"


def unformed(found: Iterable[ratios.Speedup], metric: str) -> list[tuple[Trial, str]]:
    """A Trial and the reason for each Speedup without a ratio whose Trials are all there to be shown."""
    return [(s.trials[0], s.reason) for s in found if not s.ratio and not any(reason(t, metric) for t in s.trials)]


def absences(lost: Iterable[tuple[Trial, str]], trials: Trials) -> list[str]:
    """One sentence for each label and reason among what is not shown, with the conditions that tell it from other `trials`."""
    facts = {id(t): {**t.params, "workload": t.workload, "dtype": t.dtype, "device": t.target or t.device} for t in trials}
    names = list(dict.fromkeys(name for fact in facts.values() for name in fact))
    varying = [name for name in names if len({str(fact.get(name)) for fact in facts.values()}) > 1]
    groups: dict[tuple[str, str], list[str]] = {}
    for trial, why in lost:
        groups.setdefault((trial.label, why), []).append(words(facts[id(trial)], varying))
    return [
        f"Not shown: {label}{' at ' * bool(where[0])}{'; '.join(dict.fromkeys(where))}: {why}"
        for (label, why), where in groups.items()
    ]


def reason(trial: Trial, metric: str) -> str:
    """Why a Trial has nothing to show for `metric`: its status and advice, or that the metric is missing; "" where it has."""
    if trial.status == "ok" and metric in trial.metrics and math.isfinite(trial.metrics[metric].value):
        return ""
    if trial.status != "ok":
        advice = " ".join(trial.advice.split())
        advice = advice if len(advice) <= 200 else advice[:199] + "…"
        return trial.status.replace("_", " ") + (f", {advice}" if advice else "")
    has = ", ".join(trial.metrics) or "none"
    simulates = f" (it simulates {trial.simulates})" if trial.simulates else ""
    return f"no {metric}{simulates}; its metrics are {has}"
