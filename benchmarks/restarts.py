"""Does the span of six processes' medians cover the truth? Thirty fresh processes a pair on this CPU, then resampling.

    python benchmarks/restarts.py [--processes 30] [--budget 1.0] [--out FILE]

For each pair, takes the median ratio of every process; the "truth" is the median of all of them. Draws six processes without
replacement many times and counts how often kpt_lab.stats.processes_interval of the six covers it (97% for independent ones).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from statistics import median

import torch

import kpt_lab as kpt
from kpt_lab import baselines, stats
from kpt_lab.core import Problem, Technique, Workload

DRAWS = 4000


def _make(*, device: str, dtype: torch.dtype, seed: int, rows: int, cols: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return Problem(_softmax, [(torch.randn(rows, cols, generator=generator).to(device, dtype),) for _ in range(3)])


def _softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def _by_log(fn: Callable, args: tuple) -> Callable:
    return _exp_log_softmax


def _exp_log_softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(x, -1).exp()


def _in_halves(fn: Callable, args: tuple) -> Callable:
    return _two_softmaxes


def _two_softmaxes(x: torch.Tensor) -> torch.Tensor:
    middle = x.shape[0] // 2
    return torch.cat([torch.softmax(x[:middle], -1), torch.softmax(x[middle:], -1)])


WORK = Workload("softmax", _make)
PAIRS = {
    "softmax against exp(log_softmax)": (Technique("by log", _by_log), {"rows": 256, "cols": 1024}),
    "softmax against two halves": (Technique("in halves", _in_halves), {"rows": 512, "cols": 2048}),
}


def main() -> None:
    """Print and write coverage and spread for both pairs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=30)
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--out")
    options = parser.parse_args()
    dice, report = random.Random(0), {}
    for name, (technique, params) in PAIRS.items():
        trials = kpt.measure(WORK, [baselines.eager, technique], processes=options.processes, budget=options.budget, **params)
        ratios = []
        for process in range(options.processes):
            mine = trials.where(process=process)
            ratios.append(kpt.speedup(mine.where(label=technique.label), mine.where(label="eager")).value)
        truth = median(ratios)
        intervals = [stats.processes_interval(dice.sample(ratios, 6)) for _ in range(DRAWS)]
        covered = sum(low <= truth <= high for low, high in intervals) / DRAWS
        report[name] = {"medians": ratios, "median": truth, "coverage": covered}
        print(
            f"{name}: median {truth:.3f}, processes {min(ratios):.3f} to {max(ratios):.3f}, covered {covered:.1%}", flush=True
        )
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    from restarts import main as run  # by a module name, so that child processes can import the techniques

    run()
