"""Fidelity of a rectangular mesh of 256 modes with faulty splitters or phases, against exp(-2 N s^2) and exp(-N s^2).

    python benchmarks/photonic_fidelity.py [--modes 256] [--draws 20] [--out FILE.json]

A draw is a random unitary's mesh with fresh errors. Nothing here reads a clock. Exits with 1 where a mean is off by more than 0.01.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from kpt_lab.frontier.photonic import Noise, PhaseError, SplitterError, decompose, disturbed, fidelity, random_unitary

STDS = (0.005, 0.01, 0.02, 0.03, 0.05)
BAR = 0.01


def main() -> int:
    """Print and write the means; 1 where the bar is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--modes", type=int, default=256)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    unitary = random_unitary(options.modes, generator=generator)
    mesh = decompose(unitary)
    rows = []
    for kind, rate, make in (
        ("splitter", 2, lambda s: Noise(splitter=SplitterError(s))),
        ("phase", 1, lambda s: Noise(phase=PhaseError(s))),
    ):
        for std in STDS:
            found = torch.stack(
                [fidelity(disturbed(mesh, make(std), generator).matrix(), unitary) for _ in range(options.draws)]
            )
            expected = math.exp(-rate * options.modes * std**2)
            row = {
                "error": kind,
                "std": std,
                "mean": found.mean().item(),
                "std_of_draws": found.std().item(),
                "closed_form": expected,
            }
            rows.append(row)
            print(row, flush=True)
    report = {"modes": options.modes, "draws": options.draws, "seed": options.seed, "scheme": "clements", "rows": rows}
    report["reconstruction_error"] = (mesh.matrix() - unitary).abs().max().item()
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    return int(any(abs(row["mean"] - row["closed_form"]) > BAR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
