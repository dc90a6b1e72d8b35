"""The command line: `kpt-lab doctor`, `sweep TARGET`, `record MODULE`, `claims`; also as `python -m kpt_lab`.

A mistake in what was asked is one sentence on stderr and exit code 2. `record` ends with 3 where it was stopped before all
was recorded; run it again to go on.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

from kpt_lab.asked import choose, module_of, of_module, workloads_in
from kpt_lab.core import Recording, Technique, Trials, Workload, to_dtype
from kpt_lab.doctor import doctor
from kpt_lab.hardware import targets
from kpt_lab.measure import check_device
from kpt_lab.records import load
from kpt_lab.sweep import Sweep, start
from kpt_lab.terminal import tables

UNFINISHED = 3
"""Exit code of a recording that was stopped, by its limit or by Ctrl-C, before all was recorded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (those of the process by default) and return the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        return asked.run(asked)
    except (ValueError, FileNotFoundError, IsADirectoryError) as error:
        print(f"kpt-lab: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kpt-lab", description="PyTorch speedups that can be trusted.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("doctor", help="say what is here, what is missing, and the command that gets it")
    command.set_defaults(run=lambda asked: doctor())

    command = commands.add_parser("sweep", help="measure techniques over a grid and print a table")
    command.add_argument("target", metavar="TARGET", help="kernels.softmax, kernels.softmax:backward, or my_file.py:model")
    command.add_argument("--grid", nargs="+", default=[], metavar="NAME=V,V", help="values to sweep: rows=1024,4096 cols=1024")
    command.add_argument("--techniques", metavar="A,B", help="only these, by name; all of the module's by default")
    command.add_argument("--step", metavar="MODE", help="of your own model: forward, backward or step")
    command.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    command.add_argument("--dtype", default="float32", help="float32 (the default), bfloat16, ...")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--processes", type=int, default=1, help="fresh processes; 6 or more make a headline, 0 runs in this one"
    )
    command.add_argument("--budget", type=float, default=10.0, metavar="S", help="seconds of timing per cell and process")
    command.add_argument("--into", metavar="FILE", help="append to this JSONL file, and skip what it already holds")
    command.set_defaults(run=_sweep)

    command = commands.add_parser("record", help="measure a module's record_grid and append it to files; resumes")
    command.add_argument("module", metavar="MODULE", help="a module with a record_grid, such as kernels.softmax")
    command.add_argument("--out", default="results", metavar="DIR", help="folder of the files; ./results by default")
    command.add_argument("--device", help="instead of the grid's own")
    command.add_argument("--processes", type=int, help="instead of the grid's own")
    command.add_argument("--only", metavar="NAME", help="only this workload: forward, backward, ...")
    command.add_argument("--budget", type=float, default=10.0, metavar="S", help="seconds of timing per cell and process")
    command.add_argument(
        "--limit-minutes", type=float, metavar="M", help="stop after M minutes; exit code 3 if not all is done"
    )
    command.set_defaults(run=_record)

    command = commands.add_parser("claims", help="find the figures in prose that have neither a record nor a source")
    command.add_argument("paths", nargs="*", metavar="PATH", help="Markdown, notebooks or folders; the repository's by default")
    command.add_argument("--ledger", action="store_true", help="print the claims ledger in Markdown instead")
    command.set_defaults(run=_claims)
    return parser


# ---- sweep


def _sweep(asked: argparse.Namespace) -> int:
    _check(asked.device)
    to_dtype(asked.dtype)
    if asked.into and Path(asked.into).is_dir():
        raise ValueError(f"--into is the folder {asked.into!r}; give a file, such as {Path(asked.into, 'sweep.jsonl')}")
    workload, techniques = of_module(asked.target, asked.step, asked.device)
    if asked.techniques is not None:
        techniques = choose(asked.techniques, asked.target, techniques)
    grid = parse_grid(asked.grid)
    _check_grid(workload, grid)
    running = start(
        workload, techniques, grid, into=asked.into, device=asked.device, dtype=asked.dtype, seed=asked.seed,
        processes=asked.processes, budget=asked.budget,
    )  # fmt: skip
    trials = _follow(running, threading.Event())
    print(tables(trials))
    if asked.into:
        print(f"\nrecorded in {asked.into}")
    return 0 if running.progress.done == running.progress.total else UNFINISHED


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """{"rows": [1024, 4096]} from ["rows=1024,4096"]; numbers, True, False and None are read as such, the rest as text."""
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"--grid has {word!r}; accepted is NAME=VALUE,VALUE, such as rows=1024,4096")
        if name in grid:
            raise ValueError(f"--grid names {name!r} twice; give all its values at once: {name}=1,2,3")
        grid[name] = [_value(text) for text in values.split(",") if text]
        if not grid[name]:
            raise ValueError(f"--grid has no values for {name!r}; give at least one, such as {name}=1024")
    return grid


def _value(text: str) -> Any:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return found if isinstance(found, int | float | bool | str | None) else text


