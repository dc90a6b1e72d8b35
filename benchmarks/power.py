"""What the verdicts are worth on this machine: real A/A comparisons, and a planted slowdown.

    python benchmarks/power.py [--device cpu|cuda] [--pairs 50] [--planted 20] [--out FILE]

A/A: two copies of the same eager softmax; a verdict FASTER or SLOWER is a false alarm. Planted: the same softmax followed by
softmax over a share of the rows again (2% on a CPU, where that and the second call's own overhead cost about 5% of the time; 3%
on CUDA); the slowdown is found when the verdict is SLOWER. The ratios that come out say how large it really was.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import kpt_lab as kpt
from kpt_lab import baselines
from kpt_lab.core import Technique
from kpt_lab.kernels import softmax

CELLS: dict[str, dict[str, Any]] = {
    "cpu": {
        "params": [{"rows": 512, "cols": 4096}, {"rows": 128, "cols": 1024}],
        "planted": [{"rows": 1024, "cols": 4096}],
        "dtype": "float32", "share": 0.02, "budget": 6.0,
    },
    "cuda": {
        "params": [{"rows": 16384, "cols": 32768}, {"rows": 16384, "cols": 8192}],
        "planted": [{"rows": 16384, "cols": 32768}],
        "dtype": "bfloat16", "share": 0.03, "budget": 4.0,
    },
}  # fmt: skip


def _same(fn: Callable, args: tuple) -> Callable:
    return fn


def _slower(fn: Callable, args: tuple, share: float) -> Callable:
    def candidate(x: torch.Tensor) -> torch.Tensor:
        output = fn(x)
        fn(x[: round(share * x.shape[0])])
        return output

    return candidate


def verdicts(technique: Technique, setting: dict[str, Any], device: str, count: int, sizes: str) -> tuple[Counter, list[float]]:
    """Verdicts of `count` comparisons of a technique with eager, over the sizes of that name in turn, and the ratios."""
    found: Counter = Counter()
    ratios = []
    for k in range(count):
        trials = kpt.measure(
            softmax.forward, [baselines.eager, technique], device=device, dtype=setting["dtype"], seed=k, processes=0,
            budget=setting["budget"], **setting[sizes][k % len(setting[sizes])],
        )  # fmt: skip
        ratio = kpt.speedup(trials.where(label=technique.label), trials.where(label="eager"))
        found[ratio.verdict] += 1
        ratios.append(ratio.value)
    return found, ratios


def main() -> None:
    """Print and write both counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--planted", type=int, default=20)
    parser.add_argument("--out")
    options = parser.parse_args()
    setting = CELLS[options.device]
    report: dict[str, Any] = {"device": options.device, "threads": torch.get_num_threads()}
    same, ratios = verdicts(Technique("the same again", _same), setting, options.device, options.pairs, "params")
    report["A/A"] = {"verdicts": dict(same), "largest": max((abs(r - 1) for r in ratios), default=0.0), "ratios": ratios}
    print(f"A/A, {options.pairs} comparisons: {dict(same)}; largest |ratio - 1| {report['A/A']['largest']:.4f}", flush=True)
    slower = Technique("slower", _slower)(share=setting["share"])
    planted, ratios = verdicts(slower, setting, options.device, options.planted, "planted")
    report["planted"] = {"share": setting["share"], "verdicts": dict(planted), "ratios": ratios}
    print(
        f"planted, {setting['share']:.0%} of the rows again, {options.planted} comparisons: {dict(planted)}; speedups {min(ratios):.3f} to {max(ratios):.3f}"
    )
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    main()
