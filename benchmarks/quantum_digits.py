"""Is a circuit in the middle of a classifier worth its parameters? Trained on scikit-learn's digits beside a matrix of as many.

    python benchmarks/quantum_digits.py [--out benchmarks/recorded/quantum_digits.cpu.json] [--seeds 10] [--epochs 30]

For each seed, which draws the split, the first weights and the batches: the hybrid classifier, the same without entangling gates, and
the classical one, all with the same number of parameters and the same choice of learning rates, by validation. Beside them logistic
regression, which has more parameters, for scale. Differences of test accuracy are paired by seed; the interval is the exact one of
their median. Circuits are simulated; nothing here reads a clock, and nothing says how a quantum computer would do.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from kpt_lab.environment import environment
from kpt_lab.frontier.quantum import digits
from kpt_lab.stats import median_interval

LOGISTIC = "logistic regression"
PAIRS = (("hybrid", "classical"), ("hybrid", "no entanglement"), ("no entanglement", "classical"), ("hybrid", LOGISTIC))


def run(kind: str, seed: int, epochs: int) -> dict[str, Any]:
    """One classifier, its learning rate chosen by validation."""
    train_on, choose_by, test_on = digits.data(seed)
    torch.manual_seed(seed)
    model = nn.Linear(digits.PIXELS, digits.CLASSES) if kind == LOGISTIC else digits.Classifier(kind)
    best, rate = digits.tuned(model, train_on, choose_by, epochs, seed)
    found = {name: digits.accuracy(best, split) for name, split in (("validation", choose_by), ("test", test_on))}
    return {"kind": kind, "seed": seed, "parameters": digits.parameters(model), "rate": rate, **found}


def paired(runs: list[dict[str, Any]], one: str, other: str) -> dict[str, Any]:
    """Points of test accuracy that `one` is above `other`, seed by seed, and the interval of their median."""
    by = {(run["kind"], run["seed"]): 100 * run["test"] for run in runs}
    points = [by[one, seed] - by[other, seed] for seed in sorted({run["seed"] for run in runs})]
    # five values hold their median between the least and the largest at 93.75%; from six on 95% can be had
    level = 0.95 if len(points) > 5 else 1 - 2 ** (1 - len(points))
    low, high = median_interval(points, level)
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    return {"of": one, "over": other, "points": points, "median": median(points), "low": low, "high": high, "level": level, "verdict": verdict}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/recorded/quantum_digits.cpu.json"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    asked = parser.parse_args()
    if asked.seeds < 5:
        parser.error(f"--seeds is {asked.seeds}; fewer than 5 give no interval")
    torch.set_num_threads(1)
    runs = []
    for seed in range(asked.seeds):
        for kind in (*digits.KINDS, LOGISTIC):
            runs.append(run(kind, seed, asked.epochs))
            print(runs[-1], flush=True)
    models = [
        {
            "kind": kind,
            "parameters": group[0]["parameters"],
            "mean_test": fmean(r["test"] for r in group),
            "worst_test": min(r["test"] for r in group),
            "best_test": max(r["test"] for r in group),
        }
        for kind in (*digits.KINDS, LOGISTIC)
        if (group := [r for r in runs if r["kind"] == kind])
    ]
    content = {
        "what": "test accuracy on scikit-learn's digits, 360 images a seed; circuits simulated exactly, differences in points",
        "qubits": digits.QUBITS, "depth": digits.DEPTH, "epochs": asked.epochs, "seeds": asked.seeds, "rates": list(digits.RATES),
        "models": models, "differences": [paired(runs, one, other) for one, other in PAIRS], "runs": runs,
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")}, "environment": environment("cpu"),
    }  # fmt: skip
    asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for row in models:
        print(row)
    for row in content["differences"]:
        print({key: value for key, value in row.items() if key != "points"})


if __name__ == "__main__":
    main()
