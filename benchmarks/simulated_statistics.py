"""Simulated comparisons against kpt_lab.stats: false alarms, power, and coverage of the reported intervals.

    python benchmarks/simulated_statistics.py [--runs 2000] [--seed 0] [--out FILE.json]

A run simulates two techniques timed in paired blocks: a drift common to both (a slow wave of 20%, a random walk, one jump of
the clock), and for each technique lognormal noise, whose logarithm is an AR(1) series with the given residual
autocorrelation, and in 5% of its blocks a spike of 50% on average. The spread of a block's ratio is 2, 5 or 8%: what a
47 us softmax, a 512 matmul and a 0.7 ms softmax showed on a CPU. Looks and levels are those of kpt_lab.stats. Nothing here
reads a clock. Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kpt_lab import stats

SPREADS = (0.02, 0.05, 0.08)
FACTORS = (1.0, 1.01, 1 / 1.05)  # true speedups: none, one inside the margin, a slowdown by 5%
EARLY = (8, 10, 12, 16, 20, 25, 29)  # blocks after which a budget may end a run, before the first of its looks
MILD, STRONG = (0.0, 0.15, 0.3), (0.6, 0.9)  # residual autocorrelations


def ar1(rng: np.random.Generator, correlation: float, shape: tuple[int, int]) -> np.ndarray:
    """Stationary AR(1) series of unit variance along the last axis."""
    series = rng.standard_normal(shape)
    for t in range(1, shape[1]):
        series[:, t] = correlation * series[:, t - 1] + math.sqrt(1 - correlation**2) * series[:, t]
    return series


def common_drift(rng: np.random.Generator, runs: int, blocks: int) -> np.ndarray:
    """What the machine does to both techniques alike, as a factor on the time: shape (runs, blocks)."""
    t = np.arange(blocks)
    wave = 0.2 * np.sin(2 * np.pi * (t / rng.uniform(50, 500, (runs, 1)) + rng.random((runs, 1))))
    walk = np.cumsum(0.01 * rng.standard_normal((runs, blocks)), axis=1)
    jump = 0.15 * (t >= rng.integers(0, blocks, (runs, 1)))
    return np.exp(wave + walk + jump)


def simulate(
    rng: np.random.Generator, runs: int, blocks: int, spread: float, correlation: float, speedup: float
) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds of a baseline and of a technique that is `speedup` times as fast, each of shape (runs, blocks)."""
    drift = 50e-6 * common_drift(rng, runs, blocks)
    times = []
    for factor in (1.0, 1 / speedup):
        noise = np.exp(spread / math.sqrt(2) * ar1(rng, correlation, (runs, blocks)))
        spikes = 1 + (rng.random((runs, blocks)) < 0.05) * rng.exponential(0.5, (runs, blocks))
        times.append(factor * drift * noise * spikes)
    return times[0], times[1]


def look(baseline: np.ndarray, technique: np.ndarray, looks: Sequence[int]) -> tuple[int, float, float, float, str]:
    """What a sequential comparison reports: blocks used, median, low, high and verdict of the look at which it stops."""
    for blocks in looks:
        median, low, high, verdict = stats.sequential_verdict(baseline[:blocks], technique[:blocks])
        if verdict != "UNCLEAR":
            break
    return blocks, median, low, high, verdict


def sequential_rows(rng: np.random.Generator, runs: int, looks: Sequence[int], kind: str) -> Iterator[dict]:
    """One row per spread, autocorrelation and true speedup: verdicts, blocks and coverage of the sequential protocol."""
    for spread in SPREADS:
        for correlation in MILD + STRONG:
            for speedup in FACTORS:
                pairs = simulate(rng, runs, looks[-1], spread, correlation, speedup)
                found = [look(*pair, looks) for pair in zip(*pairs, strict=True)]
                verdicts = [verdict for *_, verdict in found]
                called = [verdict in ("FASTER", "SLOWER") for verdict in verdicts]
                covered = [low <= speedup <= high for _, _, low, high, _ in found]
                yield {
                    "kind": kind,
                    "spread": spread,
                    "autocorrelation": correlation,
                    "speedup": round(speedup, 4),
                    "runs": runs,
                    **{name: verdicts.count(name) for name in ("FASTER", "SLOWER", "SAME", "UNCLEAR")},
                    "called_first_200": sum(called[:200]),
                    "beyond_margin_first_1000": sum(
                        c and abs(median - 1) > stats.MARGIN for c, (_, median, *_) in zip(called[:1000], found, strict=False)
                    ),
                    "covered": sum(covered) / runs,
                    "covered_or_unclear": sum(c or v == "UNCLEAR" for c, v in zip(covered, verdicts, strict=True)) / runs,
                    "median_blocks": float(np.median([blocks for blocks, *_ in found])),
                }


