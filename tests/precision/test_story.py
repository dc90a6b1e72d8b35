"""The recorded training in words: every figure comes from the record, and what is missing says how to record it."""

from __future__ import annotations

import json

import pytest

from kpt_lab.precision import story

RUNS = [
    {"seed": seed, "kind": kind, "validation": value, "training": value, "bad": {}, "steps": 40}
    for seed, pair in ((3, (2.0, 2.01)), (4, (2.5, 2.45)))
    for kind, value in zip(("bfloat16", "fp8"), pair, strict=True)
]
PLANTED = [
    {"place": "weight", "kind": "nan", "found": True, "outcome": "skipped", "safe": True},
    {"place": "weight", "kind": "nan", "found": False, "outcome": "applied", "safe": False},
    {"place": "gradient", "kind": "1e5", "found": True, "outcome": "repaired", "safe": True},
]
RECORD = {
    "environment": {"device_name": "A GPU", "torch": "2.11.0"},
    "training": {
        "runs": RUNS, "gaps": [0.005, -0.02], "gap": -0.0089, "chance": [0.004, -0.003], "limit": 0.005, "met": True, "layers": "30 of 31 linear layers in FP8",
        "settings": {"layers": 6, "width": 512, "steps": 400}, "validation": {"bfloat16": 2.25, "fp8": 2.23},
    },
    "faults": {"planted": PLANTED, "false": {"skipped, spike": 2}, "clean_steps": 1000, "wrong": [PLANTED[1]], "met": False},
    "resume": {"met": True},
    "policy": {"decisions": "a table", "layers_in_fp8": 3, "measured": [1.125, 1.11, 1.14], "predicted": 1.25},
}  # fmt: skip
TOLD = (story.answer, story.losses, story.faults, story.chosen, story.ledger)


@pytest.mark.parametrize("tell", TOLD)
def test_what_is_missing_says_how_to_record_it(tell, tmp_path):
    assert "not recorded yet" in tell(story.recorded(tmp_path / "none.json"))
    assert "benchmarks/fp8_language_model.py" in tell({})


def test_figures_are_those_of_the_record(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(RECORD))
    answer, losses, faults, chosen, ledger = (tell(story.recorded(tmp_path / "r.json")) for tell in TOLD)
    assert "Over 2 seeds" in answer
    assert "-0.89%" in answer
    assert "within the limit of 0.5%" in answer
    assert "| 4 | 2.5000 | 2.4500 | -2.00% |" in losses
    assert "differ by +0.40%, -0.30%" in losses
    assert "2 of 1000 clean steps" in faults
    assert "| weight | nan | 1 of 2 | applied, skipped | yes |" in faults
    assert "| gradient | 1e5 | 1 of 1 | repaired | no |" in faults
    assert "1.25x predicted from the layers, 1.12x [1.11, 1.14] measured" in chosen
    assert "3 planted, 1 judged wrongly, 2 false alarms" in ledger
    assert ledger.count("\n") == 4


def test_a_model_without_gain_says_so():
    record = {"policy": {"decisions": "a table", "layers_in_fp8": 0}}
    assert "No layer gained" in story.chosen(record)


def test_curves_are_drawn_as_they_are():
    pytest.importorskip("plotly")
    figure = story.curves({"a": [3.0, 2.0], "b": [3.0]})
    assert [(line.name, list(line.y)) for line in figure.data] == [("a", [3.0, 2.0]), ("b", [3.0])]
