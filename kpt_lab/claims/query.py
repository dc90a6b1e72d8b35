"""A query in words -> the figure of the committed Trials that it names, with interval and conditions.

softmax.forward rows=16384 cols=8192 dtype=bfloat16 technique="kpt triton" over="best baseline"
softmax.forward rows=16384 cols=8192 dtype=bfloat16 technique="kpt triton" metric=time
"""

from __future__ import annotations

import functools
import importlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from kpt_lab import records
from kpt_lab.conditions import command
from kpt_lab.core import Incomparable, Ratio, Trial, Trials
from kpt_lab.ratios import MIN_PROCESSES, Cell, best_baseline, cells, compare, speedup
from kpt_lab.tables import conditions, span

BEST = "best baseline"


@dataclass(frozen=True)
class Shown:
    """A figure as a reader sees it: its text, its conditions for a title, a source's address, and why it is stale, or ""."""

    text: str
    title: str
    link: str = ""
    stale: str = ""


def root_of(*paths: str | Path) -> Path:
    """The repository around the first of `paths` that is in one: the nearest folder with notebooks/ and kpt_lab/.

    ValueError where none of them is in one.
    """
    for path in paths:
        here = Path(path).resolve()
        for folder in (here, *here.parents):
            if (folder / "notebooks").is_dir() and (folder / "kpt_lab").is_dir():
                return folder
    raise ValueError(f"{', '.join(map(repr, map(str, paths)))}: in no folder that holds notebooks/ and kpt_lab/")


def files(root: Path) -> list[Path]:
    """The committed records: notebooks/*/results and the folders in it, without the live ones, which git ignores."""
    found = root.glob("notebooks/*/results/**/*.jsonl")
    return sorted(path for path in found if "live" not in path.relative_to(root).parts)


def recorded_trials(root: Path) -> Trials:
    """All committed Trials, in the files' order."""
    return Trials(trial for path in files(root) for trial in trials_of(path))


