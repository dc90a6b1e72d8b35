"""What the stored photonic notebooks show: refusals in the library's own words, and figures that follow from records and formulas."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import nbformat
import pytest

from kpt_lab.frontier import photonic as ph

ROOT = Path(__file__).parents[2]
CLAIM, MESH, BITS = (
    nbformat.read(ROOT / f"notebooks/phase3/{name}.ipynb", as_version=4)
    for name in ("01_what_may_a_simulation_claim", "06_a_matrix_of_light", "07_how_many_bits")
)
RECORDED = json.loads((ROOT / "benchmarks/recorded/photonic_fidelity.json").read_text())
WAYS_OUT = (
    "compare modelled energy, or quality",
    "compare a metric that both have",
    "measure both",
    "compare Trials of one workload",
)


def told(notebook: nbformat.NotebookNode, name: str) -> str:
    """The text that a stored cell shows."""
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    return "".join(o.get("text", "") or o.data.get("text/markdown") or o.data.get("text/plain", "") for o in cell.outputs)


def rows(notebook: nbformat.NotebookNode, name: str) -> list[list[str]]:
    """The cells of the table that a stored cell shows, its head left out."""
    lines = [line for line in told(notebook, name).splitlines() if line.startswith("|")][2:]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def figure(notebook: nbformat.NotebookNode, name: str) -> dict:
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    (found,) = [o.data["application/vnd.plotly.v1+json"] for o in cell.outputs]
    return found


@pytest.mark.parametrize(("name", "least"), [("try-light", 4), ("try-quantum", 4), ("try-power", 2), ("six", 6)])
def test_every_attempt_on_the_page_is_refused_with_a_way_out(name: str, least: int) -> None:
    found = rows(CLAIM, name)
    assert len(found) >= least
    for _, what, sentence in found:
        assert what == "refused"
        assert any(way in sentence for way in WAYS_OUT), sentence


def test_the_three_headlines_are_named_as_refused() -> None:
    assert "3 of 3 headlines are refused: *photonic 10x, quantum speedup, 100x power*" in told(CLAIM, "answer")


def test_what_is_allowed_is_modelled_and_has_no_verdict() -> None:
    for name in ("try-power-allowed", "recorded"):
        for _, *cells in rows(CLAIM, name):
            assert all("modelled" in cell and "UNCLEAR" in cell for cell in cells)
    assert all("FASTER" not in json.dumps(cell.get("outputs", [])) for cell in CLAIM.cells)


def test_the_recorded_fidelities_are_drawn_beside_their_closed_forms() -> None:
    traces = figure(MESH, "recorded")["data"]
    points = [trace for trace in traces if trace["mode"] == "markers"]
    for trace, kind in zip(points, ("splitter", "phase"), strict=True):
        wanted = [row for row in RECORDED["rows"] if row["error"] == kind]
        assert trace["x"] == [row["std"] for row in wanted]
        assert trace["y"] == pytest.approx([row["mean"] for row in wanted], rel=1e-5)
    modest = next(row for row in RECORDED["rows"] if (row["error"], row["std"]) == ("splitter", 0.02))
    assert f"{RECORDED['modes']} modes keep a fidelity of {modest['mean']:.2f}" in told(MESH, "answer")


def test_live_fidelities_lie_beside_theirs() -> None:
    found = rows(MESH, "try-errors")
    assert len(found) == 6
    assert all(abs(float(mean) - float(closed)) < 0.02 for _, _, mean, _, closed in found)


def test_the_warning_on_the_page_is_the_librarys() -> None:
    with pytest.warns(ph.PrecisionWarning) as heard:
        ph.PhotonicAccelerator(wavelength_channels=64, precision_bits=16, thermal_stabilization=True)
    assert f"PrecisionWarning: {heard[0].message}" in told(BITS, "smallest")


def test_the_bits_on_the_page_are_the_closed_form() -> None:
    for photons, simulated, closed in rows(BITS, "right"):
        assert float(closed) == pytest.approx(ph.shot_bits(float(photons)), abs=0.01)
        assert float(simulated) == pytest.approx(float(closed), abs=0.05)
    assert f"16 bits need {ph.photons_for(16):.2g} detected photons a multiply" in told(BITS, "answer")
    assert f"Ten times the light buys {10 / 6.02:.2f} bits" in told(BITS, "answer")
    electrons = ph.Johnson(50.0, 300.0).electrons(1e-9)
    for photons, _, warm, closed in rows(BITS, "try-johnson"):
        assert float(closed) == pytest.approx(max(ph.received_bits(float(photons), electrons, 64), 0), abs=0.01)
        assert float(warm) == pytest.approx(float(closed), abs=0.06)


def test_every_constant_of_the_energy_on_the_page_is_cited() -> None:
    report = told(BITS, "recorded")
    for name in ("light", "laser losses", "modulators", "DACs", "ADCs", "heaters", "memory"):
        (line,) = re.findall(rf"^  {name} +[\d.e+-]+ pJ/multiply  (.+)$", report, re.MULTILINE)
        assert len(line) > 20
    assert "every energy below is modelled, none is measured" in report
    assert "optical share of energy.compute" in report


def test_control_holds_the_phase_on_the_page() -> None:
    errors = {name: float(error) for name, error, _ in rows(BITS, "try-drift-bits")}
    assert errors["PI controller"] < errors["proportional only"] < errors["left alone"]
    assert errors["left alone"] == pytest.approx(ph.drift(ph.Ambient(1.0)).phase_rms, rel=0.05)
    (alone, held) = (float(bits) for *_, bits in rows(BITS, "try-drift-machine"))
    assert held > 9 > alone


def test_losses_are_on_the_page() -> None:
    """Where light has fewer bits, and where it needs more energy, its rows are there."""
    assert all(float(found) < float(best) for _, best, _, found, _ in rows(BITS, "try-machine"))
    ratios = [float(cell.split()[0]) for _, *cells in rows(CLAIM, "recorded") for cell in cells]
    assert min(ratios) > 1
    assert not math.isnan(sum(ratios))
