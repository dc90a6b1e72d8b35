"""The energy and raster views in Chromium: they answer mouse and keys, play and pause, and fit a phone, light and dark."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kpt_lab.widgets import raster
from torch import nn

from kpt_lab.frontier.spiking import SpikingTransformer

from .test_views_lab import chosen, opened, quiet
from .views import View, fact, fits, page_of

energy = importlib.import_module("kpt_lab.widgets.energy")
MARK = {"label": "digits", "arithmetic": "float32", "spikes": 0.9, "compute": 5.5, "with_memory": 0.27}
STEP = "step"


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """Two networks of three layers on two inputs: what the raster view draws."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 4))
    x = torch.rand(8, 6)
    kinds = (("exact", 8), ("temporal_coding", 16))
    networks = {name: SpikingTransformer.from_standard(model, name, calibration=x, timesteps=steps) for name, steps in kinds}
    return raster(networks, x[:2], labels=[0, 1], pictures=torch.rand(2, 3, 2)).data


@pytest.fixture
def show(tmp_path: Path, watch: Callable[..., Any], runs: dict[str, Any]) -> Callable[..., View]:
    """Opens a view from a file: `show("energy", spikes=3, width=390, theme="dark")`."""

    def shown(
        view: str, *, width: int = 900, theme: str = "light", address: str = "", clock: bool = False, **state: Any
    ) -> View:
        page = watch(width=width, height=1000).page
        if clock:
            page.clock.install(time=0)
        data = runs if view == "raster" else energy.constants(marks=[MARK])
        page.goto(page_of(tmp_path, view, data, state, theme) + address)
        if clock:
            page.clock.pause_at(3600)  # or time goes on by itself between the test's own steps
        return View(page.locator(f".kpt-{view}"))

    return shown


def said(view: View) -> str:
    return str(view.root.locator("p[role=status]").inner_text())


# ---- energy


def test_spikes_move_the_gain_along_both_curves(show: Callable[..., View]) -> None:
    view = show("energy")
    assert (fact(view, "times less energy"), fact(view, "100x less energy")) == ("10.2x", "at most 0.0511 spikes a synapse")
    assert fact(view, "100x less energy", 1) == "never: thresholds and steps alone cost more"
    view.press("spikes a synapse and inference", "Home")
    assert fact(view, "times less energy") == "5110x"
    view.press("spikes a synapse and inference", "End")
    assert said(view).startswith("No such trains")
    view.press("steps in a window", "End")
    assert "more energy by arithmetic alone" in said(view)


def test_data_movement_and_numbers_change_what_they_should(show: Callable[..., View]) -> None:
    view = show("energy")
    alone, moved = fact(view, "times less energy"), fact(view, "times less energy", 1)
    view.choose("weights and membranes lie in", "1MB")
    assert fact(view, "times less energy") == alone
    assert fact(view, "times less energy", 1) != moved
    view.choose("spiking network computes in", "int8")
    assert "part of this is the numbers' doing" in said(view)
    assert fact(view, "times less energy") != alone
    view.step("operations that one access to memory serves")
    assert "hollow symbols" not in view.root.inner_text()


def test_recorded_networks_are_drawn_where_their_model_is(show: Callable[..., View]) -> None:
    view = show("energy")
    assert "hollow symbols: digits, counted in runs" in view.root.inner_text()
    view.choose("standard network computes in", "int8")
    assert "hollow symbols" not in view.root.inner_text()


def test_an_address_restores_the_energy_view(show: Callable[..., View]) -> None:
    view = show("energy", address="#view=view&spikes=0.05&code=first_spike&memory=32KB&timesteps=8")
    assert view.chosen("code") == "time of one spike"
    assert view.chosen("weights and membranes lie in") == "32KB"
    assert "At 0.05 spikes a synapse" in said(view)


# ---- raster


def test_the_step_is_scrubbed_by_keys_and_by_the_picture(show: Callable[..., View]) -> None:
    view = show("raster")
    assert said(view).startswith("Step 24 of 24, window 3 of 3")
    assert "The answer is" in said(view)
    view.press(STEP, "Home")
    assert "0 of " in said(view)
    assert "Nothing has reached the output neurons yet." in said(view)
    assert view.root.locator(".kpt-bar-value").first.inner_text() == "–"
    view.press(STEP, "ArrowRight")
    assert said(view).startswith("Step 1 of 24, window 1 of 3")
    box = view.root.locator(".kpt-raster-stage").bounding_box()
    view.page.mouse.click(box["x"] + 0.95 * box["width"], box["y"] + 20)
    assert "window 3 of 3" in said(view)
    assert view.root.locator(".kpt-bar-best").count() == 1


def test_it_plays_to_the_end_and_pauses(show: Callable[..., View]) -> None:
    view = show("raster", clock=True, network="temporal_coding")
    press = view.root.locator(".kpt-raster-transport button")
    assert press.inner_text() == "Play"
    press.focus()
    view.page.keyboard.press("Space")
    assert press.inner_text() == "Pause"
    live = "all => all.map(each => each.getAttribute('aria-live'))"
    assert set(view.root.locator("p[role=status], output").evaluate_all(live)) == {"off"}  # or every step would be read out
    assert said(view).startswith("Step 0 of 48")
    view.page.clock.run_for(10 * 40)
    assert said(view).startswith("Step 10 of 48")
    view.page.keyboard.press("Enter")
    view.page.clock.run_for(1000)
    assert said(view).startswith("Step 10 of 48")
    press.click()
    view.page.clock.run_for(20_000)
    assert said(view).startswith("Step 48 of 48")
    assert press.inner_text() == "Play"
    press.click()  # from the start again
    view.page.clock.run_for(5 * 40)
    assert said(view).startswith("Step 5 of 48")
    view.control(STEP).focus()  # moving the step takes over
    view.page.keyboard.press("End")
    view.page.clock.run_for(1000)
    assert said(view).startswith("Step 48 of 48")
    assert press.inner_text() == "Play"


def test_networks_inputs_and_windows_can_be_chosen(show: Callable[..., View]) -> None:
    view = show("raster")
    view.choose("network", "temporal_coding, T 16")
    assert said(view).startswith("Step 48 of 48")
    view.choose("input", "1, labelled 1")
    assert view.root.get_by_role("img", name="the input, labelled 1").count() == 1
    view.choose("show", "the window under way")
    assert "24 of 30 neurons" in view.root.locator(".kpt-raster-stage").inner_html()
    view.root.locator("summary").click()
    rows = view.root.locator("details tbody tr")
    rows.nth(2).wait_for()  # they are drawn when the browser tells that the details are open
    assert rows.count() == 3
    assert rows.first.locator("td").all_text_contents()[:2] == ["1", "6"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["energy", "raster"])
def test_they_fit_and_axe_finds_nothing_serious(name: str, width: int, theme: str, show: Callable[..., View]) -> None:
    view = show(name, width=width, theme=theme)
    for summary in view.root.locator("summary").all():
        summary.click()
    fits(view)


# ---- in JupyterLab


def test_in_jupyterlab_the_kernel_follows_the_sliders(lab: Any, watch: Callable[..., Any]) -> None:
    watched = watch(height=1400)
    view = opened("energy", lab, watched, "widgets.energy(0.05)")
    view.press("spikes a synapse and inference", "ArrowRight")
    assert chosen(lab, view)["spikes"] == 0.07
    quiet(watched)
