"""What the stored notebooks say: no number typed in prose, and recorded answers that follow from the records beside them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

import kpt_lab as kpt
from kpt_lab import pitfalls
from kpt_lab.ratios import speedups

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path for path in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
TRUST = ROOT / "notebooks/phase1/01_can_you_trust_a_speedup.ipynb"
MEMORY = ROOT / "notebooks/phase1/02_memory_bound_ops.ipynb"
# what may hold digits: code, links, names with digits, the parts' and exercises' numbers, and everything after "References"
ALLOWED = re.compile(
    r"`[^`]*`|\[[^]]*\]\([^)]*\)|\b(?:H100|float\d+|bfloat16|FP8|int8|e\dm\d\w*)\b|^#+ .*$|^\d+\. ", re.MULTILINE
)


def typed_numbers(source: str) -> list[str]:
    """The numbers in a Markdown cell's prose."""
    return re.findall(r"\S*\d\S*", ALLOWED.sub("", source.split("## References")[0]))


def outputs(notebook: NotebookNode, name: str) -> str:
    """The text that a stored cell shows, its Markdown first."""
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    texts = [o.get("text", "") or o.data.get("text/markdown") or o.data.get("text/plain", "") for o in cell.outputs]
    return "".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_number_is_typed_in_prose(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    found = {cell.id: typed_numbers(cell.source) for cell in notebook.cells if cell.cell_type == "markdown"}
    assert {name: numbers for name, numbers in found.items() if numbers} == {}


@pytest.mark.parametrize(
    ("prose", "numbers"),
    [
        ("It is 1.5x faster", ["1.5x"]),
        ("## Step 2\n1. Set `n = 3` on an H100\n[01 A map](phase1/01.ipynb)\n## References\nPLDI 2009", []),
        ("about 20% of 5 runs", ["20%", "5"]),
    ],
)
def test_typed_numbers_are_found(prose: str, numbers: list[str]) -> None:
    assert typed_numbers(prose) == numbers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbval_reads_its_markers(path: Path) -> None:
    """A marker with anything behind it is a plain comment to nbval, which then compares timings."""
    for cell in nbformat.read(path, as_version=4).cells:
        marked = [line for line in cell.source.splitlines() if "NBVAL_" in line]
        assert all(re.fullmatch(r"# NBVAL_(IGNORE_OUTPUT|CHECK_OUTPUT|RAISES_EXCEPTION|SKIP)", line) for line in marked), (
            cell.id
        )


def test_the_answer_about_restarts_follows_from_its_records() -> None:
    restarts = kpt.load(TRUST.parent / "results/restarts")
    processes = sorted({trial.process for trial in restarts})
    assert len(processes) >= 6
    told = outputs(nbformat.read(TRUST, as_version=4), "answer")
    for name in ("torch.compile", pitfalls.again.label):
        values = [
            kpt.speedup(restarts.where(process=k, label=name), restarts.where(process=k, label="eager")).value
            for k in processes
        ]
        assert f"from {min(values):.2f}x to {max(values):.2f}x" in told
    assert f"over {len(processes)} restarts" in told


@pytest.mark.parametrize(("cell", "column", "least"), [("cheats", 3, 3), ("try-shipped", 2, 6)])
def test_every_cheat_on_the_page_was_caught(cell: str, column: int, least: int) -> None:
    lines = outputs(nbformat.read(TRUST, as_version=4), cell).splitlines()[2:]
    assert len(lines) >= least
    assert all(line.split("|")[column].strip() in ("wrong", "rejected") for line in lines)


def test_the_simulated_count_is_what_the_library_gives() -> None:
    told = outputs(nbformat.read(TRUST, as_version=4), "chosen")
    found = [pitfalls.chosen_winner_is_faster(20, range(500), corrected=c, blocks=30) for c in (False, True)]
    assert f"called faster in {found[0]} of 500 experiments, corrected in {found[1]}" in told


def test_the_headline_follows_from_its_records() -> None:
    recorded = kpt.load(MEMORY.parent / "results").where(
        device="cuda", workload="softmax.forward", rows=16384, dtype="bfloat16"
    )
    told = outputs(nbformat.read(MEMORY, as_version=4), "answer").replace("\u00a0", " ")
    widths = sorted({trial.params["cols"] for trial in recorded})
    assert len(widths) >= 3
    for cols in widths:
        row = next(line for line in told.splitlines() if f"cols {cols}," in line)
        mine, compiled, copy = (
            recorded.where(cols=cols, label=name) for name in ("kpt triton", "torch.compile max-autotune", "copy")
        )
        assert len(mine) >= 6
        for part, over in zip(row.strip("|").split("|")[2:], (compiled, copy), strict=True):
            ratio = kpt.speedup(mine, over)
            assert part.strip().startswith(f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] {ratio.verdict}")


def test_losses_are_on_the_page() -> None:
    """Each cell in which our softmax is slower than a copy of the same bytes has its line."""
    recorded = kpt.load(MEMORY.parent / "results").where(device="cuda", label=["kpt triton", "copy"])
    slower = [s for s in speedups(recorded, over="copy") if s.ratio and s.ratio.verdict == "SLOWER"]
    lines = outputs(nbformat.read(MEMORY, as_version=4), "loses-copy").replace("\u00a0", " ").splitlines()[2:]
    assert len(lines) >= len(slower) >= 1
    for found in slower:
        assert any(
            f"cols {dict(found.cell.params)['cols']}," in line and f"{found.ratio.value:.2f}x [" in line for line in lines
        )


def test_what_is_not_recorded_says_how_to_record_it() -> None:
    told = outputs(nbformat.read(MEMORY, as_version=4), "answer")
    recorded = kpt.load(MEMORY.parent / "results").where(device="cuda", workload="gelu.forward")
    assert ("gelu.forward, kpt triton" in told) is bool(recorded)
    assert ("kpt-lab record kernels.gelu --out notebooks/phase1/results" in told) is (not recorded)
