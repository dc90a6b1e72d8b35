"""2:4 products on a CUDA device: every algorithm against dense, and the Trials that the claims rest on.

    PYTHONPATH=. python benchmarks/sparsity_on_gpu.py --explore               # one process, about 2 minutes
    PYTHONPATH=. python benchmarks/sparsity_on_gpu.py --record FILE           # about 6 minutes: few tokens and wide shapes first
    PYTHONPATH=. python benchmarks/sparsity_on_gpu.py --record FILE --part headline     # or few, rest
    PYTHONPATH=. python benchmarks/sparsity_on_gpu.py --summary FILE          # the tables of a record, on any machine

--explore prints, per shape and token count, the time inside CUDA graphs with a flushed cache of dense bf16 and fp8, of 2:4 with
cuSPARSELt's first algorithm and with the fastest of all, and with another layout. It writes
all of it to $OUT/sparsity_explore.json (or the working directory). Found algorithms are kept in build/sparsity_cache, for --record.
A shape that fails is printed and the rest goes on; --seconds ends a run early with what it has.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from resumable import best_of, elapsed, geomean, measured, ratio
from torch.nn import functional as F

from kpt_lab import ratios, records
from kpt_lab.core import Recording
from kpt_lab.measure import job_for
from kpt_lab.precision.casts import cast
from kpt_lab.runner import Job
from kpt_lab.sparsity import cusparselt, layer, search
from kpt_lab.sparsity.cusparselt import Plan
from kpt_lab.sparsity.linear import SparseLinear
from kpt_lab.sparsity.patterns import magnitude_mask

OUT = Path(os.environ.get("OUT", "."))
SHAPES = (*layer.HEADLINE, *layer.WIDE)  # (in, out)
TOKENS = (4096, 1024, 8192, 128, 16, 16384)  # what matters most first
Row = dict[str, Any]


# ---- explore


def made(shape: tuple[int, int], arithmetic: str) -> SparseLinear:
    """A layer of that shape over a random weight pruned by magnitude."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = (torch.randn(shape[1], shape[0], generator=generator, device=DEVICE) * shape[0] ** -0.5).bfloat16()
    return SparseLinear(torch.where(magnitude_mask(weight), weight, 0), arithmetic=arithmetic)  # type: ignore[arg-type]


def explored(layer: SparseLinear, dense_weight: torch.Tensor, tokens: int) -> Row:
    """The times in microseconds of one layer at one token count, and the plans; whatever fails is named under "errors"."""
    rows = layer._example(tokens)
    outcomes: dict[Plan, str] = {}
    row: Row = {
        "tokens": tokens,
        "in": layer.in_features,
        "out": layer.out_features,
        "arithmetic": layer.arithmetic,
        "errors": {},
    }
    plans = attempt(row, "search", lambda: search.best_plan(
        lambda plan: layer._sparse(rows, plan), layer._dense(rows), tokens, outcomes
    )) or {}  # fmt: skip
    if plans:  # --record then races the forms alone
        name = search.key(
            torch.cuda.get_device_name(), getattr(torch, layer.arithmetic), tokens, layer.out_features, layer.in_features
        )
        search.remember(name, {"plan": asdict(next(iter(plans))), "seconds": {}})
    row["wrong"] = [plan.algorithm for plan, outcome in outcomes.items() if outcome == "wrong"]
    row["plans"] = {str(plan): 1e6 * took for plan, took in plans.items()}
    best = next(iter(plans), Plan())
    row["best"] = str(best)
    wide = torch.randn(tokens, layer.in_features, device=DEVICE).to(layer.dtype)
    steps: dict[str, Callable[[], Any]] = {
        "2:4 best": lambda: layer._sparse(rows, best),
        "2:4 first": lambda: layer._sparse(rows, Plan()),
        "dense bf16": lambda: F.linear(wide, dense_weight),
        # (out, tokens) in memory: what a caller that wants it transposed would get
        "2:4 best, transposed output": lambda: torch._cslt_sparse_mm(
            layer.packed, rows.t(), alg_id=best.algorithm, **({"out_dtype": layer.dtype} if layer.eight_bits else {})
        ),
    }
    if layer.eight_bits:
        steps["dense fp8"] = lambda: layer._dense(rows)
        steps["static cast"] = lambda: layer.cast(wide)
        steps["dynamic cast"] = lambda: cast(wide, "tensorwise", "", "e4m3fn")
    times = attempt(row, "race", lambda: search.race(steps, first=7, second=8)) or {}
    row["us"] = {name: 1e6 * took for name, took in times.items()}
    row["errors"] |= {name: "refused" for name in steps if name not in times and times}
    return row


