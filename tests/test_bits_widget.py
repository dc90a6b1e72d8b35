"""The bits view without a browser: its formulas in Node against the library's, its constants, outputs and refusals."""

from __future__ import annotations

import importlib
import json
import math
import random
import shutil
import subprocess
import warnings
from typing import Any

import pytest

from kpt_lab.frontier import photonic
from kpt_lab.frontier.photonic import noise
from kpt_lab.site import views as site

pytest.importorskip("anywidget", reason="the views need anywidget")
from kpt_lab.widgets import front, views

from kpt_lab import widgets

module = importlib.import_module("kpt_lab.widgets.bits")  # the package's attribute of that name is the function
NODE = shutil.which("node")


def run_node(tmp_path: Any, script: str, given: Any) -> Any:
    source = front.module().removesuffix("export default { render };\n")
    tail = (
        f"\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\nconsole.log(JSON.stringify(({script})(given)));\n"
    )
    path = tmp_path / "bits.cjs"
    path.write_text(source + tail, encoding="utf-8")
    done = subprocess.run(
        ["node", str(path)], input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(count: int = 600) -> list[dict[str, Any]]:
    """States whose every slider stands on a stop, drawn at random."""
    draw = random.Random(0)
    return [{name: draw.choice(stops) for name, stops in module.constants()["stops"].items()} for _ in range(count)]


# ---- the formulas


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_front_end_computes_what_the_library_does(tmp_path: Any) -> None:
    given = states()
    found = run_node(
        tmp_path,
        "({table, states}) => states.map((s) => bitsAnswer(table, s))",
        {"table": module.constants(), "states": given},
    )
    for state, computed in zip(given, found, strict=True):
        wanted = module.answer(state)
        assert computed.keys() == wanted.keys()
        for name, value in wanted.items():
            assert computed[name] == pytest.approx(value, rel=1e-12, abs=1e-12), (name, state)


@pytest.mark.parametrize("resistance", [None, 50.0, 1e4])
@pytest.mark.parametrize(("channels", "rate", "power"), [(64, 1e9, 1e-3), (1, 1e6, 2e-5), (256, 5e10, 0.1)])
def test_the_answer_is_that_of_the_machine(channels: int, rate: float, power: float, resistance: float | None) -> None:
    """The accelerator's own properties, and the photons and the light that its warning asks for."""
    made = noise.Noise(johnson=noise.Johnson(resistance, 300.0) if resistance else None)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        machine = photonic.PhotonicAccelerator(channels, 20, noise=made, symbol_rate=rate, optical_power=power)
    view = widgets.bits(power, channels=channels, rate=rate, resistance=resistance, bits=20)
    found = module.answer(view.state)
    assert found["detected"] == pytest.approx(machine.detected_photons, rel=1e-12)
    assert found["bits"] == pytest.approx(machine.receiver_bits, rel=1e-12)
    assert found["light"] == pytest.approx(power / rate / channels)
    (told,) = heard
    assert f"needs {found['needed']:.2g} detected photons" in str(told.message)
    assert f"for {found['power'] / power:.2g} times the light" in str(told.message)


def test_the_power_that_is_needed_gives_the_bits() -> None:
    for state in states(100):
        power = module.answer(state)["power"]
        assert module.answer({**state, "power": power})["bits"] == pytest.approx(state["bits"], abs=1e-9)


def test_loss_takes_light_and_sixteen_bits_need_what_they_need() -> None:
    near, far = (module.answer({**module.START, "loss": loss}) for loss in (0, 20))
    assert near["detected"] == pytest.approx(100 * far["detected"])
    assert (near["bits"] - far["bits"]) == pytest.approx(20 / 6.02)
    assert module.answer({**module.START, "bits": 16})["needed"] == pytest.approx(3.6e9, rel=0.01)


# ---- states


ASKED = [
    ({"power": 1e-3, "resistance": "null"}, {"power": 1e-3, "resistance": None}),
    ({"power": 0.0011, "resistance": 60}, {"power": 1e-3, "resistance": 50.0}),
    ({"power": "many", "channels": -3, "loss": 0.4}, {"power": 1e-3, "channels": 64, "loss": 0}),
    ({"rate": 1e20, "bits": 99, "channels": 100}, {"rate": 1e11, "bits": 24, "channels": 128}),
]


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize(("asked", "wanted"), ASKED)
def test_an_address_finds_the_nearest_stops(asked: dict[str, Any], wanted: dict[str, Any], tmp_path: Any) -> None:
    found = run_node(tmp_path, "({table, state}) => bitsState(table, state)", {"table": module.constants(), "state": asked})
    assert found == {**module.START, **wanted}


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_copied_call_makes_the_same_view(tmp_path: Any) -> None:
    state = widgets.bits(2.5e-3, channels=16, resistance=50.0, loss=14.2, bits=6).state
    call = run_node(tmp_path, '(state) => pythonCall("bits", state)', state)
    assert eval(call, {"bits": widgets.bits}).state == state


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_sentence_says_whether_the_light_is_enough(tmp_path: Any) -> None:
    cases = [module.START, {**module.START, "bits": 16}, {**module.START, "power": 1e-7, "loss": 40}]
    enough, little, dark = run_node(
        tmp_path,
        "({table, states}) => states.map((s) => bitsSentence(table, s))",
        {"table": module.constants(), "states": cases},
    )
    assert enough.endswith("which is there.")
    assert "shot noise alone leaves 8.07 effective bits. 16 bits need 3.6e9 photons: 59300x the light." in little
    assert "less than one bit" in dark


# ---- the view


def carried(view: Any) -> dict[str, Any]:
    data, _ = view._repr_mimebundle_()
    return data[views.MIME]


def test_the_view_holds_constants_and_state() -> None:
    view = widgets.bits()
    assert view.state == module.START
    assert view.data == module.constants()
    assert (view._esm, view._css) == (front.module(), front.stylesheet())
    assert repr(view) == "bits: 8.07 of 8 asked for, 1 mW a wavelength, modelled"
    assert len(json.dumps(view.data, allow_nan=False)) < 6000


def test_the_site_takes_its_output_and_a_value_of_ones_own_is_a_stop() -> None:
    content = site.checked(carried(widgets.bits(2.5e-3, loss=14.2, rate=3e8)))
    data = site.columns_of(content, front.FOLDER)
    assert 2.5e-3 in data["stops"]["power"]
    assert 14.2 in data["stops"]["loss"]
    assert data["stops"]["rate"] == sorted({*module.RATES, 3e8})
    assert data["stops"]["resistance"] == list(module.RESISTANCES)
    key, script = site.data_script(data)
    assert len(script) < site.LIMIT
    assert 'data-view="bits"' in site.view_html(content, key, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"power": 0}, "power is 0; a finite number above 0 is needed"),
        ({"power": math.nan}, "power is nan; a finite number above 0 is needed"),
        ({"rate": -1e9}, "rate is -1000000000.0; a finite number above 0"),
        ({"resistance": 0}, "resistance is 0; None or a finite number above 0 is needed"),
        ({"loss": -1}, "loss is -1; a finite number of 0 or more, in dB, is needed"),
        ({"channels": 0}, "channels is 0; a whole number from 1 to 1024 is needed"),
        ({"channels": 64.0}, "channels is 64.0; a whole number"),
        ({"bits": 1}, "bits is 1; a whole number from 2 to 24 is needed"),
    ],
)
def test_what_is_not_accepted_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        widgets.bits(**given)


# ---- the static figure


def test_the_figure_draws_the_closed_form() -> None:
    figure = module.curve(resistance=50.0, bits=10, loss=3)
    quiet, warm, point = figure.data
    state = {**module.START, "resistance": 50.0, "bits": 10, "loss": 3}
    for trace, at in ((quiet, {**state, "resistance": None}), (warm, state)):
        wanted = [max(module.answer({**at, "power": power})["bits"], 0) for power in module.POWERS]
        assert list(trace.y) == pytest.approx(wanted, rel=1e-5)
    assert (point.x[0], point.y[0]) == (1e-3, pytest.approx(module.answer(state)["bits"], rel=1e-5))
    assert len(module.curve().data) == 2
    with pytest.raises(ValueError, match="bits has no 'colour'; accepted are power, channels"):
        module.curve(colour=3)
