"""A transformer trained on scikit-learn's digits, converted by both strategies: accuracy, spikes, and modelled energy.

    python benchmarks/spiking_digits.py [--out benchmarks/recorded/spiking_digits.cpu.json] [--seeds 5] [--epochs 40]

The transformer and its images are those of kpt_lab.frontier.spiking.digits, split and trained once for each seed. Thresholds are
set on the first 256 training images. Exactness is the largest difference of a logit from the quantised network's, over the test images. The
energies are modelled from counts per image; nothing here reads a clock.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kpt_lab.frontier.spiking import SpikingTransformer
from kpt_lab.frontier.spiking.digits import Digits, accuracy, data, train

CALIBRATION = 256
SETTINGS = (
    ("exact", 8), ("exact", 16), ("exact", 32), ("exact", 64), ("temporal_coding", 8), ("temporal_coding", 16),
    ("temporal_coding", 32),
)  # fmt: skip


@torch.no_grad()
def converted(model: Digits, x: Tensor, tested: Tensor, labels: Tensor, strategy: str, steps: int) -> dict[str, Any]:
    """One conversion on the test images: accuracy, exactness, spikes and energies."""
    made = SpikingTransformer.from_standard(model, strategy, "Intel_Loihi", calibration=x[:CALIBRATION], timesteps=steps)
    most = 0

    def watch(name: str, spikes: Tensor) -> Tensor:
        nonlocal most
        most = max(most, int(spikes.abs().sum(0, dtype=torch.int32).max()))
        return spikes

    logits, wanted = made.spike_forward(made.encode(tested), edit=watch), made.quantised(tested)
    energy = made.energy()
    return {
        "strategy": strategy, "timesteps": steps, "accuracy": accuracy(logits, labels), "largest_difference": float((logits - wanted).abs().max()),
        "same_argmax": int((logits.argmax(-1) == wanted.argmax(-1)).sum()), "most_spikes_of_a_neuron": most,
        "spikes_per_neuron": energy.spikes_per_neuron, "spikes_per_synapse": energy.spikes_per_synapse,
        "windows": made.last.windows if made.last else 0,
        "energy": {t.technique: {name: m.value for name, m in t.metrics.items()} for t in energy.trials},
    }  # fmt: skip


def record(seeds: int, epochs: int) -> dict[str, Any]:
    """All seeds and settings, with means over seeds for each setting."""
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        x, y, tested, labels = data(seed)
        model = train(x, y, seed, epochs)
        with torch.no_grad():
            standard = accuracy(model(tested), labels)
        for strategy, steps in SETTINGS:
            found = converted(model, x, tested, labels, strategy, steps)
            runs.append({"seed": seed, "standard": standard, "lost_points": 100 * (standard - found["accuracy"]), **found})
            print({k: v for k, v in runs[-1].items() if k != "energy"}, flush=True)
    means = []
    for strategy, steps in SETTINGS:
        group = [r for r in runs if (r["strategy"], r["timesteps"]) == (strategy, steps)]
        names = ("standard", "accuracy", "lost_points", "spikes_per_neuron", "spikes_per_synapse")
        mean = {name: fmean(r[name] for r in group) for name in names}
        gains = {
            f"gain.{metric}.{arithmetic}": fmean(
                r["energy"][f"standard {arithmetic}"][metric] / r["energy"][f"spiking {arithmetic}"][metric] for r in group
            )
            for metric in ("energy.compute", "energy.with_memory")
            for arithmetic in ("float32", "int8")
        }
        worst = max(r["lost_points"] for r in group)
        means.append(
            {"strategy": strategy, "timesteps": steps, "seeds": len(group), **mean, "worst_lost_points": worst, **gains}
        )
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")}
    return {
        "what": "digits transformer, test images per seed: 360; weights of linear layers rounded to 8 bits; energies are modelled, "
        "J per image; a gain is the standard network's energy over the spiking one's",
        "python": platform.python_version(), "versions": versions, "epochs": epochs, "means": means, "runs": runs,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/recorded/spiking_digits.cpu.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    found = record(given.seeds, given.epochs)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["means"]:
        print(row)


if __name__ == "__main__":
    main()
