"""The counts behind the attention notebooks: against this machine's allocator, by hand, and against what a real ring sends."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from kpt_lab import memory
from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.hardware import targets
from kpt_lab.kernels import attention, attention_story, ring, ring_story

ROOT = Path(__file__).parents[2]
SIZES = {"batch": 2, "heads": 4, "groups": 1, "length": 33, "width": 16}


def told(name: str, cell: str) -> str:
    """The text that a stored cell shows."""
    book = nbformat.read(ROOT / f"notebooks/phase1/{name}.ipynb", as_version=4)
    (found,) = [each for each in book.cells if each.id == cell]
    return "".join(o.get("text", "") or o.data.get("text/markdown", "") for o in found.outputs)


@pytest.mark.parametrize("groups", [1, 2])
def test_counted_memory_is_the_allocators(groups: int) -> None:
    sizes = {**SIZES, "groups": groups}
    problem = attention.forward.make(device="cpu", dtype="float32", seed=0, **sizes)
    seen = memory.peak_memory(lambda: problem.fn(*problem.inputs[0]), "cpu")
    assert attention_story.peak(attention_story.operations(attention.forward, dtype="float32", **sizes)) == seen


def test_scores_are_twelve_bytes_each_at_the_peak_of_a_long_sequence() -> None:
    """Masked twice in bfloat16, upcast and softmax in float32: 2 + 2 + 4 + 4."""
    scores = 16 * 8192**2
    counted = attention_story.operations(attention.forward, heads=16, length=8192, width=128)
    assert attention_story.peak(counted) == pytest.approx(12 * scores, rel=0.02)
    assert attention_story.moved(counted) == pytest.approx(32 * scores, rel=0.05)


def test_the_plain_bound_lies_above_the_fused_and_the_longest_fits() -> None:
    sizes = {"heads": 16, "width": 128}
    for workload in (attention.forward, attention.backward):
        counted = attention_story.operations(workload, length=4096, **sizes)
        cost = workload.cost(dtype="bfloat16", batch=1, length=4096, **sizes)
        plain = attention_story.bound(workload, targets.h100_sxm, counted, batch=1, length=4096, **sizes)
        assert plain > 10 * targets.h100_sxm.bound(cost).value
        longest = attention_story.longest(workload, **sizes)
        assert attention_story.peak(attention_story.operations(workload, length=longest, **sizes)) < 80e9
        assert attention_story.peak(attention_story.operations(workload, length=2 * longest, **sizes)) > 80e9


def test_quoted_rates_come_back_and_form_no_ratio() -> None:
    quoted = attention_story.quoted()
    rates = {
        (one.label, one.params["length"], one.params["width"]): (low, rate, high)
        for one, rate, low, high in attention_story.rates(quoted)
    }
    assert rates["fa3", 4096, 128] == pytest.approx((680, 680, 680))
    low, rate, high = rates["sdpa cudnn", 16384, 128]
    assert (low, high) == pytest.approx((511, 576))
    assert low < rate < high
    assert {t.metrics["time"].provenance for t in quoted} == {"quoted"}
    assert "493 to 531" in attention_story.rate_table(quoted)


def test_a_table_without_trials_says_how_to_record_them() -> None:
    assert attention_story.winners(Trials()) == f"None of these is recorded yet; {attention_story.PARTS} records them, by part."


def test_peaks_of_different_batches_stand_apart() -> None:
    found = Trials(
        Trial(
            "attention.forward", name, {"length": 1024, "batch": batch, "heads": 16}, device="cuda", dtype="bfloat16",
            metrics={"memory.peak": Metric(2.0**20 * batch, "B", "measured")},
        )
        for name, batch in (("eager", 4), ("fused", 4), ("fused", 16))
    )  # fmt: skip
    head, _, eager, fused = attention_story.peaks(found).splitlines()
    assert "1024 tokens, batch 4, heads 16 | 1024 tokens, batch 16, heads 16" in head
    assert [cell.strip() for cell in eager.split("|")[1:-1]] == ["eager", "4.19 MB", ""]
    assert [cell.strip() for cell in fused.split("|")[1:-1]] == ["fused", "4.19 MB", "16.8 MB"]


def test_a_figure_without_times_is_refused() -> None:
    with pytest.raises(ValueError, match="trials hold no time"):
        attention_story.ladder(Trials(), targets.h100_sxm)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("layout", ring.LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_plan_covers_every_needed_chunk_once(count: int, layout: str, causal: bool) -> None:
    blocks = ring_story.plan(layout, causal, count)
    wanted = {(i, j) for i in range(2 * count) for j in range(2 * count) if j <= i or not causal}
    assert len(blocks) == len(wanted)
    assert {(block.queries, block.keys) for block in blocks} == wanted
    length = 8 * count
    chunk = length // (2 * count)
    exact = sum(map(sum, ring_story.pairs(layout, causal, count, length)))
    diagonal = 2 * count * chunk / 2 if causal else 0  # a triangle of n tokens has n / 2 pairs more than half a square
    assert exact == sum(block.share for block in blocks) * chunk**2 + diagonal


def test_only_causal_contiguous_chunks_leave_ranks_idle() -> None:
    idle = {(s, c): ring_story.idle(s, c, 4, 1024) for s in ring.LAYOUTS for c in (False, True)}
    assert idle.pop(("contiguous", True)) > 0.4
    assert set(idle.values()) == {0.0}


def test_transfer_and_arithmetic_meet_at_the_break_even() -> None:
    h100 = targets.h100_sxm
    for heads, groups, causal in ((32, 32, False), (32, 8, True)):
        local = ring_story.hidden_from(h100, heads=heads, groups=groups, causal=causal)
        compute, transfer = ring_story.step_times(h100, local=local, heads=heads, groups=groups, width=64, causal=causal)
        assert compute == pytest.approx(transfer)


def test_the_stored_pages_say_what_the_counts_say() -> None:
    hidden = ring_story.hidden_from(targets.h100_sxm, heads=32, groups=8, causal=True)
    assert f"transfers hide from {hidden:.0f} tokens a rank on" in told("07_ring_attention", "answer")
    assert "below 1e-12" in told("07_ring_attention", "right")
    assert told("04_attention_ladder", "right") == "right in 8 shapes\n"
    if not attention_story.recorded(ROOT / "notebooks/phase1/results/attention"):
        assert "Not recorded on a GPU yet" in told("04_attention_ladder", "answer")
        assert attention_story.rate_table(attention_story.quoted()) == told("04_attention_ladder", "recorded-table")
