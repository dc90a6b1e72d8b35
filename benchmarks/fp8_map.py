"""Where FP8 pays for one linear layer, and whether the policy finds it.

    python benchmarks/fp8_map.py --into FILE               # on a CUDA device with FP8: about 10 minutes
    python benchmarks/fp8_map.py --grade FILE              # anywhere: grade the policy on what was recorded

The policy decides in every cell through its own front door. Another run, on other values, has every recipe and grades its
choices: against the best of eager and torch.compile in bfloat16 ("never slower than 0.98x" after Holm's correction) and against
the best of all recipes.
Prints a line for each cell and writes the grades to fp8_map.json beside FILE.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import nn

import kpt_lab as kpt
from kpt_lab.precision import layer
from kpt_lab.precision.policy import AutoMixedPrecision
from kpt_lab.precision.regret import SEED, graded, summary


def decide(path: Path) -> None:
    """The policy's own run in every cell, through its front door; its Trials are kept, and what it chose is printed."""
    policy = AutoMixedPrecision(head="auto")
    for width, tokens in itertools.product(layer.WIDTHS, layer.TOKENS):
        start = time.perf_counter()
        model = nn.Sequential(nn.Linear(width, width, bias=False)).to("cuda", torch.bfloat16)
        x, upstream = (torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        found = policy.decide(model, (x, upstream), loss=lambda y, upstream: (y * upstream).float().sum())
        kpt.record(found.trials, path)
        print(f"{tokens} x {width}: {found['0'].recipe} ({found['0'].reason}), {time.perf_counter() - start:.1f} s", flush=True)


def grade(path: Path, budget: float) -> None:
    """Every recipe in every cell, in this process: a fresh one for each cell would cost more than the cell."""
    known = [t for t in kpt.load(path) if t.seed == SEED] if path.exists() else []
    done = {(t.params["tokens"], t.params["in_features"]) for t in known}
    for width, tokens in itertools.product(layer.WIDTHS, layer.TOKENS):
        if (tokens, width) in done:
            continue
        sizes = {"tokens": tokens, "in_features": width, "out_features": width}
        start = time.perf_counter()
        trials = kpt.measure(
            layer.step, layer.techniques, device="cuda", dtype="bfloat16", seed=SEED, budget=budget, processes=0, **sizes
        )
        kpt.record(trials, path)
        failed = {t.label: f"{t.status}: {t.advice}" for t in trials if t.status != "ok"}
        print(f"graded {tokens} x {width}: {time.perf_counter() - start:.1f} s", failed or "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="record into this file what it lacks, then grade")
    parser.add_argument("--decided", action="store_true", help="the file holds the policy's own runs already")
    parser.add_argument("--grade", type=Path, help="grade what this file holds")
    parser.add_argument("--budget", type=float, default=3.5, help="seconds of timing for each cell that grades")
    asked = parser.parse_args()
    path = asked.into or asked.grade
    if not path:
        parser.error("pass --into FILE to record, or --grade FILE")
    if asked.into and not asked.decided:
        decide(path)
    if asked.into:
        grade(path, asked.budget)
    found = graded(kpt.load(path))
    for one in found:
        print(one)
    result = summary(found)
    print(json.dumps(result, indent=1))
    path.with_name("fp8_map.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
