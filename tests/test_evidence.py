"""The words about Trials say what `ratios` says, and nothing where there is nothing to say."""

from __future__ import annotations

import dataclasses

import pytest

from kpt_lab import evidence
from kpt_lab.core import Metric, Trial, Trials


def trial(
    technique: str, nanoseconds: int, *, process: int = 0, baseline: bool = False, blocks: int = 60, **more: object
) -> Trial:
    samples = tuple(nanoseconds + i % 3 for i in range(blocks))
    metrics = {
        "time": Metric(nanoseconds / 1e9, "s", "measured"),
        "bound": Metric(5e-5, "s", "modelled", source="a data sheet"),
        "error": Metric(1e-7, "1", "measured"),
    }
    fields = {"metrics": metrics, "samples": {"time": samples}, "chosen": {"cache": "cold", "error_limit": 2e-6}, **more}
    return Trial(
        "op.forward", technique, {"rows": 4}, baseline=baseline, target="here", cell="c", process=process,
        at="2026-11-22T10:00:00Z", env={"host": "h", "device_name": "A CPU", "torch": "2.13"}, **fields,
    )  # fmt: skip


def cell(ours: int, theirs: int, processes: int = 1) -> Trials:
    return Trials(
        t
        for p in range(processes)
        for t in (
            trial("eager", theirs, process=p, baseline=True),
            trial("ours", ours, process=p),
            trial("copy", 80_000, process=p),
        )
    )


def rows(markdown: str) -> list[list[str]]:
    lines = markdown.replace("\u00a0", " ").splitlines()[2:]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("ours", "verdict", "words"),
    [(100_000, "FASTER", "is faster than"), (400_000, "SLOWER", "is slower than"), (200_000, "SAME", "is as fast as")],
)
def test_answer_table_and_ledger_agree(ours: int, verdict: str, words: str) -> None:
    trials = cell(ours, 200_000)
    value = f"{200_000 / ours:.2f}x"
    answer = evidence.answer(trials, "ours")
    assert f"1 cell: 1 {verdict}; {value}.**" in answer
    assert "A CPU, wall time; torch 2.13; 2026-11-22." in answer
    baseline, mine = rows(evidence.table(trials))
    assert baseline[2:] == ["eager", "200.0 µs", "", "", "the baseline", "25%"]
    assert mine[2] == "ours"
    assert mine[4].startswith(value)
    assert mine[5:7] == ["eager", verdict]
    ((claim, proof, conditions, missing),) = rows(evidence.ledger(trials, "ours"))
    assert claim.startswith(f"ours {words} eager: {value}")
    assert proof == "measured, 1 process, exploratory, 60 blocks; largest error 1.0e-07, allowed 2.0e-06"
    assert conditions.startswith("op.forward, rows 4, float32, cold cache. A CPU")
    assert "restart" in missing


def test_a_lossy_technique_is_held_to_its_own_definition() -> None:
    trials = [dataclasses.replace(t, contract="lossy") if t.label == "ours" else t for t in cell(100_000, 200_000)]
    ((_, proof, *_),) = rows(evidence.ledger(trials, "ours"))
    assert proof.endswith("lossy: largest error 1.0e-07 against the oracle, held to its own definition within 2.0e-06")


def test_six_processes_make_a_headline() -> None:
    ((_, proof, _, missing),) = rows(evidence.ledger(cell(100_000, 200_000, processes=6), "ours"))
    assert "6 fresh processes, 360 blocks" in proof
    assert "restart" not in missing


def test_too_few_blocks_claim_nothing() -> None:
    trials = Trials((trial("eager", 200_000, baseline=True, blocks=4), trial("ours", 100_000, blocks=4)))
    ((claim, _, _, missing),) = rows(evidence.ledger(trials, "ours"))
    assert claim == "ours can't be told from eager: 2.00x, interval unbounded"
    assert "which of the two is faster" in missing


def test_what_did_not_run_says_why() -> None:
    failed = trial("ours", 1, status="unsupported", advice="needs a GPU", metrics={}, samples={})
    trials = Trials((trial("eager", 200_000, baseline=True), failed))
    assert rows(evidence.table(trials))[1][2:] == ["ours", "", "", "", "unsupported: needs a GPU", ""]
    with pytest.raises(ValueError, match="needs a GPU"):
        evidence.ledger(trials, "ours")


def test_what_has_no_ratio_keeps_its_time_and_the_reason() -> None:
    failed = trial("theirs", 1, status="failed", advice="too wide", metrics={}, samples={})
    trials = Trials((trial("eager", 200_000, baseline=True), trial("ours", 100_000), failed))
    ((*cells, label, time, ratio, over, why, share),) = rows(evidence.table(trials, "ours", over="theirs"))
    assert (cells, label, time, ratio, over, share) == (
        ["op.forward", "rows 4, float32, cold cache"],
        "ours",
        "100.0 µs",
        "",
        "",
        "50%",
    )
    assert "too wide" in why
    assert "ok" not in why


def test_a_cell_is_named_once() -> None:
    assert [row[:2] for row in rows(evidence.table(cell(100_000, 200_000)))] == [
        ["op.forward", "rows 4, float32, cold cache"],
        ["", ""],
    ]


def test_rows_are_chosen_by_label_and_verdict() -> None:
    trials = cell(100_000, 200_000)
    assert [row[2] for row in rows(evidence.table(trials, "eager"))] == ["eager"]
    assert evidence.table(trials, "copy") == "No cell."
    assert [row[2] for row in rows(evidence.table(trials, verdicts=("FASTER",)))] == ["ours"]
    assert evidence.table(trials, "ours", verdicts=("SLOWER",)) == "No cell."
    for name in ("theirs", "eager"):
        with pytest.raises(ValueError, match=name):
            evidence.answer(trials, name)


def test_a_headline_says_all_ratios_of_six_processes() -> None:
    trials = cell(100_000, 200_000, processes=6)
    sentence, _, *table = evidence.headline(trials, "ours", ("best baseline", "copy")).splitlines()
    assert (
        "op.forward, ours, 1 cell in 6 fresh processes: 2.00x over the best baseline (1 FASTER), 0.80x of the speed" in sentence
    )
    ((_, best, copied),) = rows("\n".join(table))
    assert best == "2.00x FASTER, eager"
    assert copied == "0.80x SLOWER"


@pytest.mark.parametrize(("processes", "over", "match"), [(5, "copy", "no cell in 6 fresh"), (6, "theirs", "theirs")])
def test_no_headline_where_there_is_none(processes: int, over: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        evidence.headline(cell(100_000, 200_000, processes), "ours", (over,))


@pytest.mark.parametrize("edited", [False, True])
def test_what_was_edited_since_is_marked_stale(edited: bool) -> None:
    from kpt_lab import baselines

    stamp = {"technique": "0" * 12, "technique_at": "kpt_lab.baselines:compiled", "workload": "", "workload_at": ""}
    mine = trial(baselines.compiled.label, 100_000, source=stamp if edited else {})
    trials = Trials((trial("eager", 200_000, baseline=True), mine))
    told = evidence.answer(trials, baselines.compiled.label)
    assert ("2.00x.** Code changed since in 1 of 1 cell (*stale*). " in told) is edited
    told = evidence.table(trials)
    assert ("FASTER, *stale* |" in told) is edited
    assert told.endswith(f"\n\n{evidence.STALE}.") is edited
    ((*_, missing),) = rows(evidence.ledger(trials, baselines.compiled.label))
    assert (evidence.STALE in missing) is edited
