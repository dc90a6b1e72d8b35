"""The circuit view in Chromium: it simulates as the library does, answers to keys, and fits a phone, light and dark."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kpt_lab.frontier.quantum import expectations, statevector

from .test_views_lab import chosen, opened, quiet
from .views import View, fits, page_of

module = importlib.import_module("kpt_lab.widgets.circuit")


@pytest.fixture
def show(tmp_path: Path, watch: Callable[..., Any]) -> Callable[..., View]:
    """Opens the view: `show(circuit=..., width=390, theme="dark")`."""

    def shown(*, width: int = 900, theme: str = "light", **state: Any) -> View:
        page = watch(width=width, height=1100).page
        page.goto(page_of(tmp_path, "circuit", module.tables(), state, theme))
        return View(page.locator(".kpt-circuit"))

    return shown


def chances(view: View) -> list[float]:
    return [float(text) for text in view.root.locator(".kpt-circuit-number").all_text_contents()]


def test_the_bars_are_the_librarys_chances(show: Callable[..., View]) -> None:
    """At first, and after each slider has moved a step by the keyboard."""
    for name, made in module.CIRCUITS.items():
        view = show(circuit=name)
        values = dict(module._table(name, made)["start"])
        for label in [None, *view.labels("range")]:
            if label:
                values[label] = module.TURNS[view.step(label)]
            state = statevector(made, {p: math.pi * turn for p, turn in values.items()})
            assert chances(view) == pytest.approx(state.abs().square().tolist(), abs=6e-5)
            expected = expectations(state, [module.observables(made.qubits)[0]]).item()
            said = view.root.locator(".kpt-formula").inner_text().split(" is ")[1].split(",")[0]
            assert float(said.replace("−", "-")) == pytest.approx(expected, abs=6e-5)


def test_another_circuit_brings_its_own_sliders(show: Callable[..., View]) -> None:
    view = show()
    assert view.labels("range") == ["x0", "x1", "w0", "w1", "v0", "v1"]
    view.choose("circuit", "interference")
    assert view.labels("range") == ["phase"]
    assert view.options("observable") == ["Z"]
    view.choose("circuit", "a pair")
    view.choose("observable", "IZ")
    assert "The expectation of IZ" in view.root.locator(".kpt-formula").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_axe_finds_nothing_serious(width: int, theme: str, show: Callable[..., View]) -> None:
    view = show(width=width, theme=theme, circuit="a layer of three qubits")
    fits(view)


def test_an_address_restores_the_view(tmp_path: Path, watch: Callable[..., Any]) -> None:
    page = watch().page
    page.goto(page_of(tmp_path, "circuit", module.tables(), {}) + "#view=view&circuit=a pair&observable=ZI&turn=0.5")
    view = View(page.locator(".kpt-circuit"))
    assert view.chosen("circuit") == "a pair"
    assert view.chosen("observable") == "ZI"
    assert chances(view) == [0.5, 0, 0, 0.5]


def test_in_jupyterlab_keys_move_sliders_and_the_kernel_follows(lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1400)
    view = opened("circuit", lab, watched, "widgets.circuit('a pair', turn=0.5)")
    cells = watched.page.locator(".jp-Cell").count()
    view.step("turn")
    assert chosen(lab, view)["turn"] == 0.55
    assert watched.page.locator(".jp-Cell").count() == cells
    quiet(watched)
