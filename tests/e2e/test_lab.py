"""JupyterLab runs the notebooks as a reader does: opened in the browser, all cells run, every widget drawn, nothing fetched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIRST = ("index", "01_can_you_trust_a_speedup", "02_memory_bound_ops")
WIDGET = "application/vnd.jupyter.widget-view+json"
# what JupyterLab writes in an output whose widget it can't draw
UNDRAWN = ("Loading widget...", "Error displaying widget", "Failed to load model class", "Error creating widget")


def notebooks() -> list[str]:
    """The three notebooks of every run, or all of them with KPT_LAB_E2E_ALL=1; paths below notebooks/."""
    folder = ROOT / "notebooks"
    found = sorted(path for path in folder.glob("**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    everything = os.environ.get("KPT_LAB_E2E_ALL", "") not in ("", "0")
    return [str(path.relative_to(folder)) for path in found if everything or path.stem in FIRST]


def test_every_run_takes_three_notebooks() -> None:
    assert {Path(name).stem for name in notebooks()} >= set(FIRST)


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda name: Path(name).stem)
def test_notebook_runs_in_jupyterlab(notebook: str, lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch()
    page = lab.open(watched, notebook)
    cells = lab.run_all(page)
    assert cells
    errors = [(cell["id"], output["error"]) for cell in cells for output in cell["outputs"] if output["kind"] == "error"]
    assert errors == []
    # outputs were cleared first, so that the counts show this run: each cell once, in order
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        if any(WIDGET in output["types"] for output in cell["outputs"]):
            lab.show(page, cell["id"])
            outputs = page.locator(".jp-Cell:has(.jp-OutputArea-output)").locator(".jp-OutputArea-output")
            outputs.first.wait_for()
            page.wait_for_function(
                "words => ![...document.querySelectorAll('.jp-OutputArea-output')]"
                ".some(area => words.some(word => area.textContent.includes(word)))",
                arg=list(UNDRAWN),
            )
    assert watched.external == []
    assert [error for error in watched.errors if error.startswith("uncaught")] == []