def attempt(row: Row, name: str, step: Callable[[], Any]) -> Any:
    try:
        return step()
    except Exception as error:  # one failure must not hide the rest
        row["errors"][name] = f"{type(error).__name__}: {error}"[:300]
        return None


def explore(seconds: float) -> None:
    """Every shape, token count and arithmetic, as far as the time reaches."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuSPARSELt {cusparselt.version()}")
    for dtype, out in ((torch.bfloat16, None), (cusparselt.FP8, torch.bfloat16)):
        print(f"  {dtype}: cuSPARSELt adds a bias itself: {cusparselt.adds_bias(0, dtype, out)}")
    found: list[Row] = []
    for tokens in TOKENS:
        for shape in SHAPES:
            for arithmetic in ("bfloat16", "float8_e4m3fn"):
                if elapsed() > seconds:
                    print(f"out of time at {tokens} tokens, {shape}")
                    break
                row: Row = {"tokens": tokens, "in": shape[0], "out": shape[1], "arithmetic": arithmetic, "errors": {}}
                dense = attempt(row, "dense", lambda shape=shape: dense_weight(shape))
                made_one = attempt(row, "layer", lambda shape=shape, kind=arithmetic: made(shape, kind))
                if made_one is not None and dense is not None:
                    row = attempt(row, "cell", lambda a=made_one, b=dense, c=tokens: explored(a, b, c)) or row
                found.append(row)
                print(line(row), flush=True)
                del made_one, dense
                (OUT / "sparsity_explore.json").write_text(json.dumps({"device": DEVICE, "rows": found}, indent=1))
    print(f"{elapsed():.0f} s")


def dense_weight(shape: tuple[int, int]) -> torch.Tensor:
    """An unpruned weight: zeros draw less power, and dense must not profit from the pruning."""
    return (torch.randn(shape[1], shape[0], device=DEVICE) * shape[0] ** -0.5).bfloat16()


def line(row: Row) -> str:
    us = row.get("us", {})
    base = us.get("dense bf16", math.nan)
    times = "  ".join(f"{name} {took:.1f} ({base / took:.2f}x)" for name, took in us.items())
    plans = list(row.get("plans", {}).items())
    spread = f"{len(plans)} plans, best {plans[0][0]}, worst {plans[-1][1] / plans[0][1]:.1f}x slower" if plans else "no plan"
    errors = f"  ERRORS {row['errors']}" if row["errors"] else ""
    head = f"[{elapsed():4.0f}] {row['tokens']:6d} x {row['in']} -> {row['out']} {row['arithmetic']}"
    wrong = f"; wrong numbers from {row['wrong']}" if row.get("wrong") else ""
    return f"{head}: {times}; {spread}{wrong}{errors}"


# ---- record


def jobs(part: str) -> Iterator[Job]:
    """The record grid's jobs in the order of their processes, so that an early end leaves whole cells with fewer processes."""
    wanted = [r for r in layer.record_grid if part in ("all", part_of(r))]
    cells = [(recording, job) for recording in wanted for job in recorded_cells(recording)]
    for process in range(max((r.processes for r in wanted), default=0)):
        yield from (replace(job, process=process) for recording, job in cells if process < recording.processes)


def part_of(recording: Recording) -> str:
    """headline: in six processes; few: few tokens, and the most, where the layer must choose well; rest: what is nice to have."""
    if recording.processes > 1:
        return "headline"
    return "few" if recording.workload is layer.forward and 4096 not in recording.grid["tokens"] else "rest"


