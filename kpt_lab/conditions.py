"""What stands beside a number: where it was measured, what changed there since, how to measure it again, and the ceilings."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kpt_lab.core import Metric, Target, Trial, Trials
from kpt_lab.environment import environment
from kpt_lab.hardware import targets
from kpt_lab.ratios import COPY, Cell


def number(value: float | None, digits: int = 5) -> float | int | None:
    """The number at 5 significant digits, whole ones as int, or None where it is missing or not finite: JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if abs(rounded) < 2**53 and rounded == int(rounded) else rounded


def bound_of(trials: Trials) -> Metric | None:
    """The bound of the workload's own cost: the one that most of a cell's baselines have, or else of its techniques."""
    having = [t for t in trials if "bound" in t.metrics and t.label != COPY]
    found = [t.metrics["bound"] for t in having if t.baseline] or [t.metrics["bound"] for t in having]
    if not found:
        return None
    most = Counter(m.value for m in found).most_common(1)[0][0]
    return next(m for m in found if m.value == most)


def work_of(trials: Trials) -> tuple[dict[str, float], float | None]:
    """The cell's FLOPs by arithmetic type and its bytes, as its Trials keep them."""
    chosen = next((t.chosen for t in trials if "bytes" in t.chosen), {})
    work = chosen.get("flops", {})
    flops = work if isinstance(work, Mapping) else {trials[0].dtype: work}
    return {kind: float(count) for kind, count in flops.items() if count}, chosen.get("bytes")


def fits_cache(target: str, trials: Trials) -> bool:
    """Whether the cell's bytes are so few that a cache could hold a good part of them, or the cache is unknown."""
    known = next((value for value in vars(targets).values() if isinstance(value, Target) and value.name == target), None)
    traffic = work_of(trials)[1]
    return not (known and known.cache and traffic and traffic > 4 * known.cache)


def device_name(trial: Trial) -> str:
    """The device's name, or the target's where nothing ran."""
    return str(trial.env.get("device_name") or trial.target or trial.device)


def where(trial: Trial) -> str:
    """One sentence: device, clock and versions; or that nothing was measured."""
    if not trial.device:
        source = trial.source.get("publication")
        return f"Quoted from {source}." if source else f"Modelled for {device_name(trial)}; nothing was measured."
    env = trial.env
    versions = [f"{name} {env[name]}" for name in ("torch", "triton", "python", "driver") if env.get(name)]
    clock = "device time" if trial.device.startswith("cuda") else "wall time"
    return f"{device_name(trial)}, {clock}" + (f"; {', '.join(versions)}." if versions else ".")


def elsewhere(trial: Trial) -> str:
    """For this very host, which versions have changed since; "" for another machine, or where all is as it was."""
    try:
        here = environment(trial.device) if trial.host else {}
    except ValueError:  # no such device here, so it isn't the same host
        return ""
    if not trial.host or here.get("host") != trial.host:
        return ""
    changed = [n for n in ("torch", "triton", "driver") if trial.env.get(n, "") != here.get(n, "")]
    then, now = (", ".join(f"{n} {env.get(n) or 'absent'}" for n in changed) for env in (trial.env, here))
    return f"Recorded on this machine with {then}; it now has {now}." if changed else ""


def command(cell: Cell, trials: Trials) -> str:
    """The `kpt-lab sweep` command that measures this cell again, or "" where the command line can't say it."""
    from kpt_lab.cli import parse_grid  # only here: the command line needs everything else

    target = _command_target(str(next((t.source["workload_at"] for t in trials if "workload_at" in t.source), "")))
    cache = trials[0].chosen.get("cache")
    usual = "cold" if cell.device.startswith("cuda") else "warm"
    grid = [f"{name}={value}" for name, value in cell.params]
    try:
        same = parse_grid(grid) == {name: [value] for name, value in cell.params}
    except ValueError:
        same = False
    if not (target and cell.device and same and cache in (None, usual)):
        return ""
    words = ["kpt-lab", "sweep", target, *(["--grid", *grid] if grid else [])]
    options = {
        "device": (cell.device, "cpu"),
        "dtype": (cell.dtype, "float32"),
        "seed": (trials[0].seed, 0),
        "processes": (len({t.process for t in trials}), 1),
    }
    for name, (value, default) in options.items():
        words += [f"--{name}", str(value)] if value != default else []
    return shlex.join(words)


def _command_target(at: str) -> str:
    """TARGET of the command line for a Workload that stands at "module:attribute": kernels.softmax:forward, my_file.py:model."""
    module, _, attribute = at.partition(":")
    if not attribute.isidentifier() or module == "__main__":
        return ""
    if module.startswith("kpt_lab."):
        return f"{module.removeprefix('kpt_lab.')}:{attribute}"
    return f"{module}.py:{attribute}" if module.isidentifier() else ""


# ---- ceilings


def ceilings(trials: Mapping[str, Sequence[Trials]]) -> list[dict[str, Any]]:
    """Every Target with a data sheet, and those that were probed where the Trials ran, as far as their bounds tell."""
    names = {target.name: device for device, target in targets._BY_DEVICE_NAME.items()}
    known = [value for value in vars(targets).values() if isinstance(value, Target)]
    sheets = [_sheet(target, names.get(target.name, target.name)) for target in known]
    probed: dict[str, dict[str, Any]] = {}
    for name in sorted(trials.keys() - {target.name for target in known} - {""}):
        for cell in trials[name]:
            _implied(probed.setdefault(name, _ceiling(name)), cell)
    return [*sheets, *probed.values()]


def _ceiling(name: str) -> dict[str, Any]:
    return {"name": name, "text": name, "peaks": {}, "bandwidth": None, "source": "", "provenance": "measured"}


def _sheet(target: Target, text: str) -> dict[str, Any]:
    return _ceiling(target.name) | {
        "text": text,
        "peaks": {kind: number(peak * target.count) for kind, peak in target.peaks.items()},
        "bandwidth": number(target.bandwidth * target.count),
        "source": "; ".join(dict.fromkeys(target.source[name] for name in ("bandwidth", *target.peaks))),
        "provenance": "quoted",
    }


def _implied(ceiling: dict[str, Any], trials: Trials) -> None:
    """Fill in what a bound says about a probed Target: its bandwidth, or the peak of the one arithmetic type used.

    The Trials don't keep the probe's figures, and probing again would give this machine's, not those of then.
    """
    bound, (work, traffic) = bound_of(trials), work_of(trials)
    if bound is None or not bound.value > 0:
        return
    if bound.source.startswith("bytes over bandwidth") and traffic:
        ceiling["bandwidth"] = ceiling["bandwidth"] or number(traffic / bound.value)
    elif bound.source.startswith("FLOPs over peak") and len(work) == 1:
        ((kind, count),) = work.items()
        ceiling["peaks"].setdefault(kind, number(count / bound.value))
    ceiling["source"] = ceiling["source"] or bound.source
