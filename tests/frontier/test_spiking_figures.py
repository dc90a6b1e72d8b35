"""The figures of a record hold its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kpt_lab.frontier.spiking import figures

RECORD = json.loads((Path(__file__).parents[2] / "benchmarks/recorded/spiking_digits.cpu.json").read_text(encoding="utf-8"))


def test_losses_and_spikes_are_drawn_with_the_seeds_ends() -> None:
    drawn = figures.lost_and_sent(RECORD).data
    assert [trace.name for trace in drawn] == ["exact", "exact", "temporal_coding", "temporal_coding"]
    means = [m for m in RECORD["means"] if m["strategy"] == "temporal_coding"]
    lost, sent = drawn[2:]
    assert list(lost.x) == [m["timesteps"] for m in means] == [8, 16, 32]
    assert list(lost.y) == pytest.approx([m["lost_points"] for m in means], rel=1e-5)
    assert list(sent.y) == pytest.approx([m["spikes_per_neuron"] for m in means], rel=1e-5)
    highest = [y + up for y, up in zip(lost.y, lost.error_y.array, strict=True)]
    assert highest == pytest.approx([m["worst_lost_points"] for m in means], rel=1e-4)
    runs = [r["lost_points"] for r in RECORD["runs"] if (r["strategy"], r["timesteps"]) == ("temporal_coding", 32)]
    assert lost.y[2] - lost.error_y.arrayminus[2] == pytest.approx(min(runs), rel=1e-4)


def test_gains_are_drawn_in_both_numbers_by_both_boundaries() -> None:
    figure = figures.gains(RECORD)
    assert len(figure.data) == 2 * 4
    moved = [trace for trace in figure.data if trace.name == "int8, with data movement"]
    means = [m["gain.energy.with_memory.int8"] for m in RECORD["means"]]
    assert [y for trace in moved for y in trace.y] == pytest.approx(means, rel=1e-5)
    assert {shape.y0 for shape in figure.layout.shapes} == {1, 100}
