"""The bits view in Chromium: sliders answer to keys, its words follow the library, and it fits a phone, light and dark."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kpt_lab.widgets import front

from .test_views_lab import chosen, opened, quiet
from .views import View

module = importlib.import_module("kpt_lab.widgets.bits")
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><title>Bits</title><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><style>body {{ margin: 8px }} {style}</style></head>
<body><main><h1>Bits</h1><div id="view"></div></main><script>{script}</script>
<script>window.kptLab.mount(document.getElementById("view"), "bits", {data}, {state})</script></body></html>"""


def page_of(folder: Path, state: dict[str, Any], theme: str = "light") -> str:
    """The address of a page, opened as a file, that shows the view as the site does."""
    full = {**module.START, **state}
    data, shown = json.dumps(module.constants(full)), json.dumps(full)
    text = PAGE.format(theme=theme, style=front.stylesheet(), script=front.script(), data=data, state=shown)
    path = folder / "bits.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def show(tmp_path: Path, watch: Callable[..., Any]) -> Callable[..., View]:
    """Opens the view: `show(power=..., width=390, theme="dark")`."""

    def shown(*, width: int = 900, theme: str = "light", **state: Any) -> View:
        page = watch(width=width, height=1100).page
        page.goto(page_of(tmp_path, state, theme))
        return View(page.locator(".kpt-bits"))

    return shown


def fact(view: View, name: str, column: int = 0) -> str:
    row = view.root.locator(".kpt-casts tr", has=view.page.get_by_role("rowheader", name=name, exact=True))
    return str(row.locator("td").nth(column).text_content())


def test_every_slider_moves_the_answer_by_keys(show: Callable[..., View]) -> None:
    view = show()
    labels = view.labels("range")
    assert len(labels) == len(module.START)
    for label in labels:
        before = view.root.locator(".kpt-formula").inner_text()
        view.step(label)
        assert view.root.locator(".kpt-formula").inner_text() != before


@pytest.mark.parametrize("state", [{}, {"bits": 16}, {"channels": 8, "resistance": 50.0, "loss": 6, "bits": 12}])
def test_the_table_says_what_the_library_computes(state: dict[str, Any], show: Callable[..., View]) -> None:
    view, wanted = show(**state), module.answer({**module.START, **state})
    photons = "detected photons a multiply"
    assert float(fact(view, "effective bits")) == pytest.approx(wanted["bits"], rel=0.005)
    assert float(fact(view, "effective bits", 1)) == {**module.START, **state}["bits"]
    assert float(fact(view, photons)) == pytest.approx(wanted["detected"], rel=0.05)
    assert float(fact(view, photons, 1)) == pytest.approx(wanted["needed"], rel=0.05)


def test_a_receivers_noise_adds_a_curve(show: Callable[..., View]) -> None:
    view = show()
    curves = view.root.locator(".kpt-bits-picture path")
    assert curves.count() == 1
    view.step("detector noise")
    assert curves.count() == 2
    assert "with a load of" in view.root.locator(".kpt-bit-legend").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_axe_finds_nothing_serious(width: int, theme: str, show: Callable[..., View]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    view = show(width=width, theme=theme, resistance=50.0, bits=16)
    assert view.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    serious = [v for v in Axe().run(view.page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_an_address_restores_the_view(tmp_path: Path, watch: Callable[..., Any]) -> None:
    page = watch().page
    page.goto(page_of(tmp_path, {}) + "#view=view&power=0.1&channels=16&resistance=50&bits=12")
    view = View(page.locator(".kpt-bits"))
    state = {**module.START, "power": 0.1, "channels": 16, "resistance": 50.0, "bits": 12}
    assert float(fact(view, "effective bits")) == pytest.approx(module.answer(state)["bits"], rel=0.005)


def test_in_jupyterlab_the_kernel_follows(lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1600)
    view = opened("bits", lab, watched, "widgets.bits()")
    view.step("bits asked for")
    assert chosen(lab, view)["bits"] == 9
    quiet(watched)
