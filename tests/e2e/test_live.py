"""A live sweep in JupyterLab: started, watched, cancelled and resumed by its buttons, while the page and the kernel answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import torch

from kpt_lab.core import Trials
from kpt_lab.environment import environment
from kpt_lab.ratios import COPY
from kpt_lab.records import load

from .jupyter import Lab
from .views import View

# a technique that a fresh process can import, as a reader's own would be
QUICK = """from kpt_lab.core import Technique


def same(fn, args):
    return fn


plain = Technique("plain", same)
"""
ROWS = tuple(range(64, 832, 64))
SWEEP = f"""import ipywidgets
from kpt_lab import baselines, widgets
from kpt_lab.kernels import softmax
from quick import plain

slider, echo = ipywidgets.IntSlider(description="stop"), ipywidgets.Label("kernel saw 0")
slider.observe(lambda change: setattr(echo, "value", f"kernel saw {{change['new']}}"), "value")
sweep = widgets.live(softmax.forward, [baselines.eager, plain], {{"rows": {list(ROWS)}, "cols": [256]}},
                     device="cpu", budget=0.4, path="live.jsonl")
ipywidgets.VBox([slider, echo, sweep])"""


def held(path: Path) -> Trials:
    """The Trials in a file that may not be there yet, without the yardstick."""
    return Trials(trial for trial in load(path) if trial.label != COPY) if path.is_file() else Trials()


def press(page: Any, name: str) -> None:
    page.locator(".jp-OutputArea-output button", has_text=name).click()


def moved(page: Any, to: int) -> None:
    """Step the slider by its key, and wait until the kernel has answered."""
    page.locator(".widget-slider .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".jp-OutputArea-output").get_by_text(f"kernel saw {to}", exact=True).wait_for()


def says(page: Any, words: str) -> None:
    """Wait until the widget says this, as a regular expression."""
    script = "words => [...document.querySelectorAll('.jp-OutputArea-output')].some(each => each.innerText.match(words))"
    page.wait_for_function(script, arg=words)


def at_cell(page: Any, number: int) -> None:
    """Wait until the widget says that it measures this cell or a later one."""
    script = """number => [...document.querySelectorAll('.jp-OutputArea-output')]
      .some(each => Number(each.innerText.match(/cell (\\d+) of/)?.[1] ?? 0) >= number)"""
    page.wait_for_function(script, arg=number)


def opened(lab: Lab, watched: Any) -> Any:
    """The sweep's notebook, its only cell run; returns the page."""
    (lab.folder / "quick.py").write_text(QUICK)
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell(SWEEP, id="sweep")]
    nbformat.write(notebook, lab.folder / "live.ipynb")
    page = lab.open(watched, "live.ipynb")
    (cell,) = lab.run_all(page)
    assert [output["error"] for output in cell["outputs"] if output["error"]] == []
    return page


def test_live_sweep_starts_answers_is_cancelled_and_resumed(lab: Lab, watch: Callable[..., Any]) -> None:
    begun = datetime.now(UTC).replace(microsecond=0)
    path, watched = lab.folder / "live.jsonl", watch(height=1600)
    page = opened(lab, watched)

    press(page, "Start")
    at_cell(page, 2)
    early = len(held(path))
    assert early > 0
    moved(page, 1)
    at_cell(page, 4)
    view = View(page.locator(".jp-OutputArea-output .kpt-root.kpt-explorer"))
    figure = view.drawn()
    moved(page, 2)
    assert lab.ask(page, "print(sweep.running)") == "True"
    assert len(held(path)) > early

    press(page, "Cancel")
    says(page, f"cancelled: [0-9]+ of {len(ROWS)} cells")
    assert lab.ask(page, "print(sweep.running)") == "False"
    cancelled = held(path)
    assert early < len(cancelled) < 2 * len(ROWS)

    press(page, "Resume")
    says(page, f"done: {len(ROWS)} of {len(ROWS)} cells")
    view.changes(figure)
    trials = held(path)
    assert trials[: len(cancelled)] == cancelled, "what was measured before Cancel is measured again"
    assert sorted((t.technique, t.params["rows"]) for t in trials) == [(t, n) for t in ("eager", "plain") for n in ROWS]
    here = environment("cpu")
    for trial in trials:
        assert trial.status == "ok", trial.advice
        assert datetime.fromisoformat(trial.at) >= begun
        assert (trial.env["torch"], trial.host) == (torch.__version__, here["host"])
    assert watched.external == []
    assert [error for error in watched.errors if error.startswith("uncaught")] == []