def _check_grid(workload: Workload, grid: Mapping[str, Any]) -> None:
    known = workload.parameters()
    bound = {**known, **workload.params, **grid}
    if missing := [name for name in known if bound[name] is Parameter.empty]:
        example = " ".join(f"{name}=1024,4096" for name in missing)
        raise ValueError(f"workload {workload.name!r} needs values for {', '.join(missing)}: add --grid {example}")
    workload.complete({name: values[0] for name, values in grid.items()})


def _check(device: str) -> None:
    try:
        check_device(device)
    except ValueError as error:
        hint = "; on the command line: --device cpu" if device.startswith("cuda") else ""
        raise ValueError(f"{error}{hint}") from None


def _follow(running: Sweep, stop: threading.Event) -> Trials:
    """Print progress to stderr until the sweep is done; Ctrl-C or `stop` cancels it, and what is finished is kept."""
    live, last = sys.stderr.isatty(), ""
    while running.running:
        running.wait(timeout=0.2)
        if stop.is_set():
            running.cancel()
        where = running.progress
        line = f"cell {min(where.done + 1, where.total)} of {where.total}: {where.stage}"
        if live:
            line = f"\r\x1b[K{line} {where.label}"[:100]
        if running.running and where.stage and line != last:
            last = line
            print(line, end="" if live else "\n", file=sys.stderr, flush=True)
    if live:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    trials = running.wait()
    if running.progress.done < running.progress.total:
        print(f"stopped: {running.progress.done} of {running.progress.total} cells are done", file=sys.stderr)
    return trials


# ---- record


def _record(asked: argparse.Namespace) -> int:
    module = module_of(asked.module)
    grid, techniques = getattr(module, "record_grid", None), tuple(getattr(module, "techniques", ()))
    if not isinstance(grid, tuple) or not grid or not all(isinstance(line, Recording) for line in grid):
        raise ValueError(
            f"module {asked.module!r} has no record_grid (a tuple of kpt_lab.Recording), so nothing is to be recorded"
        )
    chosen = _only(grid, asked.only, workloads_in(module))
    for line in chosen:
        _check(asked.device or line.device)
        if not (line.techniques or techniques):
            raise ValueError(f"module {asked.module!r} has no techniques, and its record_grid names none")
    if asked.limit_minutes is not None and not asked.limit_minutes > 0:
        raise ValueError(f"--limit-minutes is {asked.limit_minutes:g}; it must be above 0")
    stop = threading.Event()
    alarm = threading.Timer(60 * (asked.limit_minutes or 0), stop.set)
    alarm.daemon = True
    if asked.limit_minutes is not None:
        alarm.start()
    try:
        unfinished = [line for line in chosen if not _record_line(line, line.techniques or techniques, asked, stop)]
    finally:
        alarm.cancel()
    return UNFINISHED if unfinished else 0


def _only(grid: Sequence[Recording], name: str | None, attributes: Mapping[str, Workload]) -> list[Recording]:
    if name is None:
        return list(grid)
    wanted = {name, attributes[name].name if name in attributes else name}
    if found := [line for line in grid if line.workload.name in wanted]:
        return found
    known = dict.fromkeys(line.workload.name for line in grid)
    raise ValueError(f"--only is {name!r}; the record_grid has {', '.join(known)}")


def _record_line(line: Recording, techniques: Sequence[Technique], asked: argparse.Namespace, stop: threading.Event) -> bool:
    """Record one line of a grid; False where it was stopped before the end."""
    device = asked.device or line.device
    processes = line.processes if asked.processes is None else asked.processes
    what = f"{line.workload.name} {line.dtype} {dict(line.grid)} on {device}, {processes} processes"
    if stop.is_set():
        print(f"{what}: not begun")
        return False
    path = Path(asked.out, f"{line.workload.name}.{target_name(device)}.jsonl")
    running = start(
        line.workload,
        techniques,
        line.grid,
        into=path,
        device=device,
        dtype=line.dtype,
        processes=processes,
        budget=asked.budget,
    )
    print(f"{what}: {running.progress.done} of {running.progress.total} cells are recorded already, into {path}", flush=True)
    trials = _follow(running, stop)
    finished = running.progress.done >= running.progress.total
    if not finished:  # after Ctrl-C the rest is not wanted either
        stop.set()
    counts = {status: len(trials.where(status=status)) for status in dict.fromkeys(t.status for t in trials)}
    held = len(load(path)) if path.exists() else 0
    print(f"  {', '.join(f'{count} {status}' for status, count in counts.items()) or 'nothing'}; the file holds {held} Trials")
    return finished


def target_name(device: str) -> str:
    """The target's name as part of a file name: "h100-sxm"; where the target is unknown, the device's own name."""
    from kpt_lab.environment import environment

    target = targets.find(device)
    return re.sub(r"[^a-z0-9]+", "-", (target.name if target else environment(device)["device_name"]).lower()).strip("-")


# ---- claims


def _claims(asked: argparse.Namespace) -> int:
    from kpt_lab import claims  # the other commands have no use for it

    root = claims.root_of(".", *asked.paths)
    if asked.ledger:
        if asked.paths:
            raise ValueError(f"--ledger takes no PATH, and {asked.paths[0]!r} was given")
        print(claims.ledger(root / "docs/claims.toml"))
        return 0
    report = claims.check(root, asked.paths)
    print(claims.say(report))
    return 1 if report.failures else 0
