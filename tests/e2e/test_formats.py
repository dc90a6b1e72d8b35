"""The formats view in Chromium: it looks codes up as the library rounds, answers mouse and keys, and fits a phone, light and dark."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kpt_lab.widgets import front

from kpt_lab.precision.formats import Format, formats

from .test_views_lab import chosen, opened, quiet
from .views import View, fact, fits, page_of

tables = importlib.import_module("kpt_lab.widgets.formats").tables
INNER = "window.kptLab = { mount };"


def address(folder: Path, state: dict[str, Any], theme: str = "light") -> str:
    """The page of the view, with its look-up within reach of the test."""
    script = front.script().replace(INNER, f"{INNER} window.landing = landing;")
    return page_of(folder, "formats", tables(), state, theme, script)


@pytest.fixture
def show(tmp_path: Path, watch: Callable[..., Any]) -> Callable[..., View]:
    """Opens the view: `show(value=..., width=390, theme="dark")`."""

    def shown(*, width: int = 900, theme: str = "light", **state: Any) -> View:
        page = watch(width=width, height=1000).page
        page.goto(address(tmp_path, state, theme))
        return View(page.locator(".kpt-formats"))

    return shown


def bits(view: View) -> str:
    return "".join(view.root.locator(".kpt-bit").all_text_contents())


@pytest.mark.parametrize("fmt", formats, ids=lambda fmt: fmt.name)
def test_the_look_up_gives_the_formats_codes(fmt: Format, show: Callable[..., View]) -> None:
    """In the browser itself: every value, every boundary, the doubles beside them, and random numbers."""
    table = next(found for found in tables()["formats"] if found["name"] == fmt.name)
    base = [v for v in table["values"] if v is not None] + table["edges"]
    draw = random.Random(2)
    xs = [*base, *(math.nextafter(x, side) for x in base for side in (-math.inf, math.inf))]
    xs += [draw.choice((-1, 1)) * 2 ** draw.uniform(-30, 30) for _ in range(2000)]
    page = show().page
    for how in fmt.overflows:
        found = page.evaluate("([format, xs, how]) => xs.map((x) => landing(format, x, how).code)", [table, xs, how])
        assert found == fmt.encode(torch.tensor(xs, dtype=torch.float64), overflow=how).tolist()


def test_bits_turn_by_mouse_and_by_keys(show: Callable[..., View]) -> None:
    view = show(value=0.35)
    assert bits(view) == "00101011"
    view.root.get_by_label("bit 7, sign").click()
    assert bits(view) == "10101011"
    assert view.control("number").input_value() == "-0.34375"
    view.page.keyboard.press("End")
    view.page.keyboard.press("Space")
    assert bits(view) == "10101010"
    view.page.keyboard.press("1")
    view.page.keyboard.press("ArrowLeft")
    view.page.keyboard.press("Enter")
    assert bits(view) == "10101001"
    assert fact(view, "stored") == "-0.28125"
    assert view.root.locator(".kpt-bit[aria-pressed=true]").count() == 4


def test_every_pattern_can_be_made_also_nan_and_minus_zero(show: Callable[..., View]) -> None:
    view = show(value=0.0, format="e5m2")
    for bit in ("bit 6, exponent", "bit 5, exponent", "bit 4, exponent", "bit 3, exponent", "bit 2, exponent"):
        view.root.get_by_label(bit).click()
    assert bits(view) == "01111100"
    assert "infinity" in view.root.locator(".kpt-formula").inner_text()
    view.root.get_by_label("bit 0, mantissa").click()
    assert bits(view) == "01111101"  # a NaN that no cast makes
    assert "NaN" in view.root.locator(".kpt-formula").inner_text()
    view.control("number").fill("-0")
    view.page.keyboard.press("Enter")
    assert bits(view) == "10000000"


def test_a_typed_number_lands_and_nonsense_is_told(show: Callable[..., View]) -> None:
    view = show()
    view.control("number").fill("464")
    view.page.keyboard.press("Enter")
    assert (fact(view, "stored"), fact(view, "what happens")) == ("448", "rounded, a tie")
    view.control("number").fill("465")
    view.page.keyboard.press("Enter")
    assert (fact(view, "stored"), fact(view, "what happens")) == ("448", "overflows")
    view.choose("an overflow becomes", "NaN")
    assert (fact(view, "stored"), fact(view, "stored", 1)) == ("NaN", "448")
    view.control("number").fill("many")
    view.page.keyboard.press("Enter")
    assert view.root.get_by_role("alert").inner_text() == "many is no number"
    assert fact(view, "before the cast") == "465"


def test_sliders_answer_to_keys_and_the_scale_moves_the_line(show: Callable[..., View]) -> None:
    view = show(value=0.35)
    before = view.drawn()
    view.step("choose a number")
    assert fact(view, "before the cast") != "0.35"
    view.control("scaled for a largest magnitude (amax) of").focus()
    view.page.keyboard.press("End")
    view.changes(before)
    assert fact(view, "largest number") == fact(view, "largest number", 1) == "5e6"
    assert fact(view, "what happens") == "flushed to zero"


def test_a_click_on_the_line_chooses_a_number(show: Callable[..., View]) -> None:
    view = show(value=0.35)
    box = view.root.locator(".kpt-line-stage").bounding_box()
    view.page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + box["height"] / 2)
    assert float(view.control("number").input_value()) > 0.35


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_axe_finds_nothing_serious(width: int, theme: str, show: Callable[..., View]) -> None:
    view = show(width=width, theme=theme, value=-700, beside="int8")
    fits(view)


def test_an_address_restores_the_view(tmp_path: Path, watch: Callable[..., Any]) -> None:
    page = watch().page
    page.goto(address(tmp_path, {}) + "#view=view&value=26&format=e5m2fnuz&amax=1000&axis=linear")
    view = View(page.locator(".kpt-formats"))
    assert view.chosen("format") == "e5m2fnuz"
    assert view.chosen("number line") == "linear"
    assert fact(view, "largest number") == "1000"
    assert view.control("number").input_value() == "26"


def test_in_jupyterlab_keys_turn_bits_and_the_kernel_follows(lab: Any, watch: Callable[..., Any]) -> None:
    """Typing in the field is no shortcut of JupyterLab, nor are the arrow keys on the bits."""
    watched = watch(height=1400)
    view = opened("formats", lab, watched, "widgets.formats(0.35)")
    cells = watched.page.locator(".jp-Cell").count()
    view.root.get_by_label("bit 7, sign").focus()
    view.page.keyboard.press("Space")
    assert bits(view) == "10101011"
    assert chosen(lab, view)["value"] == -0.34375
    view.control("number").fill("")
    view.control("number").press_sequentially("1e3")
    view.page.keyboard.press("Enter")
    assert fact(view, "stored") == "448"
    assert chosen(lab, view)["value"] == 1000
    assert watched.page.locator(".jp-Cell").count() == cells
    quiet(watched)
