"""The tables of whole models, against what the record's file itself holds."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kpt_lab import evidence
from kpt_lab.core import Metric, Trials, Unsupported
from kpt_lab.kernels import flashlight_models as models

FOLDER = Path(__file__).parents[2] / "notebooks/phase1/results/attention"


@pytest.fixture(scope="module")
def trials() -> Trials:
    found = models.recorded(FOLDER)
    assert found
    return found


def lines() -> list[dict[str, Any]]:
    files = FOLDER.glob("transformers.*.jsonl")
    return [row for file in files for row in map(json.loads, file.read_text().splitlines()) if row["kind"] == "trial"]


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_nothing_recorded_is_no_trials(tmp_path: Path) -> None:
    assert len(models.recorded(tmp_path)) == 0


@pytest.mark.parametrize("metric", ["wall_time", "time"])
def test_the_speedup_is_of_the_recorded_samples(trials: Trials, metric: str) -> None:
    """The speedup that the table shows lies among those of the blocks, in each of which all were timed."""
    shown = {(row[0], row[1]): row for row in rows(models.table(trials, metric))}
    for name in {(line["workload"], line["params"]["mode"]) for line in lines()}:
        took = {
            line.get("knobs", {}).get("name", line["technique"]): line["samples"][metric]
            for line in lines()
            if (line["workload"], line["params"]["mode"]) == name and line["status"] == "ok"
        }
        mine = took.pop("flashlight")
        best = min(took, key=lambda label: statistics.median(took[label]))
        row = shown[name[0].removeprefix("transformers."), models.MODES[name[1]]]
        assert row[-3] == best
        blocks = [theirs / ours for theirs, ours in zip(took[best], mine, strict=True)]
        assert min(blocks) - 0.005 <= float(row[-2].split("x")[0]) <= max(blocks) + 0.005


def test_a_slower_one_is_called_slower(trials: Trials) -> None:
    """All times of flashlight threefold: it loses wherever there is an interval."""

    def slowed(trial: Any) -> Any:
        if trial.label != models.FLASHLIGHT:
            return trial
        samples = {name: [3 * x for x in taken] for name, taken in trial.samples.items()}
        metrics = {name: replace(m, value=3 * m.value) if "time" in name else m for name, m in trial.metrics.items()}
        return replace(trial, samples=samples, metrics=metrics)

    verdicts = {row[-1].split(",")[0] for row in rows(models.table(Trials(map(slowed, trials))))}
    assert "SLOWER" in verdicts
    assert not verdicts & {"FASTER", "SAME"}


def test_what_did_not_run_leaves_its_place_empty(trials: Trials) -> None:
    without = Trials(replace(t, status="failed") if t.label == models.FLASHLIGHT else t for t in trials)
    for row in rows(models.table(without)):
        assert row[-4:] == ["", "", "", ""]
    assert rows(models.memory(without)) == []


@pytest.mark.parametrize(("status", "mark"), [("stale", ", *stale*"), ("", "")])
def test_rows_of_older_code_are_marked(trials: Trials, monkeypatch: pytest.MonkeyPatch, status: str, mark: str) -> None:
    monkeypatch.setattr(evidence, "status_of", lambda trial: status)
    assert {row[-1].endswith("*stale*") for row in rows(models.table(trials))} == {bool(mark)}


def test_memory_is_the_peak(trials: Trials) -> None:
    one = Trials(
        replace(t, metrics={"memory.peak": Metric(8e9 if t.label == "eager" else 2e9, "B", "measured")})
        for t in trials.where(workload="transformers.llama", mode="forward")
        if t.label in ("eager", "flashlight")
    )
    assert rows(models.memory(one)) == [["llama", "forward", "8 GB", "2 GB", "25%"]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    path = Path(__file__).parents[2] / "benchmarks/flashlight_transformers.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("flashlight_transformers", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "flashlight_transformers", module)
    spec.loader.exec_module(module)
    return module


def test_every_part_of_a_model_gets_the_attention_that_is_asked_for(script: Any) -> None:
    model, args = script.CASES["t5"].made("cpu")
    assert script._implementation(model, args, name="sdpa") is model
    found = {part.config._attn_implementation for part in model.model.modules() if hasattr(part, "config")}
    assert found == {"sdpa"}


def test_an_attention_that_a_model_or_a_part_of_it_does_not_have_is_refused(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, args = script.CASES["gemma2"].made("cpu")
    with pytest.raises(Unsupported, match="Gemma2Model bends its scores"):
        script._implementation(model, args, name="sdpa")
    model, args = script.CASES["t5"].made("cpu")
    monkeypatch.setattr(type(model.model.encoder), "set_attn_implementation", lambda self, name: None)
    monkeypatch.setattr(type(model.model), "set_attn_implementation", lambda self, name: None)
    with pytest.raises(Unsupported, match=r"parts of T5Model keep their attention 'eager' when 'sdpa' is set"):
        script._implementation(model, args, name="sdpa")
