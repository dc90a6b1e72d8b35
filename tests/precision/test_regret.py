"""Grades of the policy on runs that are made up: decided on the first, graded on the last."""

from dataclasses import replace

import pytest

from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.precision import layer, regret
from kpt_lab.precision.linear import BFLOAT16, TENSORWISE

FULL, HALF = layer.at(TENSORWISE).label, layer.at(layer.mixtures[0]).label


def run(cell: str, at: str, times: dict[str, float], tokens: int = 512) -> list[Trial]:
    """One run of a cell: each technique's blocks scatter by a thousandth around its time in microseconds."""
    known = {t.label: t for t in layer.techniques}
    made = []
    for label, time in times.items():
        technique = known[label]
        samples = tuple(int(1000 * time * (1 + (k % 5 - 2) / 1000)) for k in range(60))
        made.append(
            Trial(
                layer.step.name, technique.name, {"tokens": tokens, "in_features": 64, "out_features": 64}, technique.knobs,
                technique.contract, technique.baseline, "", target="", device="cuda", dtype="bfloat16", at=at, cell=cell,
                seed=regret.SEED if cell == "b" else 0, metrics={"time": Metric(time / 1e6, "s", "measured")}, samples={"time": samples}, status="ok",
            )
        )  # fmt: skip
    return made


def test_a_choice_is_made_on_the_first_run_and_graded_on_the_last():
    first = run("a", "2026-01-01T00:00:00", {"eager": 100, "torch.compile": 100, FULL: 80, HALF: 90})
    last = run("b", "2026-01-01T00:01:00", {"eager": 100, "torch.compile": 100, FULL: 90, HALF: 75})
    (grade,) = regret.graded(Trials(last + first))
    assert grade.chosen == TENSORWISE
    assert grade.best == layer.mixtures[0]
    assert grade.ratio.value == pytest.approx(100 / 90, rel=1e-3)
    assert grade.share == pytest.approx(75 / 90, rel=2e-3)
    found = regret.summary([grade])
    assert found["slower_than_limit"] == []
    assert found["below_share"] == [str(grade)]


def test_a_choice_that_made_it_slower_is_named_after_holm():
    first = run("a", "2026-01-01T00:00:00", {"eager": 100, "torch.compile": 100, FULL: 80})
    last = run("b", "2026-01-01T00:01:00", {"eager": 100, "torch.compile": 100, FULL: 110})
    (grade,) = regret.graded(first + last)
    assert grade.pvalue < 1e-6
    assert regret.summary([grade])["slower_than_limit"] == [str(grade)]


def test_without_a_gain_the_layer_stays_as_it_is():
    times = {"eager": 101, "torch.compile": 100, FULL: 99.5}
    first, last = run("a", "2026-01-01T00:00:00", times), run("b", "2026-01-01T00:01:00", times)
    (grade,) = regret.graded(first + last)
    assert grade.chosen == BFLOAT16
    assert grade.ratio.value == pytest.approx(1, abs=0.01)
    assert regret.summary([grade])["winning_cells"] == 0


def test_one_run_decides_nothing_about_itself():
    only = run("a", "2026-01-01T00:00:00", {"eager": 100, "torch.compile": 100, FULL: 80})
    with pytest.raises(ValueError, match=r"no cell of 'linear\.step' with one run to decide on and one of seed 1 to grade"):
        regret.graded(only)
    with pytest.raises(ValueError, match="no cell"):
        regret.graded([replace(t, workload="other") for t in only])
