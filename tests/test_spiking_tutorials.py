"""What the stored notebooks about spiking networks say: answers that follow from the record, and what they must not leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
RECORD = json.loads((ROOT / "benchmarks/recorded/spiking_digits.cpu.json").read_text(encoding="utf-8"))
CONVERT, HUNDRED = (ROOT / "notebooks/phase3" / f"{name}.ipynb" for name in ("04_convert_a_transformer", "05_is_it_100x"))


def told(path: Path, cell: str) -> str:
    """The text that a stored cell shows."""
    (found,) = [each for each in nbformat.read(path, as_version=4).cells if each.id == cell]
    return "".join(o.get("text", "") or o.data.get("text/markdown") or o.data.get("text/plain", "") for o in found.outputs)


def less(gain: float) -> str:
    return f"{gain:.3g}x less" if gain >= 1 else f"{1 / gain:.3g}x more"


@pytest.mark.parametrize("path", [CONVERT, HUNDRED], ids=lambda path: path.stem)
def test_the_first_cell_says_that_no_such_hardware_was_used(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0].source
    assert "Nothing here ran on neuromorphic hardware" in first
    assert "imulated" in first
    assert path is CONVERT or ("modelled" in first and "second-hand" in first)


def test_the_answer_about_conversion_follows_from_the_record() -> None:
    answer = told(CONVERT, "answer")
    for strategy, steps in (("exact", 64), ("temporal_coding", 32)):
        runs = [r for r in RECORD["runs"] if (r["strategy"], r["timesteps"]) == (strategy, steps)]
        lost = [r["lost_points"] for r in runs]
        assert f"`{strategy}` with T = {steps} loses {sum(lost) / len(lost):.2f} points (worst seed {max(lost):.2f})" in answer
    assert "Over 5 seeds" in answer


def gain(run: dict[str, Any], metric: str, numbers: str) -> float:
    return run["energy"][f"standard {numbers}"][metric] / run["energy"][f"spiking {numbers}"][metric]


def test_the_answer_about_energy_follows_from_the_record() -> None:
    answer = told(HUNDRED, "answer")
    some = [r for r in RECORD["runs"] if (r["strategy"], r["timesteps"]) == ("temporal_coding", 8)]
    for metric in ("energy.compute", "energy.with_memory"):
        for numbers in ("float32", "int8"):
            assert less(sum(gain(r, metric, numbers) for r in some) / len(some)) in answer
    assert answer.rstrip("*").rstrip().endswith("Modelled.")


def test_every_recorded_setting_is_on_the_page_with_its_losses() -> None:
    lines = told(HUNDRED, "recorded-spikes").splitlines()[2:]
    assert len(lines) == len(RECORD["means"])
    for line, mean in zip(lines, RECORD["means"], strict=True):
        assert less(mean["gain.energy.with_memory.float32"]) in line
        assert less(mean["gain.energy.compute.float32"]) in line


def test_what_cannot_be_compared_is_said_to_be() -> None:
    text = told(HUNDRED, "loihi")
    assert "Incomparable: 'standard int8' has no metric 'energy.loihi'" in text
    assert "as others cite it" in text
