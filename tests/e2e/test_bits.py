"""The bits view in Chromium: sliders answer to keys, its words follow the library, and it fits a phone, light and dark."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .test_views_lab import chosen, opened, quiet
from .views import View, fact, fits, page_of

module = importlib.import_module("kpt_lab.widgets.bits")


def address(folder: Path, state: dict[str, Any], theme: str = "light") -> str:
    full = {**module.START, **state}
    return page_of(folder, "bits", module.constants(full), full, theme)


@pytest.fixture
def show(tmp_path: Path, watch: Callable[..., Any]) -> Callable[..., View]:
    """Opens the view: `show(power=..., width=390, theme="dark")`."""

    def shown(*, width: int = 900, theme: str = "light", **state: Any) -> View:
        page = watch(width=width, height=1100).page
        page.goto(address(tmp_path, state, theme))
        return View(page.locator(".kpt-bits"))

    return shown


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
    view = show(width=width, theme=theme, resistance=50.0, bits=16)
    fits(view)


def test_an_address_restores_the_view(tmp_path: Path, watch: Callable[..., Any]) -> None:
    page = watch().page
    page.goto(address(tmp_path, {}) + "#view=view&power=0.1&channels=16&resistance=50&bits=12")
    view = View(page.locator(".kpt-bits"))
    state = {**module.START, "power": 0.1, "channels": 16, "resistance": 50.0, "bits": 12}
    assert float(fact(view, "effective bits")) == pytest.approx(module.answer(state)["bits"], rel=0.005)


def test_in_jupyterlab_the_kernel_follows(lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1600)
    view = opened("bits", lab, watched, "widgets.bits()")
    view.step("bits asked for")
    assert chosen(lab, view)["bits"] == 9
    quiet(watched)