def trials_of(path: Path) -> Trials:
    """One file's Trials, read once while the file stays as it is."""
    return _loaded(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _loaded(path: Path, stamp: int) -> Trials:
    return records.load(path)


# ---- the query


@dataclass(frozen=True)
class Query:
    """What {trial} asks for: Trials of one technique, and a metric of them, or its ratio over another technique."""

    workload: str
    technique: str
    over: str = ""
    metric: str = "speedup"
    conditions: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        said = " ".join(f"{name}={value}" for name, value in self.conditions.items())
        return f"{self.workload} {said} technique={self.technique!r}".replace("  ", " ")


_FORM = 'WORKLOAD technique="NAME" [over="NAME"] [metric=NAME] [dtype=..] [target=..] [PARAMETER=VALUE ..]'


def parse(query: str) -> Query:
    """A Query from its text; ValueError says what is wrong with it."""
    try:
        words = shlex.split(query)
    except ValueError as error:
        raise ValueError(f"query {query!r} can't be read ({error}); accepted is {_FORM}") from None
    named = [word.partition("=") for word in words[1:]]
    if not words or "=" in words[0] or not all(name and equals and value for name, equals, value in named):
        raise ValueError(f"query is {query!r}; accepted is {_FORM}")
    given: dict[str, str] = {}
    for name, _, value in named:
        if name in given:
            raise ValueError(f"query {query!r} gives {name!r} twice")
        given[name] = value
    if "technique" not in given:
        raise ValueError(f"query {query!r} names no technique; accepted is {_FORM}")
    technique, metric = given.pop("technique"), given.pop("metric", "speedup")
    over = given.pop("over", BEST if metric == "speedup" else "")
    return Query(words[0], technique, over, metric, given)


def matching(trials: Iterable[Trial], query: Query) -> dict[Cell, dict[str, Trials]]:
    """The cells in which the query's technique has a Trial and all its conditions hold, with all their techniques."""
    mine = Trials(trials).where(workload=query.workload)
    return {cell: found for cell, found in cells(mine).items() if query.technique in found and _holds(cell, found, query)}


def _holds(cell: Cell, found: Mapping[str, Trials], query: Query) -> bool:
    trial = found[query.technique][0]
    fields = {**dict(cell.params), "dtype": cell.dtype, "target": cell.target, "device": cell.device, "host": cell.host}
    fields["cache"] = trial.chosen.get("cache", "")
    return all(name in fields and str(fields[name]) == value for name, value in query.conditions.items())


def trial(query: str, trials: Iterable[Trial]) -> Shown:
    """The figure of one cell, with its interval; ValueError where no cell or several match, or there is no such number."""
    asked, given = parse(query), Trials(trials)
    found = matching(given, asked)
    if not found:
        raise ValueError(f"no recorded Trial is {asked}; {_nearest(given, asked)}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} cells are {asked}; say which: {_differing(list(found))}")
    ((cell, by_label),) = found.items()
    ones = by_label[asked.technique]
    try:
        return _ratio_shown(cell, by_label, asked) if asked.over else _metric_shown(cell, ones, asked.metric)
    except Incomparable as error:
        raise ValueError(f"{asked} has no {asked.metric}: {error}") from None


def _nearest(trials: Trials, asked: Query) -> str:
    """What there is instead, by the first condition that nothing fulfils."""
    mine = trials.where(workload=asked.workload)
    if not mine:
        return f"recorded workloads are {', '.join(sorted({t.workload for t in trials})) or 'none'}"
    labels = sorted({t.label for t in mine})
    if asked.technique not in labels:
        return f"its techniques are {', '.join(labels)}"
    here = [(cell, found) for cell, found in cells(mine).items() if asked.technique in found]
    for name, value in asked.conditions.items():
        alone = Query(asked.workload, asked.technique, conditions={name: value})
        if not any(_holds(cell, found, alone) for cell, found in here):
            known = {dict(cell.params).get(name, getattr(cell, name, None)) for cell, _ in here} - {None}
            return f"{name!r} is {', '.join(sorted(map(str, known))) or 'no parameter of it'} there"
    return "no cell fulfils all conditions at once"


def _differing(found: Sequence[Cell]) -> str:
    fields = [{**dict(c.params), "dtype": c.dtype, "target": c.target, "device": c.device, "host": c.host} for c in found]
    names = [name for name in fields[0] if len({str(each.get(name)) for each in fields}) > 1]
    return "; ".join(f"{name} is {', '.join(dict.fromkeys(str(each.get(name)) for each in fields))}" for name in names)


def over_of(by_label: Mapping[str, Trials], over: str) -> tuple[Trials, int]:
    """The Trials of the baseline that `over` names in a cell, and from how many it was chosen; Incomparable without one."""
    if over == BEST:
        everything = Trials(t for group in by_label.values() for t in group)
        choices = len({t.label for t in everything if t.baseline and t.status == "ok"})
        return best_baseline(everything), max(1, choices)
    if over not in by_label:
        raise Incomparable(f"no technique labelled {over!r} in this cell; there are {', '.join(by_label)}")
    return by_label[over], 1


def ratio_of(by_label: Mapping[str, Trials], technique: str, over: str, metric: str) -> tuple[Ratio, Trials]:
    """The speedup, or the ratio of another metric, of a technique in one cell, and the Trials that it is over."""
    base, choices = over_of(by_label, over)
    if metric == "speedup":
        return speedup(by_label[technique], base, choices=choices), base
    return compare(by_label[technique], base, metric, choices=choices), base


def _ratio_shown(cell: Cell, by_label: Mapping[str, Trials], asked: Query) -> Shown:
    ratio, base = ratio_of(by_label, asked.technique, asked.over, asked.metric)
    text = span(ratio) + alone(ratio)
    if beside := beside_best(by_label, asked, base):
        text += f" over {base[0].label} ({beside})"
    what = f"{asked.technique} over {base[0].label}" + ("" if asked.metric == "speedup" else f", {asked.metric}")
    ones = by_label[asked.technique]
    return Shown(text, f"{what}: {_where(cell, ones)}; {ratio.verdict}", stale=stale((*ones, *base)))


def beside_best(by_label: Mapping[str, Trials], asked: Query, base: Trials) -> str:
    """For a speedup over a weaker baseline, which stands only beside that over the best one: the latter, in words; else ""."""
    if asked.metric != "speedup" or asked.over == BEST or not base[0].baseline:
        return ""
    ratio, best = ratio_of(by_label, asked.technique, BEST, "speedup")
    return "" if best[0].label == base[0].label else f"{span(ratio)} over the best baseline, {best[0].label}"


def alone(ratio: Ratio) -> str:
    """A note on a ratio that stands on few processes, or on none."""
    if ratio.provenance != "measured":
        return f", {ratio.provenance}"
    return "" if ratio.processes >= MIN_PROCESSES else f", exploratory ({count(ratio.processes, 'process')})"


def count(number: int, noun: str) -> str:
    """ "1 cell", "2 cells", "6 processes"."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def _metric_shown(cell: Cell, ones: Trials, name: str) -> Shown:
    if name == "speedup":
        raise ValueError(f"a speedup is over something; give over={BEST!r}")
    good = ones.ok
    if not good:
        raise Incomparable(f"it is {ones[0].status}: {ones[0].advice}")
    held = [t.metrics[name] for t in good if name in t.metrics]
    if not held:
        raise Incomparable(f"its metrics are {', '.join(good[0].metrics)}")
    values = [metric.value for metric in held]
    low, high = (min(values), max(values)) if len(held) > 1 else (held[0].low, held[0].high)
    text = quantity(median(values), held[0].unit, low, high) + (
        "" if held[0].provenance == "measured" else f", {held[0].provenance}"
    )
    source = f"; {held[0].source}" if held[0].source else ""
    return Shown(text, f"{name} of {ones[0].label}: {_where(cell, ones)}{source}", stale=stale(ones))


def _where(cell: Cell, ones: Trials) -> str:
    cache = ones[0].chosen.get("cache")
    inputs = [*(f"{name} {value}" for name, value in cell.params), cell.dtype, *([f"{cache} cache"] if cache else [])]
    processes = count(len({t.process for t in ones}), "process")
    return f"{cell.workload}, {', '.join(inputs)}; {conditions(ones).rstrip('.')}; {processes}"


_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def quantity(value: float, unit: str, low: float | None = None, high: float | None = None) -> str:
    """A value with an SI prefix, and its interval in the same unit: "412 µs [409, 415]"."""
    if unit in ("", "1"):
        scale, prefix, unit = 1.0, "", ""
    else:
        scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, "") if value == 0 else _PREFIXES[-1])
    text = f"{value / scale:.4g}" + (f" {prefix}{unit}" if unit else "")
    return text if low is None or high is None or low == high else f"{text} [{low / scale:.4g}, {high / scale:.4g}]"


# ---- stale records


def stale(trials: Iterable[Trial]) -> str:
    """What to record again, as a sentence, where one of these Trials is stale; else ""."""
    old = next((t for t in trials if records.status_of(t) == "stale"), None)
    return f"the code was edited since {old.at[:10]}: {record_command(old)}" if old else ""


def record_command(trial: Trial, folder: str = "") -> str:
    """The command that records a Trial's workload again, into `folder`."""
    module, _, name = str(trial.source.get("workload_at", "")).partition(":")
    if not module.startswith("kpt_lab."):
        return f"record {trial.workload} again where it was recorded"
    only = f" --only {name}" if name.isidentifier() else ""
    return f"python -m kpt_lab record {module.removeprefix('kpt_lab.')}{only}" + (f" --out {folder}" if folder else "")


def record_commands(trials: Iterable[Trial], path: str) -> list[str]:
    """The commands that record these Trials of the file at `path` again.

    A file with a cell that no record_grid holds came from a sweep, and takes one again.
    """
    trials = Trials(trials)
    if all(map(_in_record_grid, trials)):
        return list(dict.fromkeys(record_command(trial, path.rpartition("/")[0]) for trial in trials))
    return [_sweep_command(next(iter(cells(trials))), trials, path)]


def _in_record_grid(trial: Trial) -> bool:
    module = str(trial.source.get("workload_at", "")).partition(":")[0]
    if not module.startswith("kpt_lab."):
        return True  # nothing is known about its grid
    grid = getattr(importlib.import_module(module), "record_grid", ())
    mine = [line for line in grid if line.workload.name == trial.workload]
    return not mine or any(
        line.dtype == trial.dtype and all(trial.params.get(name) in values for name, values in line.grid.items())
        for line in mine
    )


def _sweep_command(cell: Cell, trials: Trials, path: str) -> str:
    """The sweep of the cell's workload over every value that these Trials hold, into the file at `path`."""
    mine = trials.where(workload=cell.workload, dtype=cell.dtype)
    grid = {name: dict.fromkeys(t.params[name] for t in mine) for name, _ in cell.params}
    whole = command(cell, mine)
    for name, value in cell.params:
        whole = whole.replace(f"{name}={value}", f"{name}={','.join(map(str, grid[name]))}", 1)
    return f"{whole.replace('kpt-lab', 'python -m kpt_lab', 1)} --into {path}" if whole else record_command(mine[0])
