"""The views in JupyterLab: every control changes the figure, by mouse and by keyboard, and the kernel knows what was chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from .views import View

NAMES = ("explorer", "breakeven", "roofline", "reveal")


def written(path: Path, *sources: str) -> str:
    """A notebook of these cells at `path`; returns its name."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    nbformat.write(notebook, path)
    return path.name


def opened(name: str, lab: Any, page: Any, made: str = "") -> View:
    """The named view over the recorded Trials, or what `made` makes, shown in a new notebook."""
    made = made or f'widgets.{name}("phase1/results")'
    show = f"from kpt_lab import widgets\nview = {made}\nview"
    lab.open(page, written(lab.folder / f"{name}.ipynb", show))
    cells = lab.run_all(page.page)
    assert [output["error"] for cell in cells for output in cell["outputs"] if output["error"]] == []
    return View(page.page.locator(f".jp-OutputArea-output .kpt-root.kpt-{name}").first)


def chosen(lab: Any, view: View) -> dict[str, Any]:
    """What the kernel's side of the view holds as chosen."""
    return json.loads(lab.ask(view.page, "import json; print(json.dumps(view.state))"))


def quiet(watched: Any) -> None:
    """No request left this machine and no exception was uncaught."""
    assert watched.external == []
    assert [error for error in watched.errors if error.startswith("uncaught")] == []


@pytest.mark.parametrize("name", NAMES)
def test_selection_changes_the_figure_and_the_kernel_follows(name: str, lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1400)
    view = opened(name, lab, watched)
    state = chosen(lab, view)
    assert view.use_selects()
    assert chosen(lab, view) != state
    quiet(watched)


def test_arrow_keys_on_a_slider_change_the_figure(lab: Any, watch: Callable[..., Any]) -> None:
    """JupyterLab swallows the arrow keys of a bare slider in its outputs; ours must get them."""
    watched = watch(height=1400)
    view = opened("explorer", lab, watched)
    (slider, *_) = view.labels("range")
    state, first = chosen(lab, view), view.step(slider)
    assert view.step(slider) != first
    assert chosen(lab, view) != state
    quiet(watched)


@pytest.mark.parametrize("name", ["breakeven", "roofline"])
def test_keys_change_the_figure(name: str, lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1400)
    view = opened(name, lab, watched)
    assert view.use_keys()
    quiet(watched)


def test_a_guess_is_revealed_by_keyboard(lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1400)
    opened("reveal", lab, watched).reveal()
    quiet(watched)


def test_the_kernel_changes_the_view(lab: Any, watch: Callable[..., Any]) -> None:
    view = opened("explorer", lab, watch(height=1400))
    before, figure = chosen(lab, view), view.drawn()
    assert view.use_selects(1)
    other = view.drawn()
    lab.ask(view.page, f"view.state = json.loads({json.dumps(json.dumps(before))})")
    view.changes(other)
    assert view.drawn() == figure