def fixed_rows(rng: np.random.Generator, runs: int) -> Iterator[dict]:
    """One row per spread, autocorrelation and number of blocks: coverage of the nominal 95% interval."""
    for spread in SPREADS:
        for correlation in MILD + STRONG:
            for blocks in stats.LOOKS:
                pairs = simulate(rng, runs, blocks, spread, correlation, 1.0)
                found = [stats.ratio_interval(*pair, 0.95) for pair in zip(*pairs, strict=True)]
                bounded = [(low, high) for _, low, high in found if high < math.inf]
                covered = sum(low <= 1 <= high for low, high in bounded)
                yield {
                    "kind": "fixed",
                    "spread": spread,
                    "autocorrelation": correlation,
                    "blocks": blocks,
                    "runs": runs,
                    "bounded": len(bounded) / runs,
                    "covered": (covered + runs - len(bounded)) / runs,  # an unbounded interval covers, and says nothing
                    "covered_where_bounded": covered / len(bounded) if bounded else math.nan,
                    "median_width": float(np.median([high - low for low, high in bounded])) if bounded else math.nan,
                }


def bars(rows: list[dict]) -> list[dict]:
    """The worst row of each bar, and whether it holds."""
    sequential = [row for row in rows if row["kind"] == "sequential"]
    early = [row for row in rows if row["kind"] not in ("sequential", "fixed")]
    chance = [row for row in early if row["speedup"] == 1 and row["autocorrelation"] in MILD]
    alike = [row for row in sequential if row["speedup"] == 1 and row["autocorrelation"] in MILD]
    slower = [row for row in sequential if row["speedup"] < 1 and row["autocorrelation"] in MILD]
    mild = [row for row in rows if row["autocorrelation"] in MILD]
    strong = [row for row in rows if row["autocorrelation"] in STRONG]
    worst = [
        ("A/A called FASTER or SLOWER, of the first 200", max(row["called_first_200"] for row in alike), "<=", 15),
        ("A/A called so, median beyond 2%, of the first 1000", max(row["beyond_margin_first_1000"] for row in alike), "<=", 0),
        ("power against a slowdown by 5%", min(row["SLOWER"] / row["runs"] for row in slower), ">=", 0.9),
        ("coverage of the fixed 95% interval, autocorrelation <= 0.3", least(mild, "fixed", "covered"), ">=", 0.94),
        ("coverage of the sequential interval, autocorrelation <= 0.3", least(mild, "sequential", "covered"), ">=", 0.94),
        ("covered or unbounded, fixed, 0.6 and 0.9", least(strong, "fixed", "covered"), ">=", 0.9),
        ("covered or UNCLEAR, sequential, 0.6 and 0.9", least(strong, "sequential", "covered_or_unclear"), ">=", 0.9),
        (
            "ended early: A/A called FASTER or SLOWER, of the first 200",
            max(row["called_first_200"] for row in chance),
            "<=",
            15,
        ),
        (
            "ended early: A/A called so, median beyond 2%, of the first 1000",
            max(row["beyond_margin_first_1000"] for row in chance),
            "<=",
            0,
        ),
        (
            "ended early: covered, autocorrelation <= 0.3",
            min(row["covered"] for row in early if row["autocorrelation"] in MILD),
            ">=",
            0.94,
        ),
        (
            "ended early: covered or UNCLEAR, 0.6 and 0.9",
            min(row["covered_or_unclear"] for row in early if row["autocorrelation"] in STRONG),
            ">=",
            0.9,
        ),
    ]
    return [
        {
            "bar": name,
            "worst": figure,
            "limit": f"{sign} {limit}",
            "holds": figure <= limit if sign == "<=" else figure >= limit,
        }
        for name, figure, sign, limit in worst
    ]


def least(rows: list[dict], kind: str, key: str) -> float:
    return min(row[key] for row in rows if row["kind"] == kind)


def print_table(rows: list[dict]) -> None:
    """Rows with the same columns, right-aligned under their names."""
    columns = list(rows[0])
    cells = [columns, *([f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated comparisons per row (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write rows and bars to this JSON file")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}; accepted are whole numbers from 1")
    rng = np.random.default_rng(options.seed)
    fixed, sequential = list(fixed_rows(rng, options.runs)), list(sequential_rows(rng, options.runs, stats.LOOKS, "sequential"))
    for blocks in EARLY:
        sequential += sequential_rows(rng, options.runs, (blocks,), f"ended after {blocks}")
    found = bars(fixed + sequential)
    for table in (fixed, sequential, found):
        print_table(table)
    if options.out:
        record = {"runs": options.runs, "seed": options.seed, "looks": stats.LOOKS, "look_level": stats.LOOK_LEVEL}
        rows = [{k: None if v != v else v for k, v in row.items()} for row in fixed + sequential]  # JSON has no NaN
        options.out.write_text(json.dumps({**record, "bars": found, "rows": rows}, indent=1) + "\n")
    return 0 if all(bar["holds"] for bar in found) else 1


if __name__ == "__main__":
    sys.exit(main())
