"""Run the whole red team through measure on one device: which cheats are caught, with which advice; which honest ones are flagged.

    python benchmarks/redteam.py --device cpu
    python benchmarks/redteam.py --device cuda --honest-runs 100 --out redteam.json
    python benchmarks/redteam.py --afterwards --cheat-runs 5    # the six cheats written after the harness was finished

Exits with 1 if a cheat escapes (its status is neither rejected nor wrong, or the advice doesn't name the trick) or an honest
technique is flagged, and with 2 if a technique that this device can run gave no verdict at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout works too

import torch

import kpt_lab.redteam as red
from kpt_lab.baselines import eager
from kpt_lab.core import Technique, Trial, Trials
from kpt_lab.environment import environment
from kpt_lab.measure import measure
from kpt_lab.ratios import speedup

NO_VERDICT = ("unsupported", "unavailable")


@dataclass(frozen=True)
class Row:
    """What became of one technique in one run."""

    technique: str
    trick: str
    status: str
    advice: str
    escape: str
    run: int = 0
    speedup: float | None = None  # over eager in the same cell, where both are ok


def run(
    technique: Technique, device: str, budget: float, seed: int, processes: int, size: Mapping[str, int]
) -> tuple[Trial, Trials]:
    """Measure one technique beside eager, and put back whatever it changed in the process: its Trial, and those of the cell."""
    with red.undone():
        trials = measure(red.target, [eager, technique], device=device, budget=budget, seed=seed, processes=processes, **size)
    return trials.where(technique=technique.name)[0], trials


def over_eager(trial: Trial, cell: Trials) -> float | None:
    """The speedup over eager that this Trial would have claimed; None where it or eager has no time."""
    base = cell.where(technique=eager.name)[0]
    return speedup(trial, over=base).value if trial.status == base.status == "ok" else None


def sentence(technique: Technique) -> str:
    """What a technique does, as its apply function says."""
    return " ".join((technique.apply.__doc__ or "").split())


def run_cheats(options: argparse.Namespace) -> list[Row]:
    """Every cheat that this device can run, `cheat_runs` times with different seeds; the first and every escape are printed."""
    rows: list[Row] = []
    for technique in chosen(red.afterwards if options.afterwards else red.cheats, options):
        for seed in range(options.cheat_runs):
            trial, cell = run(technique, options.device, options.budget, seed, options.processes, sizes(options))
            escape = "" if trial.status in NO_VERDICT else red.escape(trial, cell)
            gained = over_eager(trial, cell)
            row = Row(technique.name, sentence(technique), trial.status, trial.advice, escape, seed, gained)
            if escape or seed == 0:
                mark = f"ESCAPED in run {seed}: {escape}" if escape else ""
                mark += f"; {gained:.2f}x over eager" if gained else ""
                print(f"{row.technique:30s} | {row.status:11s} | {row.advice} {mark}", flush=True)
            rows.append(row)
    return rows


def run_honest(options: argparse.Namespace) -> list[Row]:
    """Every honest technique, `honest_runs` times with different seeds; `escape` says how it was flagged."""
    rows = []
    for technique in chosen(red.honest, options) if options.honest_runs else ():
        for seed in range(options.honest_runs):
            trial, _ = run(technique, options.device, options.honest_budget, seed, options.processes, sizes(options))
            flagged = "" if trial.status in ("ok", *NO_VERDICT) else f"flagged as {trial.status}"
            rows.append(Row(technique.name, sentence(technique), trial.status, trial.advice, flagged, seed))
        mine = [row for row in rows if row.technique == technique.name]
        counts = ", ".join(f"{status} {count}" for status, count in Counter(row.status for row in mine).items())
        print(f"{technique.name:30s} | {counts}", flush=True)
        for row in mine:
            if row.status != "ok":
                print(f"    run {row.run}: {row.status}: {row.advice}", flush=True)
    return rows


def chosen(techniques: tuple[Technique, ...], options: argparse.Namespace) -> list[Technique]:
    """The techniques that the device can run, or of these the ones named by --only."""
    able = [t for t in techniques if options.device == "cuda" or "cuda" not in t.requires]
    return [t for t in able if not options.only or t.name in options.only]


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """The workload's parameters: the device's own, except where --rows or --cols says otherwise."""
    given = {"rows": options.rows, "cols": options.cols}
    return {**red.SIZES[options.device], **{name: value for name, value in given.items() if value}}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--afterwards", action="store_true", help="measure the cheats written afterwards instead of the others")
    parser.add_argument("--rows", type=int, help="rows of the workload; small ones are far from the hardware's bound")
    parser.add_argument("--cols", type=int, help="columns of the workload")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timing for each cheat")
    parser.add_argument("--cheat-runs", type=int, default=1, help="how often each cheat is measured; some cheat by dice")
    parser.add_argument("--honest-runs", type=int, default=0, help="how often each honest technique is measured")
    parser.add_argument("--honest-budget", type=float, default=0.2, help="seconds of timing for each honest run")
    parser.add_argument("--processes", type=int, default=0, help="fresh child processes for each; 0 runs in this one")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of techniques, such as 'side stream'")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no usable CUDA device here; pass --device cpu")
    names = [t.name for t in (*(red.afterwards if options.afterwards else red.cheats), *red.honest)]
    if unknown := set(options.only) - set(names):
        parser.error(f"--only names {sorted(unknown)}; accepted are {names}")
    if any(given is not None and given < 2 for given in (options.rows, options.cols)):
        parser.error(f"--rows is {options.rows} and --cols is {options.cols}; accepted are whole numbers of 2 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; the exit code."""
    options = parsed(arguments)
    cheats, honest = run_cheats(options), run_honest(options)
    judged = [row for row in cheats if row.status not in NO_VERDICT]
    caught = [row for row in judged if not row.escape]
    flagged = [row for row in honest if row.escape]
    undecided = [row for row in (*cheats, *honest) if row.status in NO_VERDICT]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{name}: {len(caught)} of {len(judged)} cheating runs caught; {len(flagged)} of {len(honest)} honest runs flagged")
    if undecided:
        print(f"no verdict: {', '.join(sorted({f'{row.technique} ({row.status}: {row.advice})' for row in undecided}))}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(summary(name, options, cheats, honest), indent=1) + "\n")
    return 1 if flagged or len(caught) < len(judged) else 2 if undecided else 0


def summary(device: str, options: argparse.Namespace, cheats: list[Row], honest: list[Row]) -> dict[str, Any]:
    """What is written to --out."""
    here = environment(options.device)
    return {
        "device": device,
        **{name: here[name] for name in ("device_name", "cores", "torch", "git")},
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "afterwards": options.afterwards,
        "size": sizes(options),
        "budget": options.budget,
        "cheat_runs": options.cheat_runs,
        "honest_runs": options.honest_runs,
        "processes": options.processes,
        "cheats": [asdict(row) for row in cheats],
        "honest": [asdict(row) for row in honest],
    }


if __name__ == "__main__":
    raise SystemExit(main())
