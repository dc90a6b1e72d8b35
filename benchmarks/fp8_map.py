"""Where FP8 pays for one linear layer, and whether the policy finds it: every recipe in every cell, twice.

    python benchmarks/fp8_map.py --into FILE               # on a CUDA device with FP8: about 6 minutes
    python benchmarks/fp8_map.py --grade FILE              # anywhere: grade the policy on what was recorded

The first pass is what `AutoMixedPrecision` decides from, with its own candidates. The second, on other values, has every
recipe and grades the choices: against the best of
eager and torch.compile in bfloat16 ("never slower than 0.98x" after Holm's correction) and against the best of all recipes.
Prints a line for each cell and writes the grades to fp8_map.json beside FILE. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import kpt_lab as kpt
from kpt_lab.precision import layer
from kpt_lab.precision.policy import AutoMixedPrecision
from kpt_lab.precision.regret import graded, summary


def record(path: Path, budget: float) -> None:
    """Both passes of the grid, in this process: a fresh one for each cell would cost more than the cell."""
    known = kpt.load(path) if path.exists() else ()
    done = {(t.seed, t.params["tokens"], t.params["in_features"]) for t in known}
    candidates = (layer.eager, layer.compiled, *map(layer.at, AutoMixedPrecision().recipes))
    for seed, width, tokens in itertools.product((0, 1), layer.WIDTHS, layer.TOKENS):
        if (seed, tokens, width) in done:
            continue
        sizes = {"tokens": tokens, "in_features": width, "out_features": width}
        start = time.perf_counter()
        techniques = layer.techniques if seed else candidates
        trials = kpt.measure(
            layer.step, techniques, device="cuda", dtype="bfloat16", seed=seed, budget=budget, processes=0, **sizes
        )
        kpt.record(trials, path)
        blocks = trials[0].chosen["blocks"]
        failed = {t.label: f"{t.status}: {t.advice}" for t in trials if t.status != "ok"}
        print(
            f"seed {seed}, {tokens} x {width}: {time.perf_counter() - start:.1f} s, {blocks} blocks", failed or "", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path)
    parser.add_argument("--grade", type=Path)
    parser.add_argument("--budget", type=float, default=3.5)
    asked = parser.parse_args()
    if asked.into:
        record(asked.into, asked.budget)
    path = asked.into or asked.grade
    if not path:
        parser.error("pass --into FILE to record, or --grade FILE")
    found = graded(kpt.load(path))
    for grade in found:
        print(grade)
    result = summary(found)
    print(json.dumps(result, indent=1))
    path.with_name("fp8_map.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
