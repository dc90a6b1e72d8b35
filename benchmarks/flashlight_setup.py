"""How long does FlashLight take before the first result, beside torch.compile on the same attention?

    PYTHONPATH=. python benchmarks/flashlight_setup.py --record benchmarks/recorded/flashlight_setup.cpu.jsonl
    PYTHONPATH=. python benchmarks/flashlight_setup.py --device cuda --record $OUT/flashlight_setup.h100-sxm.jsonl
    PYTHONPATH=. python benchmarks/flashlight_setup.py --summary FILE

From apply to the end of the first call, in fresh processes: cold with empty compiler caches, warm with those that the cold one
left. FlashLight's seconds include its capture, its proofs and its check against the original; a GPU's race of kernels is remembered
between processes and counts in the cold one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kpt_lab as kpt
from kpt_lab import baselines, records
from kpt_lab.kernels import attention

VARIANTS = ("causal", "window", "document", "softcap", "alibi")
TECHNIQUES = (baselines.compiled, attention.flashlight, attention.flashlight_compiled)
NAMES = ("setup_time.cold", "setup_time.warm")


def record(file: Path, device: str, variants: Sequence[str] = VARIANTS) -> None:
    """One cell a variant, small on a CPU."""
    size: dict[str, Any] = (
        {"batch": 1, "heads": 4, "length": 512} if device == "cpu" else {"batch": 4, "heads": 16, "length": 4096}
    )
    for variant in variants:
        trials = kpt.measure(
            attention.forward, TECHNIQUES, device=device, dtype="float32" if device == "cpu" else "bfloat16", budget=1.0,
            processes=1, setup=True, width=64, groups=1, variant=variant, kept=True, **size,
        )  # fmt: skip
        records.record(trials, file)
        show(trials)


def show(trials: kpt.Trials) -> None:
    """A line a technique."""
    for trial in trials:
        told = [f"{name.rpartition('.')[2]} {trial.metrics[name].value:.1f} s" for name in NAMES if name in trial.metrics]
        if told or trial.status != "ok":
            print(
                f"{trial.params['variant']:9} {trial.label:28} {', '.join(told) or f'{trial.status}: {trial.advice}'}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--summary", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("KPT_LAB_CACHE", str(Path("build/attention_cache").resolve()))
    if asked.record:
        record(asked.record, asked.device, asked.only)
    elif asked.summary:
        show(kpt.load(asked.summary))
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