def recorded_cells(recording: Recording) -> Iterator[Job]:
    grid, techniques = recording.grid, recording.techniques
    for tokens in grid["tokens"]:
        params = {"tokens": tokens, "in_features": grid["in_features"][0], "out_features": grid["out_features"][0]}
        flops = 2.0 * math.prod(params.values())
        budget = min(max(BUDGET, 30 * 2 * len(techniques) * flops / 7e14), 4.0)  # for about 30 blocks, each call made twice
        yield job_for(recording.workload, techniques, params, device=DEVICE, dtype=recording.dtype, budget=budget)


def record(file: Path, part: str, seconds: float) -> None:
    """Measure what `file` lacks of the record grid on such a device, until done or out of time."""
    measured(jobs(part), file, device=DEVICE, seconds=seconds, limit=120.0)
    summary(file)


def summary(file: Path) -> None:
    """Tables over the best dense bf16, geometric means from 4096 tokens on, and the worst cell of each dispatch."""
    dense = tuple(t.label for t in (layer.dense, layer.dense_compiled, layer.dense_autotuned))
    dense_fp8 = (layer.dense_fp8_graph.label, layer.dynamic_fp8_graph.label)
    shown = {
        "2:4 bf16 first": layer.first_bf16, "2:4 bf16": layer.searched_bf16, "dispatch bf16": layer.dispatch_bf16,
        "dense fp8": layer.dense_fp8_graph, "dense fp8 dynamic": layer.dynamic_fp8_graph, "2:4 fp8": layer.searched_fp8, "dispatch fp8": layer.dispatch_fp8,
    }  # fmt: skip
    large: dict[tuple[str, str], list[float]] = {}
    worst: dict[str, tuple[float, str]] = {}
    for cell, by_label in sorted(
        ratios.cells(records.load(file)).items(), key=lambda item: (item[0].workload, sorted(item[0].params))
    ):
        size = dict(cell.params)
        what = f"{cell.workload.rpartition('.')[2]} {size['tokens']} x {size['in_features']} -> {size['out_features']}"
        base = best_of(by_label, dense)
        found = {name: ratio(by_label, t.label, base) for name, t in shown.items() if t.label in by_label}
        processes = max(len(group) for group in by_label.values())
        print(f"{what} ({processes} processes), over {base}: " + "  ".join(f"{name} {v:.3f}x" for name, v in found.items()))
        for name, value in found.items():
            if size["tokens"] >= 4096:
                large.setdefault((cell.workload, name), []).append(value)
        for name, technique, bases in (
            ("dispatch bf16", layer.dispatch_bf16, dense), ("dispatch fp8", layer.dispatch_fp8, dense_fp8),
        ):  # fmt: skip
            value = ratio(by_label, technique.label, best_of(by_label, bases))
            if value < worst.get(f"{name}, {cell.workload}", (math.inf, ""))[0]:
                worst[f"{name}, {cell.workload}"] = value, what
    print(
        "\ngeometric means at 4096 tokens and more, over the best dense bf16 (wanted: 2:4 bf16 1.25, 2:4 fp8 of fp8_inputs 2.0):"
    )
    for (workload, name), values in sorted(large.items()):
        print(f"  {workload} {name}: {geomean(values):.3f}x over {len(values)} cells, lowest {min(values):.3f}x")
    print("worst cell of dispatch over the best dense of its arithmetic (wanted: 0.98):")
    for name, (value, what) in sorted(worst.items()):
        print(f"  {name}: {value:.3f}x at {what}")


DEVICE = "cuda"
BUDGET = 0.6  # seconds of timing a cell and process, more for large ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--explore", action="store_true")
    parser.add_argument("--record", metavar="FILE", type=Path)
    parser.add_argument("--summary", metavar="FILE", type=Path)
    parser.add_argument("--part", choices=("all", "headline", "few", "rest"), default="all")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so many (explore 150, record 350)")
    asked = parser.parse_args()
    os.environ.setdefault("KPT_LAB_CACHE", str(Path("build/sparsity_cache").resolve()))
    if asked.explore:
        explore(asked.seconds or 150.0)
    if asked.record:
        record(asked.record, asked.part, asked.seconds or 350.0)
    if asked.summary:
        summary(asked.summary)
    if search.cache_file().exists():
        shutil.copy(search.cache_file(), OUT / search.cache_file().name)
    if not (asked.explore or asked.record or asked.summary):
        parser.print_help()


if __name__ == "__main__":
    main()
